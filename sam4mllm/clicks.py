"""A reviewer's own points and boxes, and how they join what the MLLM found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sam4mllm.errors import PromptError
from sam4mllm.geometry import box_iou
from sam4mllm.values import Candidate, Grounding, Pointed

SAME_BOX = 0.3
"""Least IoU of a reviewer's box with the MLLM's box at which the reviewer's box replaces it; below, it may mark another object."""
PART_OF = 0.5
"""Share of the smaller of two boxes that lies inside the larger, from which both count as boxes of one object, whatever their IoU."""
SAME_SHOWN = 0.5
"""IoU of a box that the reviewer was shown with a box that the MLLM finds now, from which both count as one instance."""
MARGIN = 0.1
"""How far outside of a box, as a share of its width and height, a click or another box still belongs to the box's object."""


def _no_boxes() -> NDArray[np.float32]:
    return np.zeros((0, 4), np.float32)


def _no_points() -> NDArray[np.float32]:
    return np.zeros((0, 2), np.float32)


def _no_labels() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class ShownInstance:
    """An instance that the reviewer sees: its ``box_px`` (4,) float32 and its ``mask`` (H, W) bool."""

    box_px: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Clicks:
    """A reviewer's points, ``points_px`` (K, 2) float32 with ``labels`` (K,) int64, 1 on the object and 0 off it, and boxes, ``boxes_px``
    (N, 4) float32.

    ``shown``: the instances that the reviewer saw, which may differ from what the MLLM finds now. ``selected``: the index in ``shown`` of
    the instance that all points and boxes are about; if None, the place of each decides what it is about.

    Raises PromptError if the shapes do not match, a number is not finite, or a label is neither 1 nor 0.
    """

    points_px: NDArray[np.float32] = field(default_factory=_no_points)
    labels: NDArray[np.int64] = field(default_factory=_no_labels)
    boxes_px: NDArray[np.float32] = field(default_factory=_no_boxes)
    shown: tuple[ShownInstance, ...] = ()
    selected: int | None = None

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
class PromptTarget:
    """What one instance will be prompted with: a box or None, and points (K, 2) with P(inside) (K,) and labels (K,), 1 on the object, 0 off
    it, -1 for a point that is not used.

    ``probability``: how sure the model is of the box, 1 if the box is not the model's. ``pointed``: "refined" if a reviewer's click or box
    is about the instance; "alone" if it is made of clicks or a box only, and is no part of the phrase; empty if no click or box is about
    it. ``mask``: the mask of the instance that the reviewer sees, None if there is none; ``shown``: the instance's index in
    ``Clicks.shown``, None if it was not shown. ``boxed``: whether the box is a reviewer's, so that ``mask`` was not drawn by it.
    ``candidate``: what the segmenter found by itself in this box. ``support``: see :class:`~sam4mllm.confidence.Features`.
    """

    box_px: NDArray[np.float32] | None
    probability: float
    points_px: NDArray[np.float32] = field(default_factory=_no_points)
    inside: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    labels: NDArray[np.int64] = field(default_factory=_no_labels)
    pointed: Pointed = ""
    mask: NDArray[np.bool_] | None = None
    shown: int | None = None
    boxed: bool = False
    candidate: Candidate | None = None
    support: float = 1.0

    @property
    def former(self) -> NDArray[np.bool_] | None:
        """The mask that a reviewer's clicks correct; None if no click is about the instance, if the reviewer saw no mask of it, or if its
        box is the reviewer's.
        """
        return self.mask if self.pointed == "refined" and not self.boxed else None

    @property
    def standing(self) -> Candidate | None:
        """The candidate whose mask is used as it is, for the segmenter found it by itself; None if there is none, or a reviewer points at
        the instance.
        """
        return None if self.pointed else self.candidate

    def with_points(self, points_px: NDArray[np.float32], inside: NDArray[np.float64], labels: NDArray[np.int64]) -> PromptTarget:
        """The same target with more points."""
        return replace(
            self,
            points_px=np.concatenate([self.points_px, points_px]).astype(np.float32),
            inside=np.concatenate([self.inside, inside]),
            labels=np.concatenate([self.labels, labels]).astype(np.int64),
        )

    def clicked(self, point_px: NDArray[np.float32], label: int) -> PromptTarget:
        """The same target with a reviewer's point; ``pointed`` becomes "refined" if it was empty."""
        pointed: Pointed = self.pointed or "refined"
        point = (point_px[None].astype(np.float32), np.array([float(label)]), np.array([label], np.int64))
        return replace(self.with_points(*point), pointed=pointed)


