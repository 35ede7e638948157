"""Make boxes and points of what the brackets, tags and names of an answer hold: lists, pairs, corners and named numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from sam4mllm.prompts.answer_words import A_NUMBER, FAR, LINKS, OPPOSITE, About, about, corner
from sam4mllm.prompts.coordinates import (
    FoundBox,
    FoundPoint,
    Numeral,
    box_around,
    box_of,
    is_order,
    is_quad,
    named_box,
    order_in,
)

XYXY = ("x1", "y1", "x2", "y2")
BRACKETS = ("(", "[", "{")
Pair = tuple[Numeral, Numeral]


@dataclass(frozen=True)
class Manner:
    """How the model's dialect writes boxes. ``order``: the order of a box's numbers. ``paired``: a box is two corners in round brackets.

    ``bare_numbers``: an answer of four numbers and nothing else may be a box. ``finished``: the model ended the answer itself, so the last
    number is complete.
    """

    order: tuple[str, ...] = XYXY
    paired: bool = False
    bare_numbers: bool = True
    finished: bool = True


@dataclass
class Group:
    """A bracket or a tag that is open, and what it holds so far.

    ``kind`` is the opening bracket, "box" or "points" for a tag, and empty for the answer as a whole. ``about`` is what its
    numbers are (a box, points, something else), by the words before it or by the tag; ``corner`` is the corner of a box that these words
    name, or empty.
    """

    kind: str
    start: int
    about: About = About.NOTHING
    order: tuple[str, ...] = ()
    """The order of the group's numbers, if a word before the group tells one; else empty."""
    corner: str = ""
    numbers: list[Numeral] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    named: dict[str, Numeral] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    """The names of coordinates in the group that have no number so far."""
    mixed: bool = False
    """Whether the group holds anything besides numbers, pairs of numbers and names of coordinates."""
    angled: bool = False
    """Whether the group holds angle brackets, which MiniGPT-v2 writes around each number."""

    @property
    def is_tag(self) -> bool:
        return bool(self.kind) and self.kind not in BRACKETS


