"""A general reader of boxes and points in answers of any spelling, for models that do not keep to their dialect.

It reads as boxes:

- four numbers in brackets or between a family's tags, or after a word for a box:
  ``[1, 2, 3, 4]``, ``(1, 2, 3, 4)``, ``<box>1 2 3 4</box>``, ``Bounding box: 1, 2, 3, 4``
- numbers with names, in any order: ``{"x1": 1, "y1": 2, "x2": 3, "y2": 4}``, ``xmin=1 …``, ``"x", "y", "width", "height"``
- two opposite corners, or four: ``from (1, 2) to (3, 4)``, ``top-left (1, 2), bottom-right (3, 4)``, ``"quad": [1, 2, 3, 2, 3, 4, 1, 4]``
- location tokens: ``<loc0002><loc0001><loc0004><loc0003>``, ``<loc_1><loc_2><loc_3><loc_4>``, ``<patch_index_0001><patch_index_0040>``

Numbers that words or keys say are something else (a size, a point, a colour, a number in a label) are not read as a box, and neither is a
box in which the text breaks off. The reader passes over the tokens once, so its time grows linearly with the text's length.
"""

from __future__ import annotations

from dataclasses import dataclass

from sam4mllm.prompts.answer_tokens import AnswerToken, answer_tokens
from sam4mllm.prompts.answer_words import A_NUMBER, BOX_ENDS, BOX_TAGS, LABEL_TAGS, POINT_ENDS, POINT_TAGS, About, about, corner, words
from sam4mllm.prompts.coordinates import EDGES, ORDINARY, FoundBox, FoundPoint, Numeral, bare, box_of, is_order, meaning, order_in
from sam4mllm.prompts.gathering import Gathering, Group, Manner
from sam4mllm.prompts.location_tokens import Locations

_CLOSES = {")": "(", "]": "[", "}": "{"}
_SEPARATORS = frozenset(",;|<>\"'`*/\\$_-")
"""Signs that part numbers, or emphasise them."""
_ASSIGNS = frozenset(":=>~≈\"'`* ")
_IS = words("is are equals about approximately at ist sont est es")
_USUAL = Manner()


@dataclass(frozen=True)
class Found:
    """What an answer holds, in order; ``ignored`` are stretches of it whose numbers are something else."""

    boxes: tuple[FoundBox, ...]
    points: tuple[FoundPoint, ...]
    words: tuple[tuple[str, int], ...]
    """Each word with where it stands."""
    ignored: tuple[tuple[int, int], ...]


def find_boxes(folded: str, manner: Manner = _USUAL) -> Found:
    """The boxes and points of a folded answer without its thoughts. Never raises."""
    reader = _Reader(manner, len(folded.rstrip()))
    for token in answer_tokens(folded):
        reader.read(token)
    return reader.finish()


