"""Where to ask and which answers to keep: the point pattern over a box, and the thresholds."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PATTERN_SIZE = 30
"""Points of the published pattern (released inference notebook); its first 15 are the ones used there."""
MARGIN = 0.08
"""Smallest distance of a point from the box's sides, as a share of them; the published pattern spans 8 to 93 %."""
MIN_GAP = 1.0
"""Least distance of two points, in pixels."""
CANDIDATES = 400


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
    """The first ``count`` points of the blue-noise pattern laid over a box (x1, y1, x2, y2): (count, 2) float32 in its frame.

    In a box of a few pixels, points less than MIN_GAP from an earlier one are left out: they would be the same question again.
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


@dataclass(frozen=True)
class Thresholds:
    """When an answer is sure enough to become a prompt point (released inference notebook: 0.75 and 0.9).

    With P = P(inside): a point is positive if P > ``positive``, negative if 1 - P > ``negative``, and dropped between.
    """

    positive: float = 0.75
    negative: float = 0.90

    def select(self, inside: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which of (K,) answers to keep, (K,) bool, and the labels (kept,) 1 for inside, 0 for outside."""
        outside = 1.0 - inside > self.negative
        kept = outside | (inside > self.positive)
        return kept, (~outside[kept]).astype(np.int64)