class Gathering:
    """Collects the boxes, points and ignored stretches of an answer, and keeps the last words, which say what comes next."""

    def __init__(self, manner: Manner) -> None:
        self.manner = manner
        self.boxes: list[FoundBox] = []
        self.points: list[FoundPoint] = []
        self.ignored: list[tuple[int, int]] = []
        self.recent: list[str] = []
        self.order: tuple[str, ...] = ()
        self._unordered: dict[int, list[Numeral]] = {}
        """The numbers of boxes whose order no word beside them tells, by the box's index in ``boxes``."""
        self._among_points = False
        self._last_pair: tuple[Pair, int] | None = None
        self._link = ""
        self._link_depth = 0
        self._corners: dict[str, Pair] = {}
        self._corners_from = 0

    # -- words and signs ---------------------------------------------------------------------------------------------------------------

    def remember(self, word: str) -> None:
        if word != A_NUMBER or self.recent[-1:] != [A_NUMBER]:
            self.recent = [*self.recent[1 - FAR :], word]

    def learn_order(self, names: tuple[str, ...]) -> None:
        """Take ``names`` as the order of numbers for the whole answer, unless an order was told before."""
        self.order = self.order or names

    def open(self, kind: str, start: int) -> Group:
        order = next((order_in(word) for word in reversed(self.recent[-2:]) if order_in(word)), ())
        return Group(kind, start, about(self.recent), order, corner(self.recent))

    def between(self, what: str, depth: int) -> None:
        """Take a word or sign after a pair of numbers, ``depth`` brackets deep; ``what`` is empty for a number. A comma or one of LINKS may
        link the pair to a following one, with which it makes a box; anything else breaks the link. At another depth than the pair's nothing
        happens.
        """
        if self._last_pair is None or depth != self._link_depth:
            return
        if what in LINKS and self._link in ("", ","):
            self._link = "to"
        elif what == "," and not self._link:
            self._link = ","
        else:
            self.unlink()

    def unlink(self) -> None:
        self._last_pair, self._link = None, ""

    # -- boxes and points --------------------------------------------------------------------------------------------------------------

    def add(self, box: FoundBox | None) -> None:
        if box is not None:
            self.boxes.append(box)
            self._among_points = False
            self.unlink()

    def ordered(self) -> list[FoundBox]:
        """Return all boxes. If an order of numbers is told anywhere in the answer, it holds for the boxes beside which no other is told."""
        boxes = list(self.boxes)
        for index, numbers in self._unordered.items() if self.order else ():
            box = boxes[index]
            boxes[index] = box_of(numbers, self.order, box.start, box.end, named=True, weak=box.weak) or box
        return boxes

    def close(self, group: Group, parent: Group, end: int, depth: int) -> None:
        """Read a group that has ended at ``end`` as a box, a pair of numbers, an order of numbers or a stretch to ignore, if it is one.

        ``parent`` is the innermost group that is still open, and ``depth`` the number of groups that are still open.
        """
        if group.about in (About.POINTS, About.ELSE) and group.kind != "{" and not group.corner:
            self._leave_out(group, end)
            parent.mixed = True
        elif group.named:
            self.close_named(group, parent, end, depth)
        elif group.names and not group.numbers and not group.mixed:
            self._close_names(group)
        elif not group.mixed and len(group.numbers) == 2 and not group.pairs and not group.is_tag:
            self._pair((group.numbers[0], group.numbers[1]), group, parent, end, depth)
        else:
            if not group.mixed or group.is_tag:
                self._close_list(group, end)
            parent.mixed = True
        if group.kind == "{":
            self.recent = []

    def close_named(self, group: Group, parent: Group, end: int, depth: int) -> None:
        """Read the named numbers of a group as a box, or as a point if they are x and y alone. Other numbers are dropped."""
        named, group.named = group.named, {}
        box = named_box(named, group.start, end)
        if box is not None:
            self.add(box)
            parent.mixed = True
        elif set(named) == {"x", "y"}:
            self._pair((named["x"], named["y"]), group, parent, end, depth)

    def _leave_out(self, group: Group, end: int) -> None:
        self.ignored.append((group.start, end))
        self.remember(A_NUMBER)
        if group.about is About.POINTS and len(group.numbers) == 2:
            x, y = group.numbers
            self.points.append(FoundPoint(x, y, group.start, end))
            self._among_points = True

    def _close_names(self, group: Group) -> None:
        """Read a list of names of coordinates alone: it tells the order of the numbers in other lists, or which corner comes next."""
        if is_order(group.names):
            self.learn_order(tuple(group.names))
        elif group.names in (["x1", "y1"], ["x2", "y2"]):
            self.recent = ["topleft" if group.names[0] == "x1" else "bottomright"]

    def _pair(self, pair: Pair, group: Group, parent: Group, end: int, depth: int) -> None:
        self.points.append(FoundPoint(*pair, group.start, end))
        if parent.kind:
            parent.pairs.append(pair)
        if group.corner:
            self._corner(group.corner, pair, group.start, end)
        elif not parent.is_tag and not self._among_points:
            self._link_pair(pair, group, end, depth)

    def _corner(self, name: str, pair: Pair, start: int, end: int) -> None:
        self.recent = []
        self._corners_from = self._corners_from if self._corners else start
        self._corners[name] = pair
        other = self._corners.get(OPPOSITE[name])
        if other is not None:
            self.add(box_around([other, pair], self._corners_from, end))
            self._corners = {}

    def _link_pair(self, pair: Pair, group: Group, end: int, depth: int) -> None:
        if self._last_pair is not None:
            first, start = self._last_pair
            beside = self.manner.paired and group.kind == "(" and self._link in ("", ",")
            if self._link == "to" or beside:
                self.add(box_around([first, pair], start, end))
                return
        self._last_pair, self._link, self._link_depth = (pair, group.start), "", depth

    def _close_list(self, group: Group, end: int) -> None:
        numbers, pairs = group.numbers, group.pairs
        boxed = group.about is About.BOX
        if len(numbers) == 8 and not pairs:
            numbers, pairs = [], list(zip(numbers[::2], numbers[1::2], strict=True))
            boxed = boxed and (group.is_tag or is_quad(pairs))
        if len(numbers) == 4 and not pairs and not group.mixed:
            weak = group.kind in ("(", "{") and not boxed and not group.angled
            box = box_of(numbers, group.order or self.manner.order, group.start, end, named=bool(group.order), weak=weak)
            self.add(box)
            if box is not None and not group.order:
                self._unordered[len(self.boxes) - 1] = numbers
        elif not numbers and (is_quad(pairs) or (boxed and len(pairs) in (2, 4))):
            self.add(box_around(pairs, group.start, end))
        elif not numbers and boxed and group.is_tag and len(pairs) % 2 == 0:
            for index in range(0, len(pairs), 2):
                self.add(box_around(pairs[index : index + 2], pairs[index][0].start, pairs[index + 1][1].end))
