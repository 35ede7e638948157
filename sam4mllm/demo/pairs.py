"""Pairs of two things, or of a part and its whole, whose boxes nearly coincide: a box cannot tell the two apart, points can.

crossed       front         ring          part
\\     //      .-----.       .-----.       .-----.
 \\   //       |/////|--.    |#####|       |.....|     each pair's two boxes overlap
  \\ //        |/////|..|    |#   #|<- the |.....|     by an IoU of at least 0.6
   X          |/////|..|    |#...#|  other|#####|<- a region of one colour
 // \\         '-----'--'    |#####|  seen '-----'
//   \\           '--'        '-----'  through
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.demo.glyphs import Glyph, colour_of, glyphs_of, load_glyphs, rotate_hue
from sam4mllm.demo.layout import Thing, bounds_of, dress

PAIR_KINDS = ("crossed", "front", "ring", "part")
PAIR_SIZES = (0.25, 0.65)
"""Long side of the pair's box, as a share of the image's long side."""
ELONGATED, ELONGATED_KNOWN = 2.0, 1.8
"""Least ratio of a glyph's principal axes, the longer to the shorter, with which it may be in a crossed pair. A glyph without a noun needs
`ELONGATED`. For one with a noun `ELONGATED_KNOWN` is enough, because few of these are long.
"""
CROSSING, CROSSING_JITTER = 45.0, 12.0
FRONT_FIT = (0.90, 1.15)
FRONT_SHIFT = 0.06
RIM = 0.3
"""A hollowed glyph keeps its pixels whose distance from the outline is at most this share of the greatest such distance."""
PART_SHARES = (0.2, 0.8)
PART_IOU = 0.6
CLUSTERS = (2, 3)


@dataclass(frozen=True, eq=False)
class Part:
    """A region of one colour of a glyph: ``rgba`` (S, S, 4) uint8 is the glyph with all else transparent."""

    index: int
    rgba: NDArray[np.uint8]


def draw_pair(
    rng: np.random.Generator, kind: str, pool: Sequence[Glyph], extent: tuple[float, float], partners: Sequence[Glyph] | None = None
) -> list[Thing]:
    """Draw the two things of a pair of ``kind``, one of PAIR_KINDS, in the order in which they are painted.

    Of the kind ``part`` the first thing is the whole; the second is the part, painted over it and without a noun. For the other kinds both
    glyphs are from ``pool``, or one of them from ``partners`` if these are given. ``extent`` is the image's (height, width), of which the
    longer is 1.
    """
    if kind == "part":
        return _part(rng, pool, extent)
    makers: dict[str, Callable[..., list[Thing]]] = {"crossed": _crossed, "front": _front, "ring": _ring}
    return makers[kind](rng, _two(rng, pool, partners), extent)


def suits(kind: str, glyph: Glyph) -> bool:
    """Whether a glyph can be in a pair of a kind."""
    if kind == "crossed":
        return axes(glyph.index)[0] >= (ELONGATED_KNOWN if glyph.noun else ELONGATED)
    return kind != "part" or bool(parts_of(glyph.index))


@functools.cache
def axes(index: int) -> tuple[float, float]:
    """The ratio of a glyph's principal axes and the angle of the longer in degrees, x to the right and y down."""
    rows, columns = np.nonzero(load_glyphs()[index].rgba[..., 3] > 127)
    values, vectors = np.linalg.eigh(np.cov(np.stack([columns, rows])))
    x, y = vectors[:, 1].tolist()
    return float(np.sqrt(values[1] / max(values[0], 1e-9))), float(np.rad2deg(np.arctan2(y, x)))


