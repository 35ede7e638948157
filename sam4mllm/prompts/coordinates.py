"""Coordinates as answers name them: which word means which edge of a box, and which four of them make one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Measure = Literal["", "%", "px", "hundredths", "milli", "1024ths"]
"""The unit in which an answer itself says that its numbers are: empty if it says none; "%" or "px"; "hundredths" for MiniGPT-v2's numbers
in angle brackets; "milli" or "1024ths" for the steps of a family's location tokens."""
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Numeral:
    """A number in an answer: its ``text`` as written, its ``value``, where it stands in the answer, and its unit."""

    text: str
    value: float
    start: int
    end: int
    measure: Measure = ""


@dataclass(frozen=True)
class FoundBox:
    """A box in an answer, which stands in the text from ``start`` to ``end``.

    ``corners`` are x1, y1, x2, y2 in the unit ``measure``. ``spelled`` are the same numbers as written; None if they had to be computed,
    say from a width and a height. ``named``: the answer itself says which number is which. ``weak``: only the fact that there are four
    numbers suggests that this is a box.
    """

    corners: Corners
    spelled: tuple[str, str, str, str] | None
    measure: Measure
    start: int
    end: int
    named: bool = False
    weak: bool = False

    @property
    def as_shares(self) -> bool:
        """Whether the numbers look like shares of the image's sides: none is much above 1, and at least one has a decimal point (or they
        were computed).
        """
        fraction = self.spelled is None or any("." in text for text in self.spelled)
        return max(map(abs, self.corners)) <= 1.03 and (fraction or self.corners == (0, 0, 1, 1))


@dataclass(frozen=True)
class FoundPoint:
    """A point in an answer, which stands in the text from ``start`` to ``end``."""

    x: Numeral
    y: Numeral
    start: int
    end: int


_NAMES = {
    "x1": "x1 xmin minx left x1min xtl xleft leftx startx xstart links",
    "y1": "y1 ymin miny top y1min ytl ytop topy starty ystart oben",
    "x2": "x2 xmax maxx right x2max xbr xright rightx endx xend rechts",
    "y2": "y2 ymax maxy bottom y2max ybr ybottom bottomy endy yend unten",
    "x0": "x0",
    "y0": "y0",
    "x": "x",
    "y": "y",
    "cx": "cx xc centerx centrex xcenter xcentre",
    "cy": "cy yc centery centrey ycenter ycentre",
    "w": "w width",
    "h": "h height",
}
_MEANING = {word: name for name, words in _NAMES.items() for word in words.split()}
ORDINARY = frozenset(("left", "top", "right", "bottom", "width", "height", "w", "h", "x", "y", "links", "oben", "rechts", "unten"))
"""Names that are words or letters of prose, too."""
EDGES = frozenset(("left", "top", "right", "bottom", "links", "oben", "rechts", "unten"))
"""Names of coordinates that also say in prose where something is. A line of prose with four of them does not define an order."""

_SCHEMES: tuple[tuple[str, str, str, str], ...] = (
    ("x0", "y0", "x1", "y1"),
    ("x1", "y1", "x2", "y2"),
    ("x", "y", "x2", "y2"),
    ("x1", "y1", "w", "h"),
    ("x", "y", "w", "h"),
    ("cx", "cy", "w", "h"),
)
_WHOLE_ORDERS = {
    "xyxy": ("x1", "y1", "x2", "y2"),
    "yxyx": ("y1", "x1", "y2", "x2"),
    "xywh": ("x", "y", "w", "h"),
    "ltwh": ("x", "y", "w", "h"),
    "tlwh": ("x", "y", "w", "h"),
    "cxcywh": ("cx", "cy", "w", "h"),
    "x1y1x2y2": ("x1", "y1", "x2", "y2"),
    "yminxminymaxxmax": ("y1", "x1", "y2", "x2"),
    "xminyminxmaxymax": ("x1", "y1", "x2", "y2"),
}


