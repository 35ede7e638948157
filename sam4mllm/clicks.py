"""A reviewer's own points and boxes, and how they join what the MLLM found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sam4mllm.errors import PromptError
from sam4mllm.geometry import box_iou
from sam4mllm.grounding.protocol import Grounding

SAME_BOX = 0.3
"""IoU from which a reviewer's box stands for the MLLM's box rather than for another object."""
REACH = 0.5
"""How far outside of a box, in sides of it, a click on an object still belongs to it."""


def _no_boxes() -> NDArray[np.float32]:
    return np.zeros((0, 4), np.float32)


def _no_points() -> NDArray[np.float32]:
    return np.zeros((0, 2), np.float32)


def _no_labels() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Clicks:
    """``points_px`` (K, 2) float32 with ``labels`` (K,) int64, 1 on the object and 0 off it; ``boxes_px`` (N, 4) float32.

    Raises PromptError if the shapes do not match, a number is not finite, or a label is another.
    """

    points_px: NDArray[np.float32] = field(default_factory=_no_points)
    labels: NDArray[np.int64] = field(default_factory=_no_labels)
    boxes_px: NDArray[np.float32] = field(default_factory=_no_boxes)

    def __post_init__(self) -> None:
        if self.points_px.shape != (len(self.labels), 2) or self.boxes_px.ndim != 2 or self.boxes_px.shape[1] != 4:
            raise PromptError(
                f"clicks are (K, 2) points with (K,) labels and (N, 4) boxes, not {self.points_px.shape} and {self.boxes_px.shape}"
            )
        if not np.isfinite(self.points_px).all() or not np.isfinite(self.boxes_px).all():
            raise PromptError("a click's coordinates must be finite numbers")
        if not np.isin(self.labels, (0, 1)).all():
            raise PromptError("a click's label is 1 (on the object) or 0 (off it)")


@dataclass(frozen=True, eq=False)
class Target:
    """What one instance will be prompted with: a box or None, and points (K, 2) with P(inside) (K,) and labels (K,): 1, 0, or -1
    for unused.
    """

    box_px: NDArray[np.float32] | None
    probability: float
    points_px: NDArray[np.float32] = field(default_factory=_no_points)
    inside: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    labels: NDArray[np.int64] = field(default_factory=_no_labels)

    def with_points(self, points_px: NDArray[np.float32], inside: NDArray[np.float64], labels: NDArray[np.int64]) -> Target:
        """The same target with more points."""
        return replace(
            self,
            points_px=np.concatenate([self.points_px, points_px]).astype(np.float32),
            inside=np.concatenate([self.inside, inside]),
            labels=np.concatenate([self.labels, labels]).astype(np.int64),
        )


def merge(grounding: Grounding, clicks: Clicks | None) -> list[Target]:
    """The targets of a phrase: the MLLM's boxes with the points it wrote, corrected and completed by the reviewer.

    A reviewer's box replaces the MLLM's box that it overlaps, or adds an instance. A click goes to the nearest box; a positive one
    out of reach of every box, or with no box at all, becomes an instance of its own, which the negative ones near it then shape.
    """
    targets = [_found(grounding, index) for index in range(len(grounding.boxes_px))]
    if clicks is None:
        return targets
    found = len(targets)
    for box in clicks.boxes_px:
        corners = np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])])
        targets = _with_box(targets, corners, found)
    for sign in (1, 0):  # positive clicks first: they may make the instance that a negative one belongs to
        for point in clicks.points_px[clicks.labels == sign]:
            targets = _with_click(targets, point, sign)
    return targets


def _found(grounding: Grounding, index: int) -> Target:
    target = Target(grounding.boxes_px[index], float(grounding.box_probabilities[index]))
    if not grounding.points:
        return target
    spoken = grounding.points[index]
    points = np.concatenate([spoken.inside_px, spoken.outside_px])
    labels = np.repeat(np.array([1, 0], np.int64), [len(spoken.inside_px), len(spoken.outside_px)])
    return target.with_points(points, labels.astype(np.float64), labels)


def _with_box(targets: list[Target], box_px: NDArray[np.float32], found: int) -> list[Target]:
    """A box replaces only one of the first ``found`` targets, those of the MLLM, never another of the reviewer's."""
    own = Target(box_px.astype(np.float32), 1.0)
    theirs = [target.box_px for target in targets[:found] if target.box_px is not None]
    overlaps = [float(box_iou(box[None], box_px[None])[0, 0]) for box in theirs]
    if overlaps and max(overlaps) >= SAME_BOX:
        index = int(np.argmax(overlaps))
        return [*targets[:index], own, *targets[index + 1 :]]
    return [*targets, own]


def _with_click(targets: list[Target], point_px: NDArray[np.float32], label: int) -> list[Target]:
    clicked = (point_px[None].astype(np.float32), np.array([float(label)]), np.array([label], np.int64))
    distances = [_distance(target, point_px) for target in targets]
    if label == 1 and (not distances or min(distances) > REACH):
        return [*targets, Target(None, 1.0).with_points(*clicked)]
    if not distances:
        return targets
    index = int(np.argmin(distances))
    return [*targets[:index], targets[index].with_points(*clicked), *targets[index + 1 :]]


def _distance(target: Target, point_px: NDArray[np.float32]) -> float:
    """How far a point is outside of a target's box, in the box's longer side.

    A target made by a click has no box: it is always just within reach, so it takes the clicks that no box is nearer to.
    """
    if target.box_px is None:
        return REACH
    low, high = target.box_px[:2], target.box_px[2:]
    outside = np.maximum(np.maximum(low - point_px, point_px - high), 0)
    return float(np.linalg.norm(outside) / max(1.0, float((high - low).max())))
