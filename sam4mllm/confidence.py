"""How much to trust a mask: what the models showed on the way to it, and one number from that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam4mllm.masks import lies_on


@dataclass(frozen=True)
class Features:
    """What is known of one instance, each in 0–1.

    ``box_probability``: geometric mean of the box's tokens; ``sure``: share of asked points that passed the thresholds (1 if none
    was asked); ``agreement``: share of the sure points whose answer the mask bears out (1 if none); ``predicted_iou`` and
    ``stability``: the segmenter's own.
    """

    box_probability: float
    sure: float
    agreement: float
    predicted_iou: float
    stability: float


def agreement(mask: NDArray[np.bool_], points_px: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of labelled points (K, 2) that lie in the mask (H, W) as their labels (K,) say; 1.0 without points."""
    if not len(labels):
        return 1.0
    return float((lies_on(mask, points_px) == (labels == 1)).mean())


def score(features: Features) -> float:
    """A first, fixed formula: agreement, sureness and the segmenter's estimate weigh alike, the box's probability half.

    A mask without one sure point counts as half sure: its box alone still says where it is. The score orders; it is not calibrated. A fit
    on reviewers' decisions takes its place once there are enough of them.
    """
    sure = (1 + features.sure) / 2
    parts = np.clip([features.agreement, sure, features.predicted_iou, features.box_probability], 1e-3, 1.0)
    weights = np.array([1.0, 1.0, 1.0, 0.5])
    return float(np.exp((weights * np.log(parts)).sum() / weights.sum()))