def merge(grounding: Grounding, clicks: Clicks | None) -> list[PromptTarget]:
    """Return the targets of a phrase: the MLLM's boxes with the points that it wrote, corrected by the reviewer; then what the reviewer
    adds.

    If ``clicks.selected`` names an instance, all clicks and boxes are about that one. Otherwise their places decide:

    - A click is about the instance in whose mask it lies. A positive one outside of all masks is about the nearest instance whose box,
      enlarged by MARGIN, holds it; positive clicks elsewhere make one object together, which stands alone.
    - A negative click outside of all masks is about the object of clicks that stands alone, if there is one, else about the nearest
      instance, first among those whose enlarged box holds it. It never makes an object.
    - A box that meets the enlarged box of an instance replaces the box of the instance that it is most alike, if the two count as boxes of
      one object (SAME_BOX, PART_OF), and otherwise adds an instance of the phrase. Each box elsewhere is an object that stands alone.

    An instance that was shown and that the MLLM no longer finds is a target only if a click or a box is about it.
    """
    targets = [_found(grounding, index) for index in range(len(grounding.boxes_px))]
    if clicks is None:
        return targets
    found = len(targets)
    targets, places = _with_shown(targets, clicks.shown)
    selected = places[clicks.selected] if clicks.selected is not None else None
    known = len(targets)
    for box in clicks.boxes_px:
        corners = np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])]).astype(np.float32)
        targets = _with_box(targets, corners, known, selected)
    for sign in (1, 0):  # positive clicks first: they may make the object that a negative one belongs to
        for point in clicks.points_px[clicks.labels == sign]:
            targets = _with_click(targets, point, sign, selected)
    return [target for index, target in enumerate(targets) if index < found or target.pointed]


def _found(grounding: Grounding, index: int) -> PromptTarget:
    target = PromptTarget(grounding.boxes_px[index], float(grounding.box_probabilities[index]))
    if grounding.candidates:
        candidate = grounding.candidates[index]
        target = replace(target, candidate=candidate, support=0.0 if candidate is None else candidate.support)
    if not grounding.points:
        return target
    spoken = grounding.points[index]
    points = np.concatenate([spoken.inside_px, spoken.outside_px])
    labels = np.repeat(np.array([1, 0], np.int64), [len(spoken.inside_px), len(spoken.outside_px)])
    return target.with_points(points, labels.astype(np.float64), labels)


def _with_shown(targets: list[PromptTarget], shown: Sequence[ShownInstance]) -> tuple[list[PromptTarget], list[int]]:
    """Return the targets with the masks that the reviewer sees of them, followed by shown instances that the MLLM no longer finds; and, for
    each shown instance, the index of its target.
    """
    places: list[int] = []
    for number, one in enumerate(shown):
        overlaps = [float(box_iou(target.box_px[None], one.box_px[None])[0, 0]) if target.box_px is not None else 0.0 for target in targets]
        best = int(np.argmax(overlaps)) if overlaps else 0
        if overlaps and overlaps[best] >= SAME_SHOWN:
            if targets[best].mask is None:
                targets = [*targets[:best], replace(targets[best], mask=one.mask, shown=number), *targets[best + 1 :]]
        else:
            best = len(targets)
            targets = [*targets, PromptTarget(one.box_px, 1.0, mask=one.mask, shown=number)]
        places.append(best)
    return targets, places


