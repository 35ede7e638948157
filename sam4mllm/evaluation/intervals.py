"""Confidence intervals of figures, by a bootstrap that draws whole images, because the results of the phrases of one image are correlated.

Every figure of :mod:`sam4mllm.evaluation.metrics` but the calibration error is one sum over the samples divided by another sum. The sums
are first computed by image. A bootstrap sample is then a vector that says how often each image was drawn, and the figures of all bootstrap
samples are one matrix product divided by another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam4mllm.evaluation.metrics import PRECISIONS, Sample

DRAWS = 2_000
"""The number of bootstrap samples. With more, the ends of a 95 % interval would move by about a tenth of its half width at most."""
SEED = 0
BLOCK = 4_000_000
"""The number of counts that are drawn at once, so that the memory stays at some 64 MB, whatever the number of images."""

Term = tuple[float, float]
"""What a sample adds to a figure's numerator and to its denominator."""


@dataclass(frozen=True, eq=False)
class Sums:
    """The figures' ``numerators`` and ``denominators``, (G, M) float64 each, for G images and the M figures of ``names``."""

    names: tuple[str, ...]
    numerators: NDArray[np.float64]
    denominators: NDArray[np.float64]

    def figures(self) -> dict[str, float | None]:
        """Return each figure over all images, None for a figure that nothing was measured for."""
        above, below = self.numerators.sum(0), self.denominators.sum(0)
        return {name: float(above[at] / below[at]) if below[at] else None for at, name in enumerate(self.names)}


@dataclass(frozen=True)
class Difference:
    """How much larger a figure is in one evaluation than in another (``value``), with the ends ``low`` and ``high`` of its interval."""

    value: float
    low: float
    high: float


def terms(sample: Sample) -> dict[str, Term]:
    """Return what a sample adds to each figure."""
    target, empty = float(sample.has_target), sample.predicted_empty
    return {
        "gIoU": (sample.iou, 1.0),
        "cIoU": (sample.intersection, sample.union),
        "mIoU": (sample.iou * target, target),
        "N-acc": ((1 - target) * empty, 1 - target),
        "T-acc": (target * (not empty), target),
        **{f"Pr@{threshold}": (target * (sample.iou >= threshold), target) for threshold in PRECISIONS},
    }


def sum_by_image(images: Sequence[str], rows: Sequence[Mapping[str, Term]]) -> Sums:
    """Add up the terms of N samples by image.

    Args:
        images: (N,) the image of each sample; images come in the order of their first sample.
        rows: (N,) what each sample adds, by figure; every row has the same figures.

    Raises:
        ValueError: ``images`` and ``rows`` differ in length or are empty.
    """
    if len(images) != len(rows) or not rows:
        raise ValueError(f"each sample has an image and a row of terms, not {len(images)} and {len(rows)}")
    places = {image: place for place, image in enumerate(dict.fromkeys(images))}
    names = tuple(rows[0])
    at = [places[image] for image in images]
    added = np.array([[row[name] for name in names] for row in rows], np.float64)
    totals = np.zeros((len(places), len(names), 2))
    np.add.at(totals, at, added)
    return Sums(names, totals[..., 0], totals[..., 1])


def intervals(sums: Sums, level: float = 0.95, draws: int = DRAWS, seed: int = SEED) -> dict[str, tuple[float, float] | None]:
    """Low and high end of each figure's percentile bootstrap interval over images (Efron 1979); None of a figure without a value.

    Raises ValueError if the level is not between 0 and 1.
    """
    _check_level(level)
    drawn = np.concatenate([_ratios(sums, counts) for counts in _draw(len(sums.numerators), draws, seed)])
    return {name: _ends(drawn[:, at], level) for at, name in enumerate(sums.names)}


def differences(of: Sums, against: Sums, level: float = 0.95, draws: int = DRAWS, seed: int = SEED) -> dict[str, Difference | None]:
    """Return how much larger each figure of ``of`` is than that of ``against``, with the ends of the difference's bootstrap interval.

    Both must come from the same images in the same order. Each bootstrap sample draws the same images for both, so that what is hard for
    both cancels out. The value is None for a figure that has no value in one of them.

    Raises:
        ValueError: their figures or numbers of images differ, or the level is not between 0 and 1.
    """
    _check_level(level)
    if of.names != against.names or of.numerators.shape != against.numerators.shape:
        raise ValueError("two evaluations are compared on the same images and figures")
    blocks = _draw(len(of.numerators), draws, seed)
    drawn = np.concatenate([_ratios(of, counts) - _ratios(against, counts) for counts in blocks])
    mine, theirs = of.figures(), against.figures()
    found: dict[str, Difference | None] = {}
    for at, name in enumerate(of.names):
        value, other, ends = mine[name], theirs[name], _ends(drawn[:, at], level)
        found[name] = None if value is None or other is None or ends is None else Difference(value - other, *ends)
    return found


def _draw(images: int, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield blocks (d, images) of how often each image was drawn, one bootstrap sample a row, ``draws`` rows in all."""
    rng = np.random.default_rng(seed)
    at_once = max(1, BLOCK // images)
    for start in range(0, draws, at_once):
        yield rng.multinomial(images, np.full(images, 1 / images), min(at_once, draws - start)).astype(np.float64)


def _ratios(sums: Sums, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the M figures of d bootstrap samples (d, M), NaN where nothing was measured. ``counts`` is a block of ``_draw``."""
    below = counts @ sums.denominators
    ratios: NDArray[np.float64] = np.divide(counts @ sums.numerators, below, out=np.full(below.shape, np.nan), where=below > 0)
    return ratios


def _ends(drawn: ArrayLike, level: float) -> tuple[float, float] | None:
    values = np.asarray(drawn)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"the level lies between 0 and 1, not at {level}")
