"""How often automatic rollback removes an equally good version by chance, and how soon it removes a worse one, by simulation.

    python benchmarks/watch.py [--lives 200]

Each simulated life is a promotion after a number of reviews of the former version, followed by up to 1,000 reviews, after each of which the
rollback's rule is applied. Agreement is either normally distributed (standard deviation 0.10), or as it often is with real reviewers: seven
masks of ten are accepted as they are, one in eleven is all wrong, and the others are touched up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from backend.learning.auto_rollback import BASELINE, LEAST, control

Agreements = Callable[[np.random.Generator, int, float], NDArray[np.float64]]
LONG, SHORT = 1000, 100


def normal(rng: np.random.Generator, count: int, loss: float) -> NDArray[np.float64]:
    return np.clip(rng.normal(0.8 - loss, 0.1, count), 0, 1)


def mostly_accepted(rng: np.random.Generator, count: int, loss: float) -> NDArray[np.float64]:
    """Draw agreements of reviewers who accept most masks. ``loss`` is the share of masks that are all wrong in addition."""
    kind = rng.random(count)
    touched = rng.beta(12, 2, count)
    return np.where(kind < 0.09 + loss, 0.0, np.where(kind > 0.3, 1.0, touched))


def rolled_back_after(before: NDArray[np.float64], since: NDArray[np.float64]) -> int | None:
    """Return after how many reviews ``since`` the promotion the version would be rolled back; None if never."""
    former, reviews = before.tolist(), since.tolist()
    for count in range(LEAST, len(reviews) + 1):
        found = control(former, reviews[:count])
        if found is not None and found.lost:
            return count
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", type=int, default=200)
    lives = parser.parse_args().lives
    rng = np.random.default_rng(0)
    print("| agreement | loss | reviews before | reviews since | rolled back | after (median) |")
    print("|---|---:|---:|---:|---:|---:|")
    agreements: dict[str, Agreements] = {"normal": normal, "mostly accepted": mostly_accepted}
    for name, draw in agreements.items():
        for before in (BASELINE, 200):
            for loss, since in ((0.0, LONG), (0.1, SHORT), (0.2, SHORT)):
                found = [rolled_back_after(draw(rng, before, 0.0), draw(rng, since, loss)) for _ in range(lives)]
                ends = [count for count in found if count is not None]
                median = f"{np.median(ends):.0f}" if ends else "-"
                print(f"| {name} | {loss:.1f} | {before} | {since} | {len(ends) / lives:.1%} | {median} |", flush=True)


if __name__ == "__main__":
    main()
