"""Masks that tests draw, and those that hypothesis does."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))
quick = settings(deadline=None, max_examples=200)


def drawn(*rows: str) -> NDArray[np.bool_]:
    """A mask from its picture: # is inside."""
    return np.array([[mark == "#" for mark in row] for row in rows], np.bool_)


RING = drawn("#####", "#...#", "#.#.#", "#...#", "#####")
