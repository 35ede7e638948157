"""Write and read answers that are points alone, one on each object, as Molmo 2 spells them.

``coords`` holds the number of the image, then for each object its running number, x and y. An answer of two objects::

    <points coords="1 1 105 205 2 300 400">the cups</points>

Nothing here raises, whatever the model wrote, and the time grows with the answer's length only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sam4mllm.prompts.dialects import Dialect

HIGHEST = 1000
"""Thousandths go from 0 to this in the published readers of such answers, and what lies beyond is no point."""

_COORDINATES = re.compile(r"coords\s*=\s*[\"']?(?P<numbers>[\d\s:;,.]*+)")
_POINT = re.compile(r"(?<![\d.])\d{1,4}\s+(?P<x>\d{3,4})\s+(?P<y>\d{3,4})(?![\d.])", re.ASCII)
"""A point's running number, then x and y. These have three digits or four, unlike the numbers of points and images."""


@dataclass(frozen=True)
class FoundMark:
    """A point in thousandths, and from where to where it stands in the answer."""

    x: int
    y: int
    start: int
    end: int


def pointed_answer(dialect: Dialect, phrase: str, points: Sequence[tuple[int, int]]) -> str:
    """One point on each object that a phrase means, or the no-target words if there are none."""
    spelled = [" ".join((str(number), *map(dialect.spell_number, point))) for number, point in enumerate(points, 1)]
    return dialect.spell_answer(phrase, " ".join(spelled)) if points else dialect.no_target


def find_marks(clear: str, finished: bool = True) -> Iterator[FoundMark]:
    """Yield the points of a folded answer, in order. ``finished``: the model ended the answer itself; otherwise a point at the very end of
    the text is left out, for its last number may be incomplete. The number of the image is ignored, because there is only one image.
    """
    for coordinates in _COORDINATES.finditer(clear):
        for point in _POINT.finditer(clear, *coordinates.span("numbers")):
            x, y = int(point["x"]), int(point["y"])
            if max(x, y) <= HIGHEST and (finished or point.end() < len(clear)):
                yield FoundMark(x, y, *point.span())
