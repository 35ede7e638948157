"""Where to ask and which answers to keep: the point pattern over a box, other places that follow a mask or earlier answers, the thresholds.

All of it is functions of boxes, masks and answers; which of them are used in which order is the pipeline's business.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.masks import lies_on
from sam4mllm.options import PATTERN_SIZE, Thresholds

MARGIN = 0.08
"""Smallest distance of a point from the sides of its box, as a share of its width and height; the published pattern spans 8 to 93 %."""
MIN_GAP = 1.0
"""Least distance of two points, in pixels."""
CANDIDATES = 400
GRID = 40
"""Places along each side of a box from which points are chosen that depend on a mask or on earlier answers. All 1,600 cost a few
milliseconds, and the nearest points of the published pattern are four places apart."""
EDGE_WEIGHT = 2.0
"""How many pixels of distance to another point count as much as one pixel of distance to the mask's outline. The first point is the
deepest. After it, the middle of a part of the mask that is D pixels wide is worth as much as a place D pixels away from the nearest point,
so neither outlines nor neighbours decide alone (after PinPoint, arXiv 2605.26689: away from boundaries and spread out)."""
SURE_WEIGHT = 0.05
"""Least worth of a place, added to its doubt (0 to 1): where no place is in doubt, points are still chosen, spread over the box."""
NEARNESS = 3
"""Power of the inverse distance by which answers count between points; above the plane's two dimensions, so that near ones outweigh all far
ones together (Shepard 1968)."""
BESIDE = 0.02
"""Distance from a disputed point at which the model is asked again, as a share of the box's sides. The same point would give the same
answer, and the pattern's next point is five times farther away."""
BESIDE_STEPS = ((1, 0), (-1, 0), (0, 1), (0, -1))
LEAST_MASS = 0.5
"""P(yes) + P(no) from which a point counts. Below a half the model is more likely to say something else than either, and the ratio of two
small probabilities is no answer."""
UNSAID = 0.5
"""P(inside) that is given to a point about which the model said neither yes nor no; :func:`select` never keeps it."""
ALIKE = 0.9
"""Share of points with the same verdict from which the verdicts say nothing about the object. In a tight box the object touches all sides,
so the pattern falls on both sides of its outline. The exceptions are an object that fills nearly all of the box, about which the points say
no more than the box, and a line that covers a tenth of it. Of 30 points three may differ, of 15 one."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Points (K, 2) float32 that were asked about and P(inside) of each, (K,) float64."""

    points_px: NDArray[np.float32]
    inside: NDArray[np.float64]

    def and_then(self, later: Answers) -> Answers:
        """Return these points and answers, followed by those of a later round."""
        return Answers(np.concatenate([self.points_px, later.points_px]), np.concatenate([self.inside, later.inside]))