@functools.cache
def parts_of(index: int) -> tuple[Part, ...]:
    """Return those regions of one colour (by k-means) of a glyph that can make a pair with the whole glyph.

    Such a region has a share of the glyph's area within PART_SHARES, and a box whose IoU with the glyph's box is at least PART_IOU.
    """
    rgba = load_glyphs()[index].rgba
    opaque = rgba[..., 3] > 127
    lab = cv2.cvtColor(rgba[..., :3], cv2.COLOR_RGB2LAB)[opaque].astype(np.float32)
    found = []
    for clusters in CLUSTERS:
        criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 0.5)
        cv2.setRNGSeed(index * 7 + clusters)
        _, labels, _ = cv2.kmeans(lab, clusters, None, criteria, 3, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
        for cluster in range(clusters):
            raw = np.zeros(opaque.shape, np.uint8)
            raw[opaque] = labels[:, 0] == cluster
            region = (cv2.morphologyEx(cv2.medianBlur(raw, 5), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0) & opaque
            if PART_SHARES[0] <= region.sum() / opaque.sum() <= PART_SHARES[1] and _box_iou(region, opaque) >= PART_IOU:
                part = rgba.copy()
                part[..., 3] = np.where(region, part[..., 3], 0)
                found.append(Part(index, part))
    return tuple(found)


def hollow(glyph: Glyph) -> Glyph:
    """Return the glyph with its inside made transparent, so that only a rim is left."""
    opaque = (glyph.rgba[..., 3] > 127).astype(np.uint8)
    depth = cv2.distanceTransform(opaque, cv2.DIST_L2, 5)
    rgba = glyph.rgba.copy()
    rgba[..., 3] = np.where(depth > RIM * depth.max(), 0, rgba[..., 3])
    return replace(glyph, rgba=rgba)


def _crossed(rng: np.random.Generator, two: tuple[Glyph, Glyph], extent: tuple[float, float]) -> list[Thing]:
    first, second = two
    side, centre = _place(rng, extent)
    turn = 1 if rng.random() < 0.5 else -1
    things = []
    for glyph, sign in ((first, turn), (second, -turn)):
        heading = sign * CROSSING + rng.uniform(-CROSSING_JITTER, CROSSING_JITTER) + 180 * int(rng.integers(2))
        rotation = heading - axes(glyph.index)[1]
        x1, y1, x2, y2 = bounds_of(glyph.index, rotation)
        scale = side * rng.uniform(0.92, 1.08) / max(x2 - x1, y2 - y1)
        things.append(dress(rng, glyph, rotation, scale, _shifted(rng, centre, side), _middle((x1, y1, x2, y2))))
    return things


def _front(rng: np.random.Generator, two: tuple[Glyph, Glyph], extent: tuple[float, float]) -> list[Thing]:
    back, front = two
    side, centre = _place(rng, extent)
    rotations = rng.uniform(-30, 30, 2)
    x1, y1, x2, y2 = bounds_of(back.index, rotations[0])
    scale = side / max(x2 - x1, y2 - y1)
    width, height = (x2 - x1) * scale, (y2 - y1) * scale
    behind = dress(rng, back, float(rotations[0]), scale, centre, _middle((x1, y1, x2, y2)))
    a1, b1, a2, b2 = bounds_of(front.index, rotations[1])
    fit = min(width / (a2 - a1), height / (b2 - b1)) * rng.uniform(*FRONT_FIT)
    before = dress(rng, front, float(rotations[1]), fit, _shifted(rng, centre, side, FRONT_SHIFT), _middle((a1, b1, a2, b2)))
    return [behind, before]


def _ring(rng: np.random.Generator, two: tuple[Glyph, Glyph], extent: tuple[float, float]) -> list[Thing]:
    things = _front(rng, two, extent)
    return [things[0], replace(things[1], glyph=hollow(things[1].glyph))]


def _part(rng: np.random.Generator, pool: Sequence[Glyph], extent: tuple[float, float]) -> list[Thing]:
    glyph = pool[int(rng.integers(len(pool)))]
    parts = parts_of(glyph.index)
    part = parts[rng.integers(len(parts))]
    side, centre = _place(rng, extent)
    rotation = float(rng.uniform(-30, 30))
    bounds = bounds_of(glyph.index, rotation)
    scale = side / max(bounds[2] - bounds[0], bounds[3] - bounds[1])
    whole = dress(rng, glyph, rotation, scale, centre, _middle(bounds))
    colour = colour_of(rotate_hue(part.rgba, whole.hue, whole.brightness))
    return [whole, replace(whole, glyph=replace(glyph, rgba=part.rgba, noun=""), colour=colour)]


def _two(rng: np.random.Generator, pool: Sequence[Glyph], partners: Sequence[Glyph] | None) -> tuple[Glyph, Glyph]:
    if partners is None:
        first, second = rng.choice(len(pool), 2, replace=False)
        return pool[first], pool[second]
    one = pool[int(rng.integers(len(pool)))]
    others = [glyph for glyph in partners if glyph.index != one.index]
    other = others[int(rng.integers(len(others)))]
    return (one, other) if rng.random() < 0.5 else (other, one)


def _place(rng: np.random.Generator, extent: tuple[float, float]) -> tuple[float, tuple[float, float]]:
    """Draw the side and the centre (x, y) of a pair's box, inside the image, in units of its long side."""
    height, width = extent
    side = float(rng.uniform(PAIR_SIZES[0], min(PAIR_SIZES[1], 0.9 * min(extent))))
    half = 0.54 * side
    return side, (float(rng.uniform(half, width - half)), float(rng.uniform(half, height - half)))


def _shifted(rng: np.random.Generator, centre: tuple[float, float], side: float, share: float = 0.04) -> tuple[float, float]:
    x, y = (centre + rng.uniform(-share, share, 2) * side).tolist()
    return x, y


def _middle(bounds: tuple[float, float, float, float]) -> tuple[float, float]:
    return (bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2


def _box_iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """IoU of the boxes of two masks (H, W)."""
    boxes = []
    for mask in (one, other):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    (a1, b1, a2, b2), (c1, d1, c2, d2) = boxes
    common = max(0, min(a2, c2) - max(a1, c1)) * max(0, min(b2, d2) - max(b1, d1))
    return float(common / ((a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - common))


def pool_for(kind: str, nouns: Sequence[str] | None) -> tuple[Glyph, ...]:
    """Return the glyphs that suit a pair of ``kind``: of those that ``nouns`` name, or, if None, of all that training may show (known and
    nameless ones).
    """
    return _pool(kind, None if nouns is None else tuple(nouns))


@functools.cache
def _pool(kind: str, nouns: tuple[str, ...] | None) -> tuple[Glyph, ...]:
    glyphs = (
        (*glyphs_of("known"), *glyphs_of("nameless")) if nouns is None else tuple(g for g in load_glyphs() if g.noun and g.noun in nouns)
    )
    return tuple(glyph for glyph in glyphs if suits(kind, glyph))
