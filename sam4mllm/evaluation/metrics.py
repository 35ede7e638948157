"""The figures by which referring segmentation is compared, as pure functions of masks and answers.

A sample is one (image, phrase) pair: the union of all predicted instances against the union of all true ones. One set of definitions holds
for every data set, because the published evaluations agree wherever they measure the same (``docs/evaluation.md`` goes through them):

gIoU    mean over the samples of their IoU; a phrase without a target counts 1 if nothing was predicted, else 0.
cIoU    sum of intersections over sum of unions; a phrase without a target adds what was predicted to the unions. Large objects dominate it.
        Papers on refCOCO call it overall IoU (oIoU).
mIoU    mean IoU of the samples with a target.
N-acc   share of the phrases without a target for which nothing was predicted.
T-acc   share of the phrases with a target for which something was predicted.
Pr@t    share of the phrases with a target whose IoU is t or more. Papers write "above", but the published evaluations of GRES and of
        refCOCO methods (LAVT and those after it) count equality too, and so do we, to be comparable.

========= ================================================ ===============================================================================
task      data sets                                        published figures
========= ================================================ ===============================================================================
RES       refCOCO, refCOCO+, refCOCOg; RefCOCO-M           cIoU, mIoU, Pr@0.5 to Pr@0.9 (LAVT's ``test.py``); mIoU alone for RefCOCO-M
GRES      gRefCOCO                                         gIoU, cIoU, N-acc, T-acc, Pr@0.7 to Pr@0.9 (ReLA's ``refer_evaluation.py``)
ReasonSeg ReasonSeg                                        gIoU, cIoU without the pixels marked "ignore" (LISA's ``train_ds.py``)
========= ================================================ ===============================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of Pr@t, those of the refCOCO papers."""
ECE_BINS = 10
"""Bins of the expected calibration error, a common choice; with more, small evaluations have empty ones."""

Figures = dict[str, float | int | None]


@dataclass(frozen=True)
class Sample:
    """What the figures need of one (image, phrase) pair. ``intersection`` and ``union`` are pixels, as cIoU sums them.

    ``iou`` is as gIoU counts it: without a target, it is 1 if nothing was predicted, else 0. ``predicted_empty``: nothing was predicted,
    apart from ignored pixels and from a mask that was too small to count.
    """

    iou: float
    intersection: int
    union: int
    has_target: bool
    predicted_empty: bool


def compare(
    predicted: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    has_target: bool,
    *,
    ignored: NDArray[np.bool_] | None = None,
    min_pixels: int = 0,
) -> Sample:
    """Compare the predicted mask of one (image, phrase) pair with the true one.

    Args:
        predicted: (H, W) bool, the union of all predicted instances.
        truth: (H, W) bool, the union of all true ones.
        has_target: whether the phrase means anything in the image.
        ignored: (H, W) bool, pixels that are left out of the measurement (ReasonSeg has such); None if there are none. If they cover the
            whole target, the IoU is 1 if nothing is predicted outside of them, else 0, as in LISA's script.
        min_pixels: a prediction of fewer pixels counts as empty; 0 keeps every prediction.

    Raises:
        ValueError: the shapes differ, or the true mask of a phrase without a target is not empty.
    """
    if predicted.shape != truth.shape or (ignored is not None and ignored.shape != truth.shape):
        shapes = [mask.shape for mask in (predicted, truth, ignored) if mask is not None]
        raise ValueError(f"masks of one image have one shape, not {' and '.join(map(str, shapes))}")
    if not has_target and truth.any():
        raise ValueError("a phrase without a target has an empty true mask")
    hidden = False
    if ignored is not None:
        hidden = bool(truth.any()) and not (truth & ~ignored).any()
        predicted, truth = predicted & ~ignored, truth & ~ignored
    if np.count_nonzero(predicted) < min_pixels:
        predicted = np.zeros_like(predicted)
    intersection, union = int(np.count_nonzero(predicted & truth)), int(np.count_nonzero(predicted | truth))
    predicted_empty = not predicted.any()
    iou = (intersection / union if union else float(hidden)) if has_target else float(predicted_empty)
    return Sample(iou, intersection, union, has_target, predicted_empty)


