"""Boxes and points in an answer of whatever spelling: a general reader, for models that do not keep to their dialect.

Read as boxes are

- four numbers in brackets or between a family's tags, or after a word for a box:
  ``[1, 2, 3, 4]``, ``(1, 2, 3, 4)``, ``<box>1 2 3 4</box>``, ``Bounding box: 1, 2, 3, 4``
- numbers with names, in any order: ``{"x1": 1, "y1": 2, "x2": 3, "y2": 4}``, ``xmin=1 …``, ``"x", "y", "width", "height"``
- two opposite corners, and four: ``from (1, 2) to (3, 4)``, ``top-left (1, 2), bottom-right (3, 4)``, ``"quad": [1, 2, 3, 2, 3, 4, 1, 4]``
- a family's own steps: ``<loc0002><loc0001><loc0004><loc0003>``, ``<loc_1><loc_2><loc_3><loc_4>``, ``<patch_index_0001><patch_index_0040>``

Numbers that words or keys call something else are no box (a size, a point, a colour, what stands in a label), and neither is one that
the text breaks off in. One pass over the tokens, so the time grows with the text's length only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sam4mllm.prompts.answer_tokens import AnswerToken, answer_tokens
from sam4mllm.prompts.answer_words import (
    BOX_TAGS,
    FAR,
    LABEL_TAGS,
    LINKS,
    OPPOSITE,
    POINT_TAGS,
    A_NUMBER,
    About,
    about,
    corner,
)
from sam4mllm.prompts.coordinates import (
    ORDINARY,
    FoundBox,
    FoundPoint,
    Numeral,
    bare,
    box_around,
    box_of,
    is_order,
    is_quad,
    meaning,
    named_box,
    order_in,
)
from sam4mllm.prompts.location_tokens import Locations

XYXY = ("x1", "y1", "x2", "y2")
_CLOSES = {")": "(", "]": "[", "}": "{"}
_SEPARATORS = frozenset(",;|<>\"'`*/\\$_")
"""Signs that part numbers, or emphasise them."""
_ASSIGNS = frozenset(":=>~≈\"'`* ")
_IS = frozenset("is are equals about approximately at ist sont est es".split())


@dataclass(frozen=True)
class Manner:
    """How the dialect at hand writes: the ``order`` of a box's numbers, and whether a box is two ``paired`` corners in brackets.

    ``bare_numbers``: four numbers and nothing else may be a box. ``finished``: the model came to its end, so its last number is whole.
    """

    order: tuple[str, ...] = XYXY
    paired: bool = False
    bare_numbers: bool = True
    finished: bool = True


@dataclass(frozen=True)
class Found:
    """What an answer holds, in order; ``ignored`` are stretches of it whose numbers are something else."""

    boxes: tuple[FoundBox, ...]
    points: tuple[FoundPoint, ...]
    words: tuple[tuple[str, int], ...]
    """Each word with where it stands."""
    ignored: tuple[tuple[int, int], ...]


def find_boxes(folded: str, manner: Manner = Manner()) -> Found:
    """The boxes and points of a folded answer without its thoughts. Never raises."""
    reader = _Reader(manner, len(folded.rstrip()))
    for token in answer_tokens(folded):
        reader.read(token)
    return reader.finish()


@dataclass
class _Group:
    """A bracket or a tag that is open, and what has come in it."""

    kind: str
    start: int
    about: About = About.NOTHING
    order: tuple[str, ...] = ()
    corner: str = ""
    numbers: list[Numeral] = field(default_factory=list)
    pairs: list[tuple[Numeral, Numeral]] = field(default_factory=list)
    named: dict[str, Numeral] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    """Coordinates that were named without a number."""
    mixed: bool = False
    """Whether there is anything in it besides numbers."""
    angled: bool = False

    @property
    def is_tag(self) -> bool:
        return self.kind not in ("", "(", "[", "{")


class _Reader:
    def __init__(self, manner: Manner, length: int) -> None:
        self.manner = manner
        self.length = length
        self.boxes: list[FoundBox] = []
        self.points: list[FoundPoint] = []
        self.words: list[tuple[str, int]] = []
        self.ignored: list[tuple[int, int]] = []
        self.groups = [_Group("", 0)]
        self.open_kinds: dict[str, int] = {}
        self.recent: list[str] = []
        self.order: tuple[str, ...] = ()
        self.pending = ""
        self.loose = False
        self.run: list[tuple[Numeral, int]] = []
        self.run_about = About.NOTHING
        self.line = 0
        self.only_numbers = True
        self.label_from: int | None = None
        self.last_pair: tuple[tuple[Numeral, Numeral], int] | None = None
        self.link = ""
        self.link_depth = 0
        self.corners: dict[str, tuple[Numeral, Numeral]] = {}
        self.corners_from = 0
        self.locations = Locations()

    # -- tokens ----------------------------------------------------------------------------------------------------------------------

    def read(self, token: AnswerToken) -> None:
        if self.label_from is not None:
            if token.kind != "tag":
                return
            self.ignored.append((self.label_from, token.start))
            self.label_from = None
        if token.kind == "number":
            self._number(token)
        elif token.kind in ("word", "key"):
            self._word(token)
        elif token.kind in ("tag", "point_tag"):
            self._tag(token)
        elif token.kind == "text":
            self._break()
            self._remember(A_NUMBER)
            self.ignored.append((token.start, token.end))
        elif token.kind == "open":
            self._flush_run()
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
        if is_order(group.names[-4:]):  # names, then numbers in their order
            self.order = self.order or tuple(group.names[-4:])
            group.names.clear()
            self.pending = ""
        if self.pending and not self.loose:
            if self.pending in group.named:
                self._flush_named(group)
            if not group.kind and self.pending[0] in "xc" and not any(name[0] in "xyc" for name in group.named):
                group.named.clear()  # a width and height in prose before the first corner are those of the image
            if not group.named:
                group.start = token.start if not group.kind else group.start
                group.corner = group.corner if group.kind else corner(self.recent)
            group.named[self.pending] = numeral
            group.names[-1:] = []
            self.pending = ""
            return
        self.pending = ""
        if not self.run:
            self.run_about = about(self.recent)
        if group.kind in ("", "{"):
            self._remember(A_NUMBER)
        self.run.append((numeral, self.line))
        group.numbers.append(numeral)
        self._between("")

    def _word(self, token: AnswerToken) -> None:
        group = self.groups[-1]
        self.words.append((token.text, token.start))
        if token.text == "json" or (self.pending and token.text in _IS):
            return
        self.only_numbers = False
        self._flush_run()
        self.locations.flush(self.boxes)
        self._remember(token.text)
        name = meaning(token.text)
        self.pending = name
        if name:
            group.names.append(name)
            self.loose = token.kind == "word" and token.text in ORDINARY
        else:
            group.mixed = True
            self.order = self.order or order_in(token.text)
        if not name:
            self._between(token.text)

    def _remember(self, word: str) -> None:
        if word != A_NUMBER or self.recent[-1:] != [A_NUMBER]:
            self.recent = [*self.recent[1 - FAR :], word]

    def _sign(self, token: AnswerToken) -> None:
        group = self.groups[-1]
        if token.text in "<>":
            group.angled = True
        if self.pending and token.text in _ASSIGNS:
            self.loose = self.loose and token.text not in ":=>"
            return
        self.pending = ""
        if token.text not in "\"'`*":
            self._between(token.text)
        if token.text in ".;。":
            self.recent = []
        if token.text not in _SEPARATORS and token.text != "-" and not (token.text in ":=" and not self.run):
            self._flush_run()
            group.mixed = group.mixed or group.kind != "{"

    def _line(self) -> None:
        root = self.groups[0]
        self.line += 1
        self.pending = ""
        if not root.numbers and is_order(root.names):
            self.order = self.order or tuple(root.names)
        root.names.clear()
        root.numbers.clear()
        self._unlink()

    def _break(self) -> None:
        """Something that is no number ends a run of them."""
        self.pending = ""
        self._flush_run()
        self.locations.flush(self.boxes)

    # -- brackets and tags -------------------------------------------------------------------------------------------------------------

    def _open(self, kind: str, start: int) -> None:
        self.pending = ""
        order = next((order_in(word) for word in reversed(self.recent[-2:]) if order_in(word)), ())
        self.groups.append(_Group(kind, start, about(self.recent), order, corner(self.recent)))
        self.open_kinds[kind] = self.open_kinds.get(kind, 0) + 1
        self.only_numbers = False

    def _close_bracket(self, token: AnswerToken) -> None:
        kind = _CLOSES[token.text]
        if not self.open_kinds.get(kind):
            self._break()
            return
        while self.groups[-1].kind != kind:
            self._drop()
        self._close(token.end)

    def _drop(self) -> _Group:
        group = self.groups.pop()
        self.open_kinds[group.kind] -= 1
        return group

    def _close(self, end: int) -> None:
        """The innermost bracket or tag has come to its end."""
        self.pending = ""
        group = self.groups[-1]
        if group.mixed or group.named:
            self._flush_run()
        self.run.clear()
        self.locations.flush(self.boxes)
        self._drop()
        parent = self.groups[-1]
        if group.about in (About.POINTS, About.ELSE) and group.kind != "{" and not group.corner:
            self._not_a_box(group, end)
            parent.mixed = True
        elif group.named:
            self._named(group, end)
        elif group.names and not group.numbers:
            self._names(group)
        elif not group.mixed and len(group.numbers) == 2 and not group.pairs and not group.is_tag:
            self._pair((group.numbers[0], group.numbers[1]), group, end)
        else:
            if not group.mixed or group.is_tag:
                self._list(group, end)
            parent.mixed = True
        if group.kind == "{":
            self.recent = []

    def _tag(self, token: AnswerToken) -> None:
        name = bare(token.text.lstrip("/"))
        if self.locations.take(token, self.boxes):
            return
        self._break()
        self._unlink()
        self.only_numbers = False
        if token.kind == "point_tag" or (name in POINT_TAGS and token.text[0] != "/"):
            self._open("points", token.start)
            self.groups[-1].about = About.POINTS
        elif name in LABEL_TAGS:
            self.label_from = None if token.text[0] == "/" else token.end
        elif name in BOX_TAGS and token.text[0] != "/":
            if self.groups[-1].is_tag:
                self._close(token.start)
            self.recent = ["box"]
            self._open("box", token.start)
        elif name in BOX_TAGS or name in POINT_TAGS or name in ("boxend", "quadend", "pointend", "polyend"):
            kind = "points" if name in POINT_TAGS or name in ("pointend", "polyend") else "box"
            if self.open_kinds.get(kind):
                while self.groups[-1].kind != kind:
                    self._drop()
                self._close(token.end)
                self.recent = []
        elif meaning(token.text) and token.text[0] != "/":
            self._word(AnswerToken("key", token.text, token.start, token.end))

    # -- what comes of them ----------------------------------------------------------------------------------------------------------

    def _add(self, box: FoundBox | None) -> None:
        if box is not None:
            self.boxes.append(box)
            self._unlink()

    def _not_a_box(self, group: _Group, end: int) -> None:
        self.ignored.append((group.start, end))
        if group.about is About.POINTS and len(group.numbers) == 2:
            self.points.append(FoundPoint(*group.numbers, group.start, end))

    def _names(self, group: _Group) -> None:
        """A list of names alone tells the order of lists, or which corner comes next."""
        if is_order(group.names):
            self.order = self.order or tuple(group.names)
        elif group.names[:2] in (["x1", "y1"], ["x2", "y2"]) and len(group.names) == 2:
            self.recent = ["topleft" if group.names[0] == "x1" else "bottomright"]

    def _named(self, group: _Group, end: int) -> None:
        named = group.named
        box = named_box(named, group.start, end)
        if box is not None:
            self._add(box)
            self.groups[-1].mixed = True
        elif set(named) == {"x", "y"}:
            self._pair((named["x"], named["y"]), group, end)

    def _flush_named(self, group: _Group) -> None:
        if group.named:
            last = max(numeral.end for numeral in group.named.values())
            if self._is_whole(last):
                self._named(group, last)
        group.named = {}

    def _pair(self, pair: tuple[Numeral, Numeral], group: _Group, end: int) -> None:
        self.points.append(FoundPoint(*pair, group.start, end))
        parent = self.groups[-1]
        if parent.kind:
            parent.pairs.append(pair)
        if group.corner:
            self._corner(group.corner, pair, group.start, end)
        elif not parent.is_tag:
            self._linked(pair, group, end)

    def _corner(self, name: str, pair: tuple[Numeral, Numeral], start: int, end: int) -> None:
        self.recent = []
        self.corners_from = self.corners_from if self.corners else start
        self.corners[name] = pair
        other = self.corners.get(OPPOSITE[name])
        if other is not None:
            self._add(box_around([other, pair], self.corners_from, end))
            self.corners = {}

    def _linked(self, pair: tuple[Numeral, Numeral], group: _Group, end: int) -> None:
        if self.last_pair is not None:
            first, start = self.last_pair
            beside = self.manner.paired and group.kind == "(" and self.link in ("", ",")
            if self.link == "to" or beside:
                self._add(box_around([first, pair], start, end))
                return
        self.last_pair, self.link, self.link_depth = (pair, group.start), "", len(self.groups)

    def _between(self, what: str) -> None:
        """A word or sign after a pair, which may lead to another that makes a box with it."""
        if self.last_pair is None or len(self.groups) != self.link_depth:
            return
        if what in LINKS and self.link in ("", ","):
            self.link = "to"
        elif what == "," and not self.link:
            self.link = ","
        else:
            self._unlink()

    def _unlink(self) -> None:
        self.last_pair, self.link = None, ""

    def _list(self, group: _Group, end: int) -> None:
        numbers, pairs = group.numbers, group.pairs
        boxed = group.about is About.BOX
        if len(numbers) == 8 and not pairs:
            numbers, pairs = [], list(zip(numbers[::2], numbers[1::2], strict=True))
            boxed = boxed and (group.is_tag or is_quad(pairs))
        if len(numbers) == 4 and not pairs and not group.mixed:
            order = group.order or self.order
            weak = group.kind in ("(", "{") and not boxed and not group.angled
            self._add(box_of(numbers, order or self.manner.order, group.start, end, named=bool(order), weak=weak))
        elif not numbers and (len(pairs) == 4 and (boxed or is_quad(pairs)) or (len(pairs) == 2 and boxed)):
            self._add(box_around(pairs, group.start, end))
        elif not numbers and group.is_tag and boxed and pairs and len(pairs) % 2 == 0:
            for index in range(0, len(pairs), 2):
                self._add(box_around(pairs[index : index + 2], pairs[index][0].start, pairs[index + 1][1].end))

    def _flush_run(self, *, last: bool = False) -> None:
        """Numbers without brackets: a box if a word for it comes before, or an order of columns, or if there is nothing else."""
        run, self.run = self.run, []
        if not run or len(run) % 4 or (self.groups[-1].kind not in ("", "{") and not self.groups[-1].mixed):
            return
        alone = last and self.only_numbers and self.manner.bare_numbers
        if not (self.run_about is About.BOX or alone or (self.order and self.run_about is About.NOTHING)):
            return
        if not self._is_whole(run[-1][0].end):
            run = run[:-4]
        rows = [run[index : index + 4] for index in range(0, len(run), 4)]
        if len(rows) > 1 and any(row[0][1] != row[3][1] for row in rows):
            return
        for row in rows:
            numerals = [numeral for numeral, _ in row]
            start, end = numerals[0].start, numerals[-1].end
            self._add(
                box_of(numerals, self.order or self.manner.order, start, end, named=bool(self.order), weak=self.run_about is not About.BOX)
            )

    def _is_whole(self, end: int) -> bool:
        """Whether a number that ends there is one that was written to its end."""
        return end < self.length or (self.manner.finished and len(self.groups) == 1)

    def finish(self) -> Found:
        if self.label_from is not None:
            self.ignored.append((self.label_from, self.length))
        self._flush_run(last=True)
        self.locations.flush(self.boxes)
        while len(self.groups) > 1:
            group = self.groups[-1]
            if group.kind == "{":
                self._flush_named(group)
                self._drop()
            elif group.is_tag and not (group.numbers and not self._is_whole(group.numbers[-1].end)):
                self._close(self.length)
            else:
                self._drop()
        self._flush_named(self.groups[0])
        boxes = sorted(self.boxes, key=lambda box: (box.start, box.end))
        return Found(tuple(boxes), tuple(self.points), tuple(self.words), tuple(self.ignored))