class _Reader:
    """Goes through the tokens, keeps the open brackets, tags and runs of numbers, and hands on what is complete."""

    def __init__(self, manner: Manner, length: int) -> None:
        self.manner = manner
        self.length = length
        self.into = Gathering(manner)
        self.words: list[tuple[str, int]] = []
        self.groups = [Group("", 0)]
        self.open_kinds: dict[str, int] = {}
        self.pending = ""
        """The coordinate that was named last and has no number yet; ``loose`` if its name may be an ordinary word."""
        self.loose = False
        self.run: list[tuple[Numeral, int]] = []
        """Numbers that follow each other in the innermost group, each with its line."""
        self.run_about = About.NOTHING
        self.line = 0
        self.only_numbers = True
        self.label_from: int | None = None
        self.locations = Locations()

    # -- tokens ------------------------------------------------------------------------------------------------------------------------

    def read(self, token: AnswerToken) -> None:
        if self.label_from is not None:
            if token.kind != "tag":
                return
            self.into.ignored.append((self.label_from, token.start))
            self.label_from = None
        if token.kind == "number":
            self._number(token)
        elif token.kind in ("word", "key"):
            self._word(token)
        elif token.kind in ("tag", "point_tag"):
            self._tag(token)
        elif token.kind == "text":
            self._break()
            self.into.remember(A_NUMBER)
            self.into.ignored.append((token.start, token.end))
        elif token.kind == "open":
            self._break()
            self._open(token.text, token.start)
        elif token.kind == "close":
            self._close_bracket(token)
        elif token.kind == "line":
            self._line()
        else:
            self._sign(token)

    def _number(self, token: AnswerToken) -> None:
        group = self.groups[-1]
        measure = token.unit or ("hundredths" if group.angled and group.kind == "{" else "")
        numeral = Numeral(token.text, float(token.text), token.start, token.end, measure)
        if is_order(group.names[-4:]):  # four names came first, so the numbers after them are in the same order
            self.into.learn_order(tuple(group.names[-4:]))
            group.names.clear()
            self.pending = ""
        if self.pending and not self.loose:
            self._name(group, numeral)
            return
        self.pending = ""
        if not self.run:
            self.run_about = about(self.into.recent)
        if group.kind in ("", "{"):
            self.into.remember(A_NUMBER)
        self.run.append((numeral, self.line))
        group.numbers.append(numeral)
        self.into.between("", len(self.groups))

    def _name(self, group: Group, numeral: Numeral) -> None:
        """Record a number under the coordinate name that was read before it."""
        place = corner(self.into.recent)
        if self.pending in group.named:
            self._close_named(group)
        if not group.kind and self.pending[0] in "xc" and not any(name[0] in "xyc" for name in group.named):
            group.named.clear()  # a width and height in prose before the first corner are those of the image
        if not group.named and not group.kind:
            group.start, group.corner = numeral.start, place
        group.named[self.pending] = numeral
        if group.names[-1:] == [self.pending]:
            group.names.pop()
        self.pending = ""

    def _word(self, token: AnswerToken) -> None:
        group = self.groups[-1]
        self.words.append((token.text, token.start))
        if token.text == "json" or (self.pending and token.text in _IS):
            return
        self.only_numbers = False
        self._break()
        self.into.remember(f'"{token.text}' if token.kind == "key" else token.text)
        self.pending = meaning(token.text)
        if self.pending:
            group.names += [self.pending] if group.kind or token.text not in EDGES else []
            self.loose = token.kind == "word" and token.text in ORDINARY
            return
        group.mixed = True
        self.into.learn_order(order_in(token.text))
        self.into.between(token.text, len(self.groups))

    def _sign(self, token: AnswerToken) -> None:
        group = self.groups[-1]
        if token.text in "<>":
            group.angled = True
        if self.pending and token.text in _ASSIGNS:
            self.loose = self.loose and token.text not in ":=>"
            return
        self.pending = ""
        if token.text not in "\"'`*":
            self.into.between(token.text, len(self.groups))
        if token.text in ".;。":
            self.into.recent = []
        if token.text not in _SEPARATORS and not (token.text in ":=" and not self.run):
            self._flush_run()
            group.mixed = group.mixed or group.kind != "{"

    def _line(self) -> None:
        root = self.groups[0]
        self.line += 1
        self.pending = ""
        if not root.numbers and is_order(root.names):
            self.into.learn_order(tuple(root.names))
        root.names.clear()
        root.numbers.clear()
        self.into.unlink()

    def _break(self) -> None:
        """End the run of numbers and of location tokens, because something else follows."""
        self.pending = ""
        self._flush_run()
        self.locations.flush(self.into.boxes)

    # -- brackets and tags -------------------------------------------------------------------------------------------------------------

    def _open(self, kind: str, start: int) -> None:
        self.groups.append(self.into.open(kind, start))
        self.open_kinds[kind] = self.open_kinds.get(kind, 0) + 1
        self.only_numbers = False

    def _close_bracket(self, token: AnswerToken) -> None:
        kind = _CLOSES[token.text]
        if self.open_kinds.get(kind):
            self._drop_to(kind)
            self._close(token.end)
        else:
            self._break()

    def _drop(self) -> None:
        self.open_kinds[self.groups.pop().kind] -= 1

    def _drop_to(self, kind: str) -> None:
        """Drop, unread, the groups that are open within the innermost group of a kind."""
        while self.groups[-1].kind != kind:
            self._drop()

    def _close(self, end: int) -> None:
        """End the innermost bracket or tag at ``end`` and pass on what it holds."""
        group = self.groups[-1]
        if group.mixed or group.named:
            self._flush_run()
        self.run.clear()
        self._break()
        self._drop()
        self.into.close(group, self.groups[-1], end, len(self.groups))

    def _close_named(self, group: Group) -> None:
        """Pass on the named numbers of a group that is still open, unless the text breaks off in the last of them; then forget them."""
        if group.named and self._is_whole(max(numeral.end for numeral in group.named.values())):
            end = max(numeral.end for numeral in group.named.values())
            self.into.close_named(group, self.groups[0], end, len(self.groups))
        group.named = {}

    def _tag(self, token: AnswerToken) -> None:
        name, ends = bare(token.text.lstrip("/")), token.text[0] == "/"
        if self.locations.take(token, self.into.boxes):
            return
        self._break()
        self.into.unlink()
        self.only_numbers = False
        if token.kind == "point_tag" or (name in POINT_TAGS and not ends):
            self._open("points", token.start)
            self.groups[-1].about = About.POINTS
        elif name in LABEL_TAGS:
            self.label_from = None if ends else token.end
        elif name in BOX_TAGS and not ends:
            if self.groups[-1].is_tag:
                self._close(token.start)
            self.into.recent = ["box"]
            self._open("box", token.start)
        elif name in BOX_TAGS or name in BOX_ENDS:
            self._close_tag("box", token.end)
        elif name in POINT_TAGS or name in POINT_ENDS:
            self._close_tag("points", token.end)
        elif meaning(token.text) and not ends:
            self._word(AnswerToken("key", token.text, token.start, token.end))

    def _close_tag(self, kind: str, end: int) -> None:
        if self.open_kinds.get(kind):
            self._drop_to(kind)
            self._close(end)
            self.into.recent = []

    # -- numbers without brackets ------------------------------------------------------------------------------------------------------

    def _flush_run(self, *, last: bool = False) -> None:
        """End a run of numbers and read it as boxes, four numbers each, if a word for a box comes before it, if an order of numbers was
        told (as by the columns of a table), or if the answer holds nothing else. Their count must be a multiple of four. Numbers alone in
        a bracket or a tag are left to :meth:`_close`. ``last``: the run is at the answer's end.
        """
        run, self.run = self.run, []
        group = self.groups[-1]
        if not run or len(run) % 4 or (group.kind not in ("", "{") and not group.mixed):
            return
        boxed, alone = self.run_about is About.BOX, last and self.only_numbers and self.manner.bare_numbers
        ordered = bool(self.into.order) and self.run_about is About.NOTHING
        if not (boxed or alone or ordered):
            return
        if not self._is_whole(run[-1][0].end):
            run = run[:-4]
        rows = [run[index : index + 4] for index in range(0, len(run), 4)]
        if len(rows) > 1 and any(row[0][1] != row[3][1] for row in rows):  # several boxes in a run count only if each has its own line
            return
        order = self.into.order
        for row in rows:
            numerals = [numeral for numeral, _ in row]
            start, end = numerals[0].start, numerals[-1].end
            self.into.add(box_of(numerals, order or self.manner.order, start, end, named=bool(order), weak=not boxed))

    def _is_whole(self, end: int) -> bool:
        """Whether a number that ends at ``end`` is complete: there is text after it, or the model ended the answer with no group open."""
        return end < self.length or (self.manner.finished and len(self.groups) == 1)

    def finish(self) -> Found:
        """Return what was read, after the last token. Brackets that are still open are discarded. Open tags, and the named numbers of open
        mappings (``{``), are read unless the text breaks off in the last of their numbers; then they are discarded, too.
        """
        if self.label_from is not None:
            self.into.ignored.append((self.label_from, self.length))
        self._flush_run(last=True)
        self.locations.flush(self.into.boxes)
        while len(self.groups) > 1:
            group = self.groups[-1]
            whole = not group.numbers or self._is_whole(group.numbers[-1].end)
            if group.kind == "{":
                self._close_named(group)
                self._drop()
            elif group.is_tag and whole:
                self._close(self.length)
            else:
                self._drop()
        self._close_named(self.groups[0])
        boxes = sorted(self.into.ordered(), key=lambda box: (box.start, box.end))
        return Found(tuple(boxes), tuple(self.into.points), tuple(self.words), tuple(self.into.ignored))
