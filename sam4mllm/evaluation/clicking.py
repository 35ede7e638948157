"""How many corrective clicks an answer needs: a reviewer who clicks in the middle of the largest error until the mask fits.

It is the protocol by which interactive segmentation is compared (number of clicks, NoC@85), but that it begins with an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """Click on an answer until it fits. All clicks are about what the answer shows, as those of a reviewer who has it on the screen.

    Each click asks the MLLM what the one before asked: with a :class:`~sam4mllm.evaluation.sharing.SharingGrounder` in the pipeline all of
    them cost one question.
    """
    truth, ignored = example.union(), example.ignored()
    shown = tuple(ShownInstance(one.box_px, one.mask) for one in answer.instances)
    clicks = Clicks(shown=shown)
    mask = answer.mask
    while measure(mask, example).iou < REACHED:
        click = next_click(truth, mask, ignored) if len(clicks.labels) < MOST_CLICKS else None
        if click is None:
            return Correction(len(clicks.labels), False)
        point_px, label = click
        points_px, labels = np.concatenate([clicks.points_px, point_px[None]]), np.append(clicks.labels, label)
        clicks = Clicks(points_px, labels, shown=shown)
        mask = pipeline.segment(opened, [example.phrase], clicks=clicks)[0].mask
    return Correction(len(clicks.labels), True)


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
