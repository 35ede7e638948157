"""The figures by which referring segmentation is compared, as pure functions of masks and answers.

A sample is one (image, phrase) pair: the union of all predicted instances against the union of all true ones. The definitions are those of
generalized referring segmentation (GRES, Liu et al., CVPR 2023, and its published evaluation), which contain the older ones of refCOCO:

gIoU    mean over the samples of their IoU; a phrase without a target counts 1 if nothing was predicted, else 0.
cIoU    sum of intersections over sum of unions; a phrase without a target adds what was predicted to the unions. Large objects dominate it.
mIoU    mean IoU of the samples with a target.
N-acc   share of the phrases without a target for which nothing was predicted.
T-acc   share of the phrases with a target for which something was predicted.
Pr@t    share of the phrases with a target whose IoU is t or more. Papers write "above", but the published evaluations of GRES and of
        refCOCO methods (LAVT and those after it) count equality too, and so do we, to be comparable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of Pr@t, those of the refCOCO papers."""
ECE_BINS = 10
"""Bins of the expected calibration error, a common choice; with more, small evaluations have empty ones."""

Figures = dict[str, float | int | None]


@dataclass(frozen=True)
class Sample:
    """What the figures need of one (image, phrase) pair. ``intersection`` and ``union`` are pixels, as cIoU sums them."""

    iou: float
    intersection: int
    union: int
    has_target: bool
    predicted_empty: bool


def compare(predicted: NDArray[np.bool_], truth: NDArray[np.bool_], has_target: bool) -> Sample:
    """One pair measured.

    Args:
        predicted: (H, W) bool, the union of all predicted instances.
        truth: (H, W) bool, the union of all true ones.
        has_target: whether the phrase means anything in the image.

    Raises:
        ValueError: the shapes differ, or there is a true mask of a phrase without a target.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of one image have one shape, not {predicted.shape} and {truth.shape}")
    if not has_target and truth.any():
        raise ValueError("a phrase without a target has an empty true mask")
    intersection, union = int(np.count_nonzero(predicted & truth)), int(np.count_nonzero(predicted | truth))
    predicted_empty = not predicted.any()
    iou = (intersection / union if union else 0.0) if has_target else float(predicted_empty)
    return Sample(iou, intersection, union, has_target, predicted_empty)


def point_accuracy(inside: ArrayLike, truth: ArrayLike) -> float:
    """Share of points judged rightly: (K,) P(inside) of at least 0.5 against (K,) bool; NaN of no points."""
    probabilities, labels = _answers(inside, truth)
    return float(((probabilities >= 0.5) == labels).mean()) if len(labels) else math.nan


def point_ece(inside: ArrayLike, truth: ArrayLike, bins: int = ECE_BINS) -> float:
    """Expected calibration error of (K,) P(inside) against (K,) bool; NaN of no points.

    P(inside) itself is binned, in equal widths from 0 to 1: the mean over the points of how far their bin's mean probability lies from the
    share of its points that are inside.
    """
    probabilities, labels = _answers(inside, truth)
    if not len(labels):
        return math.nan
    chosen = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(chosen, weights=probabilities - labels, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def summarize(
    samples: Iterable[Sample],
    *,
    point_probabilities: ArrayLike = (),
    point_truths: ArrayLike = (),
    oracle_ious: ArrayLike = (),
    seconds: ArrayLike = (),
) -> Figures:
    """All figures by the names that ``sam4mllm evaluate --json`` prints; None is what was not measured, which JSON can hold and NaN not.

    Args:
        samples: one for each (image, phrase) pair.
        point_probabilities: (K,) P(inside) of all points asked.
        point_truths: (K,) bool, whether each lies on its object.
        oracle_ious: IoU of the masks drawn from true boxes and points, one for each sample with a target.
        seconds: how long each phrase took.
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


@dataclass
class Tally:
    """Collects an evaluation as it goes on; ``figures`` may be asked at any time."""

    samples: list[Sample] = field(default_factory=list)
    _probabilities: list[NDArray[np.float64]] = field(default_factory=list)
    _truths: list[NDArray[np.bool_]] = field(default_factory=list)
    _oracle_ious: list[float] = field(default_factory=list)
    _seconds: list[float] = field(default_factory=list)

    def add(self, predicted: NDArray[np.bool_], truth: NDArray[np.bool_], has_target: bool, seconds: float | None = None) -> Sample:
        """Measure one pair as ``compare`` does, and note how many seconds it took."""
        sample = compare(predicted, truth, has_target)
        self.samples.append(sample)
        if seconds is not None:
            self._seconds.append(seconds)
        return sample

    def add_points(self, inside: ArrayLike, truth: ArrayLike) -> None:
        """Note (K,) P(inside) of points and (K,) bool whether they are."""
        probabilities, labels = _answers(inside, truth)
        self._probabilities.append(probabilities)
        self._truths.append(labels)

    def add_oracle(self, iou: float) -> None:
        """Note the IoU of a mask that was drawn from the true box and points."""
        self._oracle_ious.append(iou)

    def figures(self) -> Figures:
        """As ``summarize``."""
        return summarize(
            self.samples,
            point_probabilities=np.concatenate([np.zeros(0), *self._probabilities]),
            point_truths=np.concatenate([np.zeros(0, np.bool_), *self._truths]),
            oracle_ious=self._oracle_ious,
            seconds=self._seconds,
        )


def bootstrap_interval(values: ArrayLike, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Low and high end of the percentile bootstrap interval for the mean of (N,) values (Efron 1979); the same for the same seed.

    Raises:
        ValueError: there are no values, some are not finite, or the level is not between 0 and 1.
    """
    data = np.asarray(values, np.float64).ravel()
    if not len(data) or not np.isfinite(data).all():
        raise ValueError("an interval is of at least one value, all of them finite")
    if not 0 < level < 1:
        raise ValueError(f"the level lies between 0 and 1, not at {level}")
    rng = np.random.default_rng(seed)
    means = [data[rng.integers(len(data), size=len(data))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