def _with_box(targets: list[PromptTarget], box_px: NDArray[np.float32], known: int, selected: int | None) -> list[PromptTarget]:
    """Return the targets with a reviewer's box. It can replace one of the first ``known`` targets, but none that an earlier box added."""
    own = PromptTarget(box_px, 1.0, pointed="refined", boxed=True)
    theirs = [target.box_px for target in targets[:known] if target.box_px is not None]
    likeness = [_likeness(box, box_px) for box in theirs]
    if selected is None and not any(_meets(_enlarged(box), box_px) for box in theirs):
        return [*targets, replace(own, pointed="alone")]
    index = int(np.argmax(likeness)) if selected is None else selected
    if selected is not None or likeness[index] > 0:
        return [*targets[:index], replace(own, mask=targets[index].mask, shown=targets[index].shown), *targets[index + 1 :]]
    return [*targets, own]


def _likeness(a_px: NDArray[np.float32], b_px: NDArray[np.float32]) -> float:
    """Return how alike two boxes are: their IoU plus the share of the smaller one that lies inside the other; 0 if they count as boxes of
    two objects.
    """
    sides = np.maximum(np.minimum(a_px[2:], b_px[2:]) - np.maximum(a_px[:2], b_px[:2]), 0)
    smaller = min(float(np.prod(a_px[2:] - a_px[:2])), float(np.prod(b_px[2:] - b_px[:2])))
    iou, share = float(box_iou(a_px[None], b_px[None])[0, 0]), float(np.prod(sides)) / smaller if smaller > 0 else 0.0
    return iou + share if iou >= SAME_BOX or share >= PART_OF else 0.0


def _with_click(targets: list[PromptTarget], point_px: NDArray[np.float32], label: int, selected: int | None) -> list[PromptTarget]:
    index = selected if selected is not None else _concerned(targets, point_px, label)
    if index is None:
        return [*targets, PromptTarget(None, 1.0, pointed="alone").clicked(point_px, label)] if label == 1 else targets
    return [*targets[:index], targets[index].clicked(point_px, label), *targets[index + 1 :]]


def _concerned(targets: Sequence[PromptTarget], point_px: NDArray[np.float32], label: int) -> int | None:
    """Return the index of the target that a click is about; None if a positive click starts an object that stands alone, or if there is no
    target for a negative one.
    """
    hit = [index for index, target in enumerate(targets) if target.mask is not None and _holds(target.mask, point_px)]
    boxes = {index: target.box_px for index, target in enumerate(targets) if target.box_px is not None}
    near = [index for index, box in boxes.items() if _distance(_enlarged(box), point_px) == 0]
    alone = [index for index in range(len(targets)) if index not in boxes]
    # a negative click is more likely about the object that clicks are making than about a box that encloses both
    order = (hit, near, alone) if label == 1 else (hit, alone, near, list(boxes))
    among = next((some for some in order if some), [])
    return min(among, key=lambda index: _closeness(targets[index], point_px), default=None)


def _holds(mask: NDArray[np.bool_], point_px: NDArray[np.float32]) -> bool:
    x, y = np.floor(point_px).astype(int)
    return bool(0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x])


def _closeness(target: PromptTarget, point_px: NDArray[np.float32]) -> tuple[float, float]:
    """Return a point's distances in pixels, first to the target's mask, or to its box if it has no mask, then to the middle of the box.

    Both are 0 if the target has no box.
    """
    if target.box_px is None:
        return (0.0, 0.0)
    middle = float(np.linalg.norm((target.box_px[:2] + target.box_px[2:]) / 2 - point_px))
    if target.mask is None or not target.mask.any():
        return (_distance(target.box_px, point_px), middle)
    ys, xs = np.nonzero(target.mask)
    return (float(np.hypot(xs + 0.5 - point_px[0], ys + 0.5 - point_px[1]).min()), middle)


def _enlarged(box_px: NDArray[np.float32]) -> NDArray[np.float32]:
    margin = (box_px[2:] - box_px[:2]) * np.float32(MARGIN)
    return np.concatenate([box_px[:2] - margin, box_px[2:] + margin])


def _meets(a_px: NDArray[np.float32], b_px: NDArray[np.float32]) -> bool:
    return bool((np.maximum(a_px[:2], b_px[:2]) <= np.minimum(a_px[2:], b_px[2:])).all())


def _distance(box_px: NDArray[np.float32], point_px: NDArray[np.float32]) -> float:
    """How many pixels a point is outside of a box."""
    return float(np.linalg.norm(np.maximum(np.maximum(box_px[:2] - point_px, point_px - box_px[2:]), 0)))
