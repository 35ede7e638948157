"""Which things a scene shows and where: everything about a scene but its pixels, in fractions of the image's long side."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.demo.glyphs import Glyph, colour_of, glyphs_of, load_glyphs, rotate_hue, thumbnail

COUNT_RANGE = (3, 7)
SIZE_RANGE = (0.10, 0.45)
"""Long side of a thing's box, as a share of the image's long side."""
ROTATION = 30.0
MAX_OVERLAP = 0.30
"""The largest intersection of the boxes of two things, as a share of the area of the smaller box."""
CLEARANCE = 0.20
"""The largest intersection of a box of one of a pair (:mod:`sam4mllm.demo.pairs`) with the box of a thing that is not of the pair, as a
share of the area of the smaller box."""
SIDE_RANGE = (320, 1024)
MAX_ASPECT = 2.0
RECOLOUR_SHARE = 0.4
NAMELESS_SHARE = 0.3
PLACING_TRIES = 40


@dataclass(frozen=True, eq=False)
class Thing:
    """One placed glyph.

    ``hue`` (degrees) and ``brightness`` say how its colours are changed, and ``colour`` is the name of the colour that it then has, or
    empty. ``rotation`` is in degrees. ``scale`` is the side of the glyph's cell, ``centre`` (x, y) is the centre of that cell, and ``box``
    (x1, y1, x2, y2) is the box around the glyph's opaque pixels; all three are in units of the image's long side.
    """

    glyph: Glyph
    hue: float
    brightness: float
    colour: str
    rotation: float
    scale: float
    centre: tuple[float, float]
    box: tuple[float, float, float, float]

    @property
    def noun(self) -> str:
        return self.glyph.noun

    @property
    def size(self) -> float:
        """The side of the square with the box's area, in units of the image's long side."""
        return float(np.sqrt((self.box[2] - self.box[0]) * (self.box[3] - self.box[1])))

    @property
    def middle(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@functools.cache
def _outline(index: int) -> NDArray[np.float64]:
    """Return the corners (N, 2), x, y, of the convex hull of a glyph's opaque pixels, relative to the cell's centre, in cell sides."""
    alpha = load_glyphs()[index].rgba[..., 3]
    points = cv2.findNonZero((alpha > 127).astype(np.uint8))
    hull = cv2.convexHull(points).reshape(-1, 2).astype(np.float64)
    return np.asarray((hull + 0.5) / alpha.shape[0] - 0.5)


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Draw the (height, width) of an image in pixels: the sides within SIDE_RANGE, the aspect within 1:2 to 2:1."""
    long = int(rng.integers(SIDE_RANGE[0], SIDE_RANGE[1] + 1))
    short = max(SIDE_RANGE[0], round(long / np.exp(rng.uniform(0, np.log(MAX_ASPECT)))))
    return (short, long) if rng.random() < 0.5 else (long, short)


def choose_glyphs(rng: np.random.Generator, nouns: Sequence[str] | None, repeat: bool) -> list[Glyph]:
    """Draw 3 to 7 glyphs. Usually, and always with ``repeat``, one glyph appears more than once.

    ``nouns`` are the nouns that the phrases will ask for (novel ones, say; None: all known ones). The repeated glyph has one of these; the
    other things may also be known or nameless ones.
    """
    known = glyphs_of("known")
    asked = known if nouns is None else tuple(glyph for glyph in load_glyphs() if glyph.noun and glyph.noun in nouns)
    count = int(rng.integers(COUNT_RANGE[0], COUNT_RANGE[1] + 1))
    group = int(rng.choice([2, 3, 4], p=[0.53, 0.32, 0.15])) if repeat or rng.random() < 0.7 else 1
    chosen = [asked[rng.integers(len(asked))]] * min(group, count)
    while len(chosen) < count:
        pool = glyphs_of("nameless") if rng.random() < NAMELESS_SHARE else known if rng.random() < 0.5 else asked
        glyph = pool[rng.integers(len(pool))]
        if all(glyph.index != other.index for other in chosen):
            chosen.append(glyph)
    return [chosen[index] for index in rng.permutation(count)]