def bare(word: str) -> str:
    """A word without what joins its parts: ``x_min`` and ``x-min`` are one."""
    return word.replace("_", "").replace("-", "").replace(" ", "")


def meaning(word: str) -> str:
    """Return the coordinate that a word names, as a key of ``_NAMES``; an empty text if it names none."""
    return _MEANING.get(bare(word), "")


def order_in(word: str) -> tuple[str, ...]:
    """Return the order of a box's numbers that a word tells, as ``bbox_xywh`` does; an empty tuple if it tells none."""
    plain = bare(word)
    for name in sorted(_WHOLE_ORDERS, key=len, reverse=True):
        if plain.endswith(name) or plain.startswith(name):
            return _WHOLE_ORDERS[name]
    return ()


def is_order(names: Sequence[str]) -> bool:
    """Whether four names, in whatever order, make a box."""
    return len(names) == 4 and any(set(names) == set(scheme) for scheme in _SCHEMES)


def named_box(named: Mapping[str, Numeral], start: int, end: int) -> FoundBox | None:
    """Return the box that named numbers make; None if names are missing, units differ, or a value is not finite."""
    for scheme in _SCHEMES:
        if all(name in named for name in scheme):
            return box_of([named[name] for name in scheme], scheme, start, end, named=True)
    return None


def box_of(
    numerals: Sequence[Numeral], order: Sequence[str], start: int, end: int, *, named: bool = False, weak: bool = False
) -> FoundBox | None:
    """Make a box of four numbers whose meanings ``order`` gives. None if their units differ, or a value is not finite."""
    at = dict(zip(order, numerals, strict=True))
    measures = {numeral.measure for numeral in numerals}
    scheme = next(scheme for scheme in _SCHEMES if set(scheme) == set(at))
    a, b, c, d = (at[name] for name in scheme)
    if len(measures) > 1 or not all(math.isfinite(numeral.value) for numeral in numerals):
        return None
    spelled: tuple[str, str, str, str] | None = None
    if scheme[2] != "w":
        corners, spelled = (a.value, b.value, c.value, d.value), (a.text, b.text, c.text, d.text)
    elif scheme[0] == "cx":
        corners = (a.value - c.value / 2, b.value - d.value / 2, a.value + c.value / 2, b.value + d.value / 2)
    else:
        corners = (a.value, b.value, a.value + c.value, b.value + d.value)
    return FoundBox(corners, spelled, measures.pop(), start, end, named, weak)


def box_around(points: Sequence[tuple[Numeral, Numeral]], start: int, end: int) -> FoundBox | None:
    """Return the smallest box around two corners or more. None if their units differ, or a value is not finite."""
    measures = {numeral.measure for point in points for numeral in point}
    xs, ys = zip(*points, strict=True)
    corners = [pick(side, key=lambda numeral: numeral.value) for pick in (min, max) for side in (xs, ys)]
    if len(measures) > 1 or not all(math.isfinite(numeral.value) for numeral in corners):
        return None
    x1, y1, x2, y2 = corners
    return FoundBox((x1.value, y1.value, x2.value, y2.value), (x1.text, y1.text, x2.text, y2.text), measures.pop(), start, end, named=True)


def is_quad(points: Sequence[tuple[Numeral, Numeral]]) -> bool:
    """Whether four points are about the corners of an upright rectangle, each within a quarter of its sides."""
    box = box_around(points, 0, 0) if len(points) == 4 else None
    if box is None:
        return False
    x1, y1, x2, y2 = box.corners
    nearest = set()
    for x, y in points:
        right, low = x.value - x1 > x2 - x.value, y.value - y1 > y2 - y.value
        if abs(x.value - (x2 if right else x1)) > (x2 - x1) / 4 or abs(y.value - (y2 if low else y1)) > (y2 - y1) / 4:
            return False
        nearest.add((right, low))
    return len(nearest) == 4
