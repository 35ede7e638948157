"""Poisson-disk points: anywhere in a box, but never two of them near each other, as the released recipe has them."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

RADIUS = 0.1
"""Least distance of two points in the unit square (released preparation of refCOCO: scipy's ``qmc.PoissonDisk`` with this radius)."""
PATTERNS = 100
"""How many patterns there are to draw from (as in the released code)."""
_TRIES = 1000
"""How many random places are tried for a pattern; 60 to 72 of them remain (counted over all 100 patterns), where scipy's leave 61 to 69."""


@functools.cache
def pattern(index: int) -> NDArray[np.float64]:
    """Points (K, 2) in the unit square, of which no two are nearer than RADIUS and which leave little room for more."""
    places = np.random.default_rng((2024, index)).uniform(size=(_TRIES, 2))
    kept = []
    while len(places):
        kept.append(places[0])
        places = places[np.linalg.norm(places - places[0], axis=1) >= RADIUS]
    return np.array(kept)


def draw_disks(box_px: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw ``count`` points (K, 2) in a box (4,) from a random pattern stretched over the box; K is less if the pattern has fewer."""
    chosen = rng.permutation(pattern(int(rng.integers(PATTERNS))))[:count]
    low, high = np.asarray(box_px, np.float64).reshape(2, 2)
    return (low + chosen * (high - low)).astype(np.float32)