def heed(inside: NDArray[np.float64], mass: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return P(inside) (K,), set to UNSAID where ``mass`` (K,), that is P(yes) + P(no), says that the model would answer neither."""
    return np.where(mass >= LEAST_MASS, inside, UNSAID)


def select(inside: NDArray[np.float64], thresholds: Thresholds) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which of (K,) answers to keep, (K,) bool, and the labels (kept,) 1 for inside, 0 for outside."""
    outside = 1.0 - inside > thresholds.negative
    kept = (outside | (inside > thresholds.positive)) & (inside != UNSAID)
    return kept, (~outside[kept]).astype(np.int64)


def are_alike(inside: NDArray[np.float64], labels: NDArray[np.int64]) -> bool:
    """Whether nearly all points are said to lie on the same side of the outline, or nearly all of those that are to become prompt points.

    ``inside`` (K,) is P(inside); ``labels`` (K,) are 1 and 0 for those that are to become prompt points, -1 for others. Nearly all is a
    share of ALIKE or more. Points with P(inside) UNSAID are not counted, and no points at all are not alike.
    """
    return _is_one_sided(inside[inside != UNSAID] >= 0.5) or _is_one_sided(labels[labels >= 0] == 1)


def _is_one_sided(verdicts: NDArray[np.bool_]) -> bool:
    share = float(verdicts.mean()) if len(verdicts) else 0.5
    return max(share, 1 - share) >= ALIKE


@functools.cache
def _pattern() -> NDArray[np.float64]:
    """(PATTERN_SIZE, 2) in the unit square; each point is the farthest of many candidates from those before it, so every beginning
    is evenly spread.
    """
    rng = np.random.default_rng(2024)
    points = np.full((1, 2), 0.5)
    while len(points) < PATTERN_SIZE:
        candidates = rng.uniform(MARGIN, 1 - MARGIN, (CANDIDATES, 2))
        gaps = np.linalg.norm(candidates[:, None] - points[None], axis=-1).min(1)
        points = np.concatenate([points, candidates[gaps.argmax()][None]])
    return points


def spread(box_px: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return the first ``count`` points of the pattern, laid over a box (x1, y1, x2, y2): (K, 2) float32 in pixels of the image.

    K is ``count`` or less: in a box of a few pixels, points less than MIN_GAP from an earlier one are left out, because they would be the
    same question again. Raises ValueError if ``count`` is not from 0 to PATTERN_SIZE.
    """
    if not 0 <= count <= PATTERN_SIZE:
        raise ValueError(f"the pattern has {PATTERN_SIZE} points, not {count}")
    low, high = np.asarray(box_px[:2], np.float64), np.asarray(box_px[2:], np.float64)
    points = low + _pattern()[:count] * (high - low)
    near = np.triu(np.linalg.norm(points[:, None] - points[None], axis=-1) < MIN_GAP, 1)
    kept = np.ones(count, np.bool_)
    for index in range(count):
        if kept[index]:
            kept &= ~near[index]
    return points[kept].astype(np.float32)


def interior(box_px: NDArray[np.float32], mask: NDArray[np.bool_], count: int) -> NDArray[np.float32]:
    """Return at most ``count`` points (K, 2) in a box: half of them in a mask (H, W) bool, then half in the rest of the box. On each side
    they are far from the outline and from each other, the deepest first.

    If one side has no room for its half, the other takes the rest. There are fewer than ``count`` if no more fit MIN_GAP apart.
    """
    places, points = _places(box_px), np.zeros((0, 2), np.float32)
    on, off = _depths(places, mask), _depths(places, ~mask)
    for depths, upto in ((on, count - count // 2), (off, count), (on, count)):
        points = np.concatenate([points, _deep(places, depths, upto - len(points), points)])
    return points


def deepest(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the point (2,) x, y in the middle of the pixel of a mask (H, W) that is farthest from its outline. The mask must not be
    empty.
    """
    row, column = np.unravel_index(_depth_map(mask).argmax(), mask.shape)
    return np.array([column + 0.5, row + 0.5], np.float32)


def _depth_map(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return (H, W) how deep each pixel lies in a mask: its distance from the outline, 0 off the mask.

    Where the image's border cuts off the mask, it counts as outline, too, because nobody sees what is beyond.
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1], np.float32)


def _depths(places_px: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N,) how far each of (N, 2) places is within a mask, in pixels; 0 off it."""
    depth = _depth_map(mask)
    columns, rows = np.clip(places_px.astype(int), 0, [mask.shape[1] - 1, mask.shape[0] - 1]).T
    return np.asarray(depth[rows, columns], np.float64)


def _deep(places_px: NDArray[np.float64], depths: NDArray[np.float64], count: int, asked_px: NDArray[np.float32]) -> NDArray[np.float32]:
    """Choose at most ``count`` of the places (N, 2) whose depth (N,) is above 0, deep and far from each other and from ``asked_px``."""
    places_px, depths = places_px[depths > 0], depths[depths > 0]
    return _scatter(places_px, lambda gaps: np.minimum(gaps, EDGE_WEIGHT * depths), count, asked_px)


def unsure(box_px: NDArray[np.float32], answers: Answers, count: int) -> NDArray[np.float32]:
    """Return at most ``count`` further points (K, 2) in a box, at places where the answers leave in doubt whether the object is there.

    P(inside) of a place is the mean of the answers, weighted by nearness. It is near a half where neighbouring answers differ, which is at
    the object's outline, and around answers that were near a half themselves. Without answers the points are those of ``spread``.
    """
    if not len(answers.inside):
        return spread(box_px, count)
    places, sides = _places(box_px), np.maximum(box_px[2:] - box_px[:2], 1).astype(np.float64)
    distances = np.linalg.norm((places[:, None] - answers.points_px[None]) / sides, axis=-1)
    nearness = 1 / np.maximum(distances, 1 / GRID) ** NEARNESS  # no distance counts as less than a step of the grid
    doubt = 1 - 2 * np.abs(nearness @ answers.inside / nearness.sum(1) - 0.5)
    return _scatter(places, lambda gaps: gaps * (SURE_WEIGHT + doubt), count, answers.points_px, sides)


def disputed(answers: Answers, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(K,) bool: which answers a mask (H, W) contradicts. A point with P(inside) UNSAID has no answer to contradict."""
    contradicted = (answers.inside >= 0.5) != lies_on(mask, answers.points_px)
    return np.asarray(contradicted & (answers.inside != UNSAID), np.bool_)


def beside(box_px: NDArray[np.float32], points_px: NDArray[np.float32]) -> NDArray[np.float32]:
    """The four places beside each of (K, 2) points in a box, kept within it: (4 K, 2) float32, those of a point together."""
    steps = np.array(BESIDE_STEPS, np.float64) * BESIDE * (box_px[2:] - box_px[:2])
    around = np.asarray(points_px, np.float64)[:, None] + steps
    return np.clip(around, box_px[:2], box_px[2:]).reshape(-1, 2).astype(np.float32)


def settle(answers: Answers, which: NDArray[np.bool_], second: NDArray[np.float64]) -> Answers:
    """Return the answers after a second look at the N points of ``which`` (K,) bool. Each of these becomes the mean of its answer and of
    the four answers ``beside`` it, in ``second`` (4 N,).
    """
    inside = answers.inside.copy()
    steps = len(BESIDE_STEPS)
    inside[which] = (inside[which] + second.reshape(-1, steps).sum(1)) / (steps + 1)
    return Answers(answers.points_px, inside)


def _places(box_px: NDArray[np.float32]) -> NDArray[np.float64]:
    """(GRID * GRID, 2) places in a box within the pattern's MARGIN."""
    low, high = np.asarray(box_px, np.float64).reshape(2, 2)
    steps = np.linspace(MARGIN, 1 - MARGIN, GRID)
    return low + np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2) * (high - low)