def crowd_glyphs(rng: np.random.Generator, count: int) -> list[Glyph]:
    """Draw ``count`` glyphs that training may show, known and nameless ones; a glyph may come more than once."""
    pools = (glyphs_of("known"), glyphs_of("nameless"))
    picks = [pools[int(rng.random() < NAMELESS_SHARE)] for _ in range(count)]
    return [pool[rng.integers(len(pool))] for pool in picks]


def place(
    rng: np.random.Generator,
    glyphs: Sequence[Glyph],
    extent: tuple[float, float],
    sizes: tuple[float, float] = SIZE_RANGE,
    around: Sequence[Thing] = (),
) -> list[Thing]:
    """Give each glyph a colour, a rotation, a size and a free place. Glyphs for which no place is found are left out.

    ``extent`` is the image's (height, width), of which the longer is 1. ``sizes`` is the range of a thing's long side. ``around`` are
    things that are there already; new things may overlap them by no more than CLEARANCE.
    """
    things: list[Thing] = []
    for glyph in glyphs:
        hue, brightness, colour = _tint(rng, glyph)
        rotation = float(rng.uniform(-ROTATION, ROTATION))
        bounds = bounds_of(glyph.index, rotation)
        for _ in range(PLACING_TRIES):
            thing = Thing(glyph, hue, brightness, colour, rotation, *_try_place(rng, bounds, extent, sizes))
            crowded = any(overlap(thing.box, other.box) > MAX_OVERLAP for other in things)
            if not crowded and all(overlap(thing.box, other.box) <= CLEARANCE for other in around):
                things.append(thing)
                break
    return things


def _tint(rng: np.random.Generator, glyph: Glyph) -> tuple[float, float, str]:
    """Draw a rotation of hue (degrees) and a factor of brightness; return them and the name of the colour that the glyph then has, or an
    empty text."""
    recoloured = rng.random() < RECOLOUR_SHARE
    hue = float(rng.uniform(-180, 180) if recoloured else rng.uniform(-12, 12))
    brightness = float(rng.uniform(0.75, 1.2))
    return hue, brightness, colour_of(rotate_hue(thumbnail(glyph.index), hue, brightness))


def dress(
    rng: np.random.Generator, glyph: Glyph, rotation: float, scale: float, centre: tuple[float, float], middle: tuple[float, float]
) -> Thing:
    """Return a tinted thing of a given rotation and scale whose box is centred at ``centre``. ``middle`` is the middle of the rotated
    glyph's bounds (:func:`bounds_of`), in cell sides.
    """
    hue, brightness, colour = _tint(rng, glyph)
    x, y = centre[0] - middle[0] * scale, centre[1] - middle[1] * scale
    x1, y1, x2, y2 = bounds_of(glyph.index, rotation)
    return Thing(glyph, hue, brightness, colour, rotation, scale, (x, y), (x + x1 * scale, y + y1 * scale, x + x2 * scale, y + y2 * scale))


def bounds_of(index: int, rotation: float) -> tuple[float, float, float, float]:
    """Return the box (x1, y1, x2, y2) of a glyph's opaque pixels after a rotation by ``rotation`` degrees about the centre of its cell.

    The box is relative to that centre, in cell sides.
    """
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    outline = _outline(index) @ turn.T
    (x1, y1), (x2, y2) = outline.min(0).tolist(), outline.max(0).tolist()
    return x1, y1, x2, y2


def _try_place(
    rng: np.random.Generator, bounds: tuple[float, float, float, float], extent: tuple[float, float], sizes: tuple[float, float]
) -> tuple[float, tuple[float, float], tuple[float, float, float, float]]:
    """A random scale, centre and the box that they give, inside the image."""
    x1, y1, x2, y2 = bounds
    height, width = extent
    long, right, down = rng.random(3).tolist()
    scale = min((sizes[0] + long * (sizes[1] - sizes[0])) / max(x2 - x1, y2 - y1), 0.98 * width / (x2 - x1), 0.98 * height / (y2 - y1))
    x = -x1 * scale + right * (width - (x2 - x1) * scale)
    y = -y1 * scale + down * (height - (y2 - y1) * scale)
    return scale, (x, y), (x + x1 * scale, y + y1 * scale, x + x2 * scale, y + y2 * scale)


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller
