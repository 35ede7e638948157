"""Masks tidied and compared."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam4mllm.masks import box_of, clean, components, mask_iou, union
from tests.small_masks import MASKS, RING, drawn, quick

# -- tidying -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "min_share", "min_hole_share", "expected"),
    [
        pytest.param(drawn("....", "...."), 0.5, None, drawn("....", "...."), id="empty stays empty"),
        pytest.param(drawn("####", "####"), 0.5, None, drawn("####", "####"), id="full stays full"),
        pytest.param(drawn("#"), 0.5, None, drawn("#"), id="one pixel"),
        pytest.param(drawn("###..", "###.#"), 0.2, None, drawn("###..", "###.."), id="a speck goes"),
        pytest.param(drawn("###..", "###.#"), 0.1, None, drawn("###..", "###.#"), id="a seventh is no speck at a tenth"),
        pytest.param(drawn("##.##"), 0.5, None, drawn("##.##"), id="at the share it stays"),
        pytest.param(drawn("#.#.#"), 0.9, None, drawn("#...."), id="the first of the largest stays"),
        pytest.param(drawn("#..", ".#.", "..#"), 0.9, None, drawn("#..", ".#.", "..#"), id="a diagonal is one piece"),
        pytest.param(drawn("###", "#.#", "###"), 0.2, None, drawn("###", "###", "###"), id="a hole closes"),
        pytest.param(drawn("###", "#.#", "###"), 0.2, 0.0, drawn("###", "#.#", "###"), id="holes left alone"),
        pytest.param(drawn("###", "#.#", "###"), 0.1, None, drawn("###", "#.#", "###"), id="an eighth is no small hole at a tenth"),
        pytest.param(drawn("###", "#..", "###"), 0.9, None, drawn("###", "#..", "###"), id="a bay is no hole"),
        pytest.param(drawn("##.", "#.#", "###"), 0.9, None, drawn("##.", "###", "###"), id="a corner closes a hole"),
        pytest.param(RING, 0.1, None, drawn("#####", "#...#", "#...#", "#...#", "#####"), id="a speck in a hole goes"),
        pytest.param(RING, 0.1, 0.6, drawn("#####", "#####", "#####", "#####", "#####"), id="speck and hole"),
    ],
)
def test_clean(mask: NDArray[np.bool_], min_share: float, min_hole_share: float | None, expected: NDArray[np.bool_]) -> None:
    before = mask.copy()
    np.testing.assert_array_equal(clean(mask, min_share, min_hole_share), expected)
    np.testing.assert_array_equal(mask, before)


@quick
@given(MASKS, st.floats(0, 1), st.floats(0, 1))
def test_clean_only_drops_pieces_and_fills_holes(mask: NDArray[np.bool_], min_share: float, min_hole_share: float) -> None:
    cleaned = clean(mask, min_share, min_hole_share)
    assert cleaned.shape == mask.shape
    assert cleaned.any() == mask.any()
    filled = clean(mask, 0, 1.1)
    assert not (cleaned & ~filled).any()
    pieces = components(mask)
    for piece in pieces:
        assert (cleaned & piece).sum() in (0, piece.sum())
    if len(pieces):
        assert any((cleaned & piece).any() for piece in pieces if piece.sum() == pieces[0].sum())  # one of the largest


@quick
@given(MASKS)
def test_clean_of_no_share_changes_nothing(mask: NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(clean(mask, 0), mask)


def test_clean_is_quick_enough_for_each_answer() -> None:
    """A full-frame object of 2 megapixels in a few dozen milliseconds; the bound leaves room for a busy machine."""
    mask = np.ones((1080, 1920), np.bool_)
    mask[400:410, 500:520] = False
    began = time.perf_counter()
    assert clean(mask).all()
    assert time.perf_counter() - began < 3


def test_components_come_largest_first() -> None:
    pieces = components(drawn("#.##", "..##", "#..."))
    assert pieces.dtype == np.bool_
    np.testing.assert_array_equal(pieces, [drawn("..##", "..##", "...."), drawn("#...", "....", "...."), drawn("....", "....", "#...")])
    assert components(drawn("#.##", "..##", "#..."), most=1).shape == (1, 3, 4)
    assert components(drawn("...")).shape == (0, 1, 3)


@quick
@given(MASKS)
def test_components_add_up_and_do_not_overlap(mask: NDArray[np.bool_]) -> None:
    pieces = components(mask)
    np.testing.assert_array_equal(pieces.sum(axis=0), mask)
    areas = pieces.sum(axis=(1, 2))
    assert (areas[:-1] >= areas[1:]).all()


# -- comparing -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        pytest.param(drawn("##.."), drawn("##.."), 1.0, id="the same"),
        pytest.param(drawn("##.."), drawn(".##."), 1 / 3, id="one of three"),
        pytest.param(drawn("##.."), drawn("..##"), 0.0, id="apart"),
        pytest.param(drawn("...."), drawn("...#"), 0.0, id="one empty"),
        pytest.param(drawn("...."), drawn("...."), 1.0, id="two empty masks agree"),
    ],
)
def test_iou(a: NDArray[np.bool_], b: NDArray[np.bool_], iou: float) -> None:
    assert mask_iou(a, b) == mask_iou(b, a) == pytest.approx(iou)


def test_masks_of_other_shapes_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="one shape"):
        mask_iou(drawn("##"), drawn("##", "##"))
    with pytest.raises(ValueError, match="height, width"):
        clean(np.zeros((2, 3, 4), np.bool_))


def test_union() -> None:
    np.testing.assert_array_equal(union(np.array([drawn("#.."), drawn("..#")])), drawn("#.#"))
    np.testing.assert_array_equal(union(np.zeros((0, 2, 3), np.bool_)), np.zeros((2, 3), np.bool_))


@pytest.mark.parametrize(
    ("mask", "box"),
    [
        pytest.param(drawn("....", "...."), [0, 0, 0, 0], id="empty"),
        pytest.param(drawn("#...", "...."), [0, 0, 1, 1], id="first pixel"),
        pytest.param(drawn("....", "...#"), [3, 1, 4, 2], id="last pixel"),
        pytest.param(drawn(".#..", "..#."), [1, 0, 3, 2], id="diagonal"),
        pytest.param(drawn("####", "####"), [0, 0, 4, 2], id="all"),
    ],
)
def test_box(mask: NDArray[np.bool_], box: list[int]) -> None:
    found = box_of(mask)
    assert found.dtype == np.float32
    assert found.tolist() == box