def _scatter(
    places_px: NDArray[np.float64],
    worth: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    count: int,
    asked_px: NDArray[np.float32],
    sides_px: NDArray[np.float64] | float = 1.0,
) -> NDArray[np.float32]:
    """Choose at most ``count`` of the places (N, 2), one after the other, each time the one that is worth most.

    ``worth`` gives the worth of all places from their distances (N,) to the nearest point in ``asked_px`` or chosen before, measured in
    ``sides_px``. No place is chosen that is nearer than MIN_GAP to such a point.
    """
    gaps, gaps_px = np.full(len(places_px), np.inf), np.full(len(places_px), np.inf)
    chosen: list[NDArray[np.float64]] = []

    def keep_off(point: NDArray[np.float64]) -> None:
        np.minimum(gaps, np.linalg.norm((places_px - point) / sides_px, axis=1), out=gaps)
        np.minimum(gaps_px, np.linalg.norm(places_px - point, axis=1), out=gaps_px)

    for point in asked_px.astype(np.float64):
        keep_off(point)
    while len(chosen) < count and (gaps_px >= MIN_GAP).any():
        best = int(np.where(gaps_px >= MIN_GAP, worth(gaps), -np.inf).argmax())
        chosen.append(places_px[best])
        keep_off(places_px[best])
    return np.array(chosen, np.float32).reshape(-1, 2)
