"""How many corrective clicks an answer needs: a reviewer who clicks in the middle of the largest error until the mask fits.

It is the protocol by which interactive segmentation is compared (number of clicks, NoC@85), but that it begins with an answer.
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
"""IoU from which no more is clicked, the lower of the two that interactive segmentation reports (NoC@85 and NoC@90)."""
MOST_CLICKS = 10
"""A reviewer who has clicked so often draws the mask by hand. Such a phrase counts as so many clicks."""


@dataclass(frozen=True)
class Correction:
    """How often was clicked, at most MOST_CLICKS, and whether the mask then had an IoU of REACHED."""

    clicks: int
    reached: bool


def correct(pipeline: Pipeline, opened: Opened, example: Example, answer: Segmentation) -> Correction:
    """Click on an answer until it fits."""
    clicks = 0
    for clicks, iou in enumerate(click_through(pipeline, opened, example, answer)):
        if iou >= REACHED:
            return Correction(clicks, True)
    return Correction(clicks, False)


def click_through(pipeline: Pipeline, opened: Opened, example: Example, answer: Segmentation) -> Iterator[float]:
    """The answer's IoU, then that after each of at most MOST_CLICKS clicks; it ends where nothing is wrong.

    All clicks are about what the answer shows, as those of a reviewer who has it on the screen. Where a former mask is part of the prompt,
    that is the mask that the last click made.

    Each click asks the MLLM what the one before asked: with a :class:`~sam4mllm.evaluation.sharing.SharingGrounder` in the pipeline all of
    them cost one question.
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
    """What a click may correct: what stands alone is made of its clicks anew."""
    return tuple(ShownInstance(one.box_px, one.mask) for one in answer.instances if one.pointed != "alone")


def next_click(
    truth: NDArray[np.bool_], mask: NDArray[np.bool_], ignored: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float32], int] | None:
    """Where a reviewer clicks next, (2,) float32 px, and 1 if the mask lacks what is there, 0 if it has too much.

    The place is the one farthest from the edge of the largest connected region that is missing, or that is too much; the edge of the image
    counts as one. Truth, mask and what counts neither way are (H, W) bool. None if nothing is wrong.
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
