"""A mask as one polygon: filled as readers of YOLO's format fill it, it gives the mask back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from sam4mllm.masks import mask_iou
from sam4mllm.one_polygon import LEAST_IOU, fill, to_one_polygon

Mask = NDArray[np.bool_]
HEIGHT, WIDTH = 60, 80


def drawn(*boxes: tuple[int, int, int, int], holes: tuple[tuple[int, int, int, int], ...] = ()) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    for inside, some in ((True, boxes), (False, holes)):
        for x1, y1, x2, y2 in some:
            mask[y1:y2, x1:x2] = inside
    return mask


def line(x1: int, y1: int, x2: int, y2: int) -> Mask:
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.line(canvas, (x1, y1), (x2, y2), 1, 1)
    return canvas.astype(np.bool_)


EXACT: dict[str, Mask] = {
    "a square": drawn((10, 10, 30, 30)),
    "all of the picture": drawn((0, 0, WIDTH, HEIGHT)),
    "a hole": drawn((10, 10, 40, 40), holes=((20, 20, 30, 30),)),
    "holes side by side": drawn((10, 10, 50, 40), holes=((12, 12, 20, 30), (22, 12, 30, 30), (32, 12, 40, 30))),
    "a hole of a pixel": drawn((10, 10, 13, 13), holes=((11, 11, 12, 12),)),
    "a frame a pixel wide": drawn((10, 10, 40, 40), holes=((11, 11, 39, 39),)),
    "pieces that touch at a point": drawn((10, 10, 20, 20), (20, 20, 30, 30)),
    "a pixel": drawn((10, 10, 11, 11)),
    "a pixel in the corner": drawn((WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT)),
    "two pixels": drawn((10, 10, 12, 11)),
    "a row": drawn((10, 10, 40, 11)),
    "a slanted line": line(3, 5, 70, 41),
}


@pytest.mark.parametrize("mask", EXACT.values(), ids=EXACT.keys())
def test_a_mask_of_one_piece_comes_back(mask: Mask) -> None:
    polygons = to_one_polygon(mask)
    union = np.any([fill(polygon, HEIGHT, WIDTH) for polygon in polygons], axis=0)
    assert (union == mask).all()
    assert all(len(polygon) >= 3 for polygon in polygons)


@pytest.mark.parametrize(
    "mask", [drawn((5, 5, 35, 35), (40, 5, 70, 35)), drawn((5, 5, 50, 50)) & ~drawn((8, 8, 40, 40)) | drawn((10, 10, 36, 36))]
)
def test_pieces_side_by_side_or_in_each_other_are_one_polygon(mask: Mask) -> None:
    [polygon] = to_one_polygon(mask)
    assert mask_iou(fill(polygon, HEIGHT, WIDTH), mask) >= LEAST_IOU


def test_pieces_too_far_apart_are_a_polygon_each() -> None:
    mask = drawn((0, 0, 4, 4), (70, 50, 74, 54))
    first, second = to_one_polygon(mask)
    assert (fill(first, HEIGHT, WIDTH) | fill(second, HEIGHT, WIDTH) == mask).all()
    [joined] = to_one_polygon(mask, least_iou=0.0)
    assert (fill(joined, HEIGHT, WIDTH) & mask == mask).all()


def test_an_empty_mask_has_none() -> None:
    assert to_one_polygon(drawn()) == []


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24)), st.booleans())
def test_any_mask_comes_back(mask: Mask, coarse: bool) -> None:
    mask = np.kron(mask, np.ones((3, 3), np.bool_)) if coarse else mask
    filled = [fill(polygon, *mask.shape) for polygon in to_one_polygon(mask)]
    union = np.any(filled, axis=0) if filled else np.zeros_like(mask)
    pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    assert (union & mask == mask).all()
    assert len(filled) in {min(1, pieces), pieces}
    if len(filled) == pieces:
        assert (union == mask).all()
    else:
        assert mask_iou(union, mask) >= LEAST_IOU