def point_accuracy(inside: ArrayLike, truth: ArrayLike) -> float:
    """Return the share of K points that are judged rightly, NaN if there are none.

    ``inside`` (K,) is P(inside), of which 0.5 or more means inside; ``truth`` (K,) bool says whether the point is. Raises ValueError if
    their lengths differ or a probability is not between 0 and 1.
    """
    probabilities, labels = _answers(inside, truth)
    return float(((probabilities >= 0.5) == labels).mean()) if len(labels) else math.nan


@dataclass(frozen=True)
class Bin:
    """``count`` answers with similar probabilities: ``mean`` is their mean probability, ``true`` the share of them that is true."""

    mean: float
    true: float
    count: int


def reliability(inside: ArrayLike, truth: ArrayLike, bins: int = ECE_BINS) -> list[Bin]:
    """Compare K probabilities ``inside`` with ``truth`` (K,) bool, in bins of equal width from 0 to 1; empty bins are left out.

    Raises ValueError if their lengths differ or a probability is not between 0 and 1.
    """
    probabilities, labels = _answers(inside, truth)
    chosen = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    members = [chosen == number for number in range(bins)]
    return [Bin(float(probabilities[some].mean()), float(labels[some].mean()), int(some.sum())) for some in members if some.any()]


def point_ece(inside: ArrayLike, truth: ArrayLike, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error of ``inside``, (K,) P(inside), against ``truth`` (K,) bool; NaN if there are no points.

    P(inside) itself is binned, not the confidence in the likelier answer; the bins are of equal width from 0 to 1. The error of a bin is
    the distance between its mean probability and the share of its points that are inside; the result is its mean over all points. Raises
    ValueError as ``reliability`` does.
    """
    found = reliability(inside, truth, bins)
    count = sum(one.count for one in found)
    return math.fsum(one.count * abs(one.mean - one.true) for one in found) / count if count else math.nan


def summarize(
    samples: Iterable[Sample],
    *,
    point_probabilities: ArrayLike = (),
    point_truths: ArrayLike = (),
    oracle_ious: ArrayLike = (),
    seconds: ArrayLike = (),
) -> Figures:
    """Return all figures, by the names that ``sam4mllm evaluate --json`` prints; None (NaN is not valid JSON) for what was not measured.

    Args:
        samples: one for each (image, phrase) pair.
        point_probabilities: (K,) P(inside) of all points asked.
        point_truths: (K,) bool, whether each lies on its object.
        oracle_ious: IoU of the masks drawn from true boxes and points, one for each sample with a target.
        seconds: how long each phrase took.

    Raises:
        ValueError: the lengths of the points' arguments differ, or a probability is not between 0 and 1.
    """
    samples = list(samples)
    targets = [sample for sample in samples if sample.has_target]
    others = [sample for sample in samples if not sample.has_target]
    unions = sum(sample.union for sample in samples)
    figures = {
        "gIoU": _mean([sample.iou for sample in samples]),
        "cIoU": sum(sample.intersection for sample in samples) / unions if unions else math.nan,
        "mIoU": _mean([sample.iou for sample in targets]),
        "N-acc": _mean([sample.predicted_empty for sample in others]),
        "T-acc": _mean([not sample.predicted_empty for sample in targets]),
        **{f"Pr@{threshold}": _mean([sample.iou >= threshold for sample in targets]) for threshold in PRECISIONS},
        "point_accuracy": point_accuracy(point_probabilities, point_truths),
        "point_ece": point_ece(point_probabilities, point_truths),
        "oracle_mIoU": _mean(oracle_ious),
        "seconds_per_phrase": _mean(seconds),
    }
    return {**{name: None if math.isnan(value) else value for name, value in figures.items()}, "count": len(samples)}


def _answers(inside: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    probabilities, labels = np.asarray(inside, np.float64).ravel(), np.asarray(truth, np.bool_).ravel()
    if probabilities.shape != labels.shape:
        raise ValueError(f"each point has a probability and a truth, not {len(probabilities)} and {len(labels)}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities lie between 0 and 1")
    return probabilities, labels


def _mean(values: ArrayLike | Sequence[bool]) -> float:
    array = np.asarray(values, np.float64)
    return float(array.mean()) if array.size else math.nan
