"""Tests of paired differences: is their mean above 0, or was it chance?"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

BOOTSTRAP_PAIRS = 30
"""The fewest differences for which the bootstrap decides and not the sign-flip test: the usual rule of thumb for a mean."""
LEVEL = 0.05
"""One-sided significance level of both tests, the usual choice: the share of equally good challengers that may be promoted."""
DRAWS = 10_000
"""Bootstrap samples: the share of their means at or below 0, near 5 %, then has a standard error of 0.2 percentage points."""
SEED = 20_140
"""Any number does, if it is always the same: a decision can then be worked out again from its run's record."""
TIE = 1e-9
"""IoU differences are equal within this: far above the rounding of a sum of doubles, far below one pixel of a usual image."""
BLOCK = 1_000_000
"""Indices drawn at once, so that a holdout of any size takes some 30 MB."""


def lower_bounds(differences: ArrayLike) -> NDArray[np.float64]:
    """One-sided 95 % lower bounds of mean paired differences, by the percentile bootstrap (Efron 1979) with a fixed seed.

    The bound is itself one of the sampled means: the largest that fewer than 5 % of them lie below.

    Args:
        differences: (T, N), the N differences of each of T comparisons; all rows are resampled with the same indices. The result depends on
            the order within a row, so :func:`backend.learning.gate.decide` sorts them.

    Returns:
        (T,) in the unit of the differences.

    Raises:
        ValueError: the shape is another, N is 0, or a difference is not finite.
    """
    table = np.asarray(differences, np.float64)
    if table.ndim != 2 or not table.shape[1] or not np.isfinite(table).all():
        raise ValueError(f"differences are a (T, N) table of finite numbers, N at least 1, not of the shape {table.shape}")
    count = table.shape[1]
    rng = np.random.default_rng(SEED)
    rows = max(1, BLOCK // count)
    means = [_draw_counts(rng, min(rows, DRAWS - start), count) @ table.T / count for start in range(0, DRAWS, rows)]
    return np.asarray(np.quantile(np.concatenate(means), LEVEL, axis=0, method="lower"), np.float64)


def sign_flip_p(differences: ArrayLike) -> float:
    """Exact one-sided p of the paired sign-flip test (Fisher 1935) for a mean difference above 0.

    If neither adapter is better, each difference might as well have had the other sign. p is the share of all 2ᴺ choices of signs whose sum
    is at least the observed one. That is so if the differences whose sign is flipped add up to 0 or less, so the function counts the
    subsets with such a sum. It does so by meeting in the middle: the subset sums of one half are looked up among the sorted subset sums of
    the other half.

    Args:
        differences: (N,), N from 1 to 29. Time and memory go with 2^(N/2).

    Raises:
        ValueError: the shape is another, or a difference is not finite.
    """
    data = np.asarray(differences, np.float64)
    if data.ndim != 1 or not 0 < len(data) < BOOTSTRAP_PAIRS or not np.isfinite(data).all():
        raise ValueError(f"the sign-flip test is of 1 to {BOOTSTRAP_PAIRS - 1} finite differences, not of the shape {data.shape}")
    middle = len(data) // 2
    lookups, others = _subset_sums(data[:middle]), np.sort(_subset_sums(data[middle:]))
    at_least = int(np.searchsorted(others, TIE - lookups, side="right").sum())
    return math.ldexp(at_least, -len(data))


def _draw_counts(rng: np.random.Generator, draws: int, count: int) -> NDArray[np.float64]:
    """(draws, count): how often each of ``count`` samples is in each bootstrap draw."""
    chosen = rng.integers(count, size=(draws, count)) + np.arange(draws)[:, None] * count
    return np.bincount(chosen.ravel(), minlength=draws * count).reshape(draws, count).astype(np.float64)


def _subset_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2ᴺ,) sums of all subsets of (N,) values, the empty one among them."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return sums
