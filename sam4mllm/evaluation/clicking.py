"""Counts the corrective clicks that an answer needs. A simulated reviewer clicks into the middle of the largest error until the mask fits.

This is the protocol by which interactive segmentation is compared (number of clicks, NoC@85), except that it begins with an answer and not
with an empty mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.clicks import Clicks, ShownInstance
from sam4mllm.data.examples import Example
from sam4mllm.evaluation.run import measure
from sam4mllm.masks import components
from sam4mllm.pipeline import Opened, Pipeline
from sam4mllm.values import Segmentation

REACHED = 0.85
"""The IoU at which clicking ends: the lower of the two that interactive segmentation reports (NoC@85 and NoC@90)."""
MOST_CLICKS = 10
"""The most clicks on an answer: a reviewer who has clicked so often would draw the mask by hand. A phrase whose mask does not reach the
wanted IoU by then counts with this number of clicks."""


@dataclass(frozen=True)
class Correction:
    """The number of clicks made, at most MOST_CLICKS, and whether the mask ``reached`` an IoU of at least REACHED."""

    clicks: int
    reached: bool


def correct(pipeline: Pipeline, opened: Opened, example: Example, answer: Segmentation) -> Correction:
    """Click on an answer until its IoU is REACHED or more, or MOST_CLICKS clicks are made."""
    clicks = 0
    for clicks, iou in enumerate(click_through(pipeline, opened, example, answer)):
        if iou >= REACHED:
            return Correction(clicks, True)
    return Correction(clicks, False)


def click_through(pipeline: Pipeline, opened: Opened, example: Example, answer: Segmentation) -> Iterator[float]:
    """Yield the answer's IoU, then the IoU after each of at most MOST_CLICKS clicks; stop where no pixel is wrong.

    All clicks refer to the answer's own instances, as those of a reviewer who has them on the screen. With the option ``former_mask`` they
    refer to the instances that the last click made, whose masks are part of the next prompt.

    Each click asks the MLLM the same question as the one before. With a :class:`~sam4mllm.evaluation.sharing.SharingGrounder` in the
    pipeline it is asked only once.
    """
    truth, ignored = example.union(), example.ignored()
    clicks, mask = Clicks(shown=_shown(answer)), answer.mask
    yield measure(mask, example).iou
    while len(clicks.labels) < MOST_CLICKS and (click := next_click(truth, mask, ignored)) is not None:
        point_px, label = click
        points_px, labels = np.concatenate([clicks.points_px, point_px[None]]), np.append(clicks.labels, label)
        clicks = replace(clicks, points_px=points_px, labels=labels)
        [found] = pipeline.segment(opened, [example.phrase], clicks=clicks)
        mask = found.mask
        if pipeline.options.former_mask:
            clicks = replace(clicks, shown=_shown(found))
        yield measure(mask, example).iou


def _shown(answer: Segmentation) -> tuple[ShownInstance, ...]:
    """Return the instances that a click may correct. An instance made of clicks alone is left out, because every call of
    ``segment`` makes it anew from those clicks.
    """
    return tuple(ShownInstance(one.box_px, one.mask) for one in answer.instances if one.pointed != "alone")


def next_click(
    truth: NDArray[np.bool_], mask: NDArray[np.bool_], ignored: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float32], int] | None:
    """Return the reviewer's next click: its place, (2,) float32 px, and its label, 1 to add pixels or 0 to remove them.

    The click goes into the largest connected region of wrong pixels, all missing or all too much, where it is farthest from the region's
    edge; the edge of the image counts as an edge. ``truth``, ``mask`` and ``ignored``, the pixels that are not counted, are (H, W) bool.
    Return None if no pixel is wrong.
    """
    counts = np.ones_like(truth) if ignored is None else ~ignored
    regions = [
        (label, region) for label, wrong in ((1, truth & ~mask), (0, mask & ~truth)) for region in components(wrong & counts, most=1)
    ]
    if not regions:
        return None
    label, region = max(regions, key=lambda one: np.count_nonzero(one[1]))
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return np.array([column + 0.5, row + 0.5], np.float32), label
