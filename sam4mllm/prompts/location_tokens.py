"""Boxes that are spelled with location tokens, special tokens for coordinate steps: those of PaliGemma, Florence-2 and Kosmos-2."""

from __future__ import annotations

import re
from collections.abc import Callable

from sam4mllm.prompts.answer_tokens import AnswerToken
from sam4mllm.prompts.coordinates import FoundBox, Measure, Numeral, box_around, box_of, is_quad

_TOKEN = re.compile(r"(?P<pali>loc[0-9]{4})|(?P<florence>(?:loc_|x_|y_)[0-9]{1,4})|(?P<kosmos>patch_index_[0-9]{4})")
_GRID = 32
"""Kosmos-2 counts the cells of a grid of 32 x 32, row by row (arXiv 2306.14824, section 2.1)."""
_STEPS: dict[str, Measure] = {"pali": "1024ths", "florence": "milli", "kosmos": ""}
"""The measure of each family's steps. PaliGemma has 1,024 steps to a side (arXiv 2407.07726, section 3), and writes y first; Florence-2 has
1,000 (arXiv 2311.06242, section 3.1). Kosmos-2's tokens are numbers of cells, which are converted later."""


class Locations:
    """Collects location tokens of one family that follow each other, and makes boxes of them."""

    def __init__(self) -> None:
        self._family = ""
        self._tokens: list[Numeral] = []

    def take(self, token: AnswerToken, boxes: list[FoundBox]) -> bool:
        """Take a token if it is a location token, and return whether it is one. Where another family's tokens begin, the boxes of the
        earlier tokens are added to ``boxes`` first.
        """
        match = _TOKEN.fullmatch(token.text) if token.kind == "tag" else None
        if match is None:
            return False
        family = str(match.lastgroup)
        if family != self._family:
            self.flush(boxes)
        self._family = family
        figures = re.sub(r"\D", "", token.text)
        self._tokens.append(Numeral(figures, float(figures), token.start, token.end, _STEPS[family]))
        return True

    def flush(self, boxes: list[FoundBox]) -> None:
        """Add the boxes that the tokens make to ``boxes``, and begin anew. Tokens that are too few for a box are dropped."""
        tokens, self._tokens = self._tokens, []
        if not tokens:
            return
        make = _MAKERS[self._family]
        size = 2 if self._family == "kosmos" else 4
        points = list(zip(tokens[::2], tokens[1::2], strict=False))
        if len(tokens) == 8 and size == 4 and is_quad(points):
            made = [box_around(points, tokens[0].start, tokens[-1].end)]
        else:
            made = [make(tokens[at : at + size]) for at in range(0, len(tokens) // size * size, size)]
        boxes += [box for box in made if box is not None]


def _y_first(tokens: list[Numeral]) -> FoundBox | None:
    return box_of(tokens, ("y1", "x1", "y2", "x2"), tokens[0].start, tokens[-1].end, named=True)


def _x_first(tokens: list[Numeral]) -> FoundBox | None:
    return box_of(tokens, ("x1", "y1", "x2", "y2"), tokens[0].start, tokens[-1].end, named=True)


def _cells(tokens: list[Numeral]) -> FoundBox | None:
    """Return the box from the middle of the first cell to the middle of the last. If both are in one column (or row), the box has the whole
    width (or height) of a cell.
    """
    (y1, x1), (y2, x2) = (divmod(int(token.value), _GRID) for token in tokens)
    inset_x, inset_y = (0.5 if x1 != x2 else 0.0), (0.5 if y1 != y2 else 0.0)
    corners = (x1 + inset_x, y1 + inset_y, x2 + 1 - inset_x, y2 + 1 - inset_y)
    x1_milli, y1_milli, x2_milli, y2_milli = (number / _GRID * 1000 for number in corners)
    return FoundBox((x1_milli, y1_milli, x2_milli, y2_milli), None, "milli", tokens[0].start, tokens[-1].end, named=True)


_MAKERS: dict[str, Callable[[list[Numeral]], FoundBox | None]] = {"pali": _y_first, "florence": _x_first, "kosmos": _cells}
