"""Masks enlarged from the model's grid: bit for bit what torch's interpolation of every pixel gives, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from sam4mllm.segmentation.enlarging import Enlarging, enlarge_plainly
from sam4mllm.values import Masks


def smooth(seed: int, height: int, width: int, shift: float = 0.0) -> Tensor:
    """Logits (height, width) of a few blobs."""
    rough = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return 4 * interpolate(rough, (height, width), mode="bicubic", align_corners=False)[0, 0] + shift


@given(
    seed=st.integers(0, 10_000),
    grid=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    shift=st.sampled_from((-20.0, -3.0, 0.0, 3.0, 20.0)),
    threshold=st.sampled_from((0.0, 0.5, -1.0)),
)
def test_a_squashed_image_gets_torchs_mask(seed: int, grid: tuple[int, int], size: tuple[int, int], shift: float, threshold: float) -> None:
    logits, how = smooth(seed, *grid, shift), Enlarging(size, threshold=threshold)
    np.testing.assert_array_equal(how.full(logits), enlarge_plainly(logits, how))


@given(
    seed=st.integers(0, 10_000),
    grid=st.sampled_from((8, 16, 32)),
    seen=st.tuples(st.integers(1, 128), st.integers(1, 128)),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
def test_a_padded_image_gets_torchs_mask(seed: int, grid: int, seen: tuple[int, int], size: tuple[int, int]) -> None:
    logits, how = smooth(seed, grid, grid), Enlarging(size, 128, seen)
    np.testing.assert_array_equal(how.full(logits), enlarge_plainly(logits, how))


def test_rows_are_enlarged_in_parts_without_a_seam() -> None:
    how = Enlarging((2100, 1900))
    logits = smooth(3, 64, 64)
    np.testing.assert_array_equal(how.full(logits), enlarge_plainly(logits, how))


@pytest.mark.parametrize("seen", [(1024, 512), (1024, 1), (1, 1024), (683, 1024)])
def test_the_coarse_mask_leaves_padding_out(seen: tuple[int, int]) -> None:
    coarse = Enlarging((10, 10), 1024, seen).coarse(torch.ones(3, 256, 256))
    assert coarse.shape == (3, -(-seen[0] // 4), -(-seen[1] // 4))
    assert coarse.all()


def test_only_the_candidate_that_is_asked_for_is_enlarged() -> None:
    enlarged: list[int] = []

    def enlarge(index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        enlarged.append(index)
        return np.full((4, 4), index == 1)

    masks = Masks(np.zeros((3, 2, 2), np.bool_), np.array([0.1, 0.9, 0.3]), np.ones(3), enlarge)
    assert masks.mask(masks.best).all()
    assert enlarged == [1]
    assert masks.masks.shape == (3, 4, 4)
