"""The way between pixels and thousandths, and boxes that a model got wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4mllm.geometry import MILLI, box_iou, distinct, order_box, to_milli, to_px

QUICK = settings(max_examples=150, deadline=None, database=None)
SIDES = st.integers(1, 20_000)
SHARES = st.floats(0, 1)


@QUICK
@given(width=SIDES, height=SIDES, x=SHARES, y=SHARES)
def test_pixels_come_back_within_half_a_thousandth(width: int, height: int, x: float, y: float) -> None:
    px = np.array([x * width, y * height])
    back = to_px(to_milli(px, width, height), width, height)
    assert np.all(np.abs(back - px) <= np.array([width, height]) / MILLI * 0.5 * (1 + 1e-3))


@QUICK
@given(width=SIDES, height=SIDES, milli=st.lists(st.integers(0, 999), min_size=4, max_size=4))
def test_thousandths_come_back_exactly(width: int, height: int, milli: list[int]) -> None:
    assert to_milli(to_px(milli, width, height), width, height).tolist() == milli


@pytest.mark.parametrize(
    ("px", "milli"),
    [
        pytest.param([0, 0], [0, 0], id="top left"),
        pytest.param([400, 200], [999, 999], id="bottom right edge"),
        pytest.param([399.9, 199.9], [999, 999], id="last pixel"),
        pytest.param([200, 100], [500, 500], id="middle"),
        pytest.param([0.39, 0.19], [0, 0], id="end of the first thousandth"),
        pytest.param([0.4, 0.2], [1, 1], id="start of the second thousandth"),
        pytest.param([-5, 1e9], [0, 999], id="outside"),
        pytest.param([100, 50, 300, 150], [250, 250, 750, 750], id="box"),
        pytest.param([[100, 50], [300, 150]], [[250, 250], [750, 750]], id="points"),
        pytest.param([[[100, 50, 300, 150]]], [[[250, 250, 750, 750]]], id="any leading axes"),
        pytest.param(np.zeros((0, 4)), np.zeros((0, 4)).tolist(), id="no boxes"),
    ],
)
def test_to_milli(px: object, milli: object) -> None:
    found = to_milli(px, 400, 200)  # type: ignore[arg-type]
    assert found.dtype == np.int64
    assert found.shape == np.shape(px)
    assert found.tolist() == milli


@pytest.mark.parametrize("width", [1, 3, 7, 333, 640, 999, 1000, 1001, 4032])
def test_thousandth_of_whole_pixels_is_exact(width: int) -> None:
    """Division before multiplication could fall just short of a whole thousandth."""
    px = np.arange(width)
    expected = px * 1000 // width
    assert np.array_equal(to_milli(np.stack([px, px], -1), width, width)[:, 0], expected)


def test_to_px_gives_the_middle_of_the_thousandth() -> None:
    found = to_px([0, 999, 500, 250], 400, 200)
    assert found.dtype == np.float32
    assert found == pytest.approx([0.2, 199.9, 200.2, 50.1])


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (-1, 5)])
def test_image_without_area_is_refused(width: int, height: int) -> None:
    with pytest.raises(ValueError, match=f"an image has positive sides, not {width} x {height}"):
        to_milli([0, 0], width, height)
    with pytest.raises(ValueError, match="positive sides"):
        to_px([0, 0], width, height)


@pytest.mark.parametrize(
    ("box", "ordered"),
    [
        pytest.param([10, 20, 30, 40], [10, 20, 30, 40], id="in order"),
        pytest.param([30, 40, 10, 20], [10, 20, 30, 40], id="inverted"),
        pytest.param([30, 20, 10, 40], [10, 20, 30, 40], id="one axis inverted"),
        pytest.param([-5, -5, 500, 500], [0, 0, 100, 50], id="larger than the image"),
        pytest.param([-9, -9, -5, -5], [0, 0, 1, 1], id="left of and above the image"),
        pytest.param([300, 300, 400, 400], [99, 49, 100, 50], id="right of and below the image"),
        pytest.param([10, 20, 10, 20], [10, 20, 11, 21], id="a point"),
        pytest.param([10.2, 20.2, 10.7, 40], [10.2, 20.2, 11.2, 40], id="narrower than a pixel"),
        pytest.param([99.5, 49.5, 99.6, 49.6], [99, 49, 100, 50], id="a point at the far corner"),
        pytest.param([100, 50, 100, 50], [99, 49, 100, 50], id="a point on the far edge"),
        pytest.param([0, 0, 0, 0], [0, 0, 1, 1], id="a point at the near corner"),
    ],
)
def test_order_box(box: list[float], ordered: list[float]) -> None:
    found = order_box(np.array(box, np.float32), 100, 50)
    assert found.dtype == np.float32
    assert found == pytest.approx(np.array(ordered))


@QUICK
@given(
    box=st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-50, 400, width=32), min_size=4, max_size=4),
    width=st.integers(1, 20_000),
    height=st.integers(1, 20_000),
)
def test_any_finite_box_becomes_valid(box: list[float], width: int, height: int) -> None:
    x1, y1, x2, y2 = order_box(np.array(box, np.float32), width, height).astype(float)
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height
    assert min(x2 - x1, y2 - y1) > 1 - 2e-3  # float32 near 20,000
    again = order_box(np.array([x1, y1, x2, y2], np.float32), width, height)
    assert again == pytest.approx([x1, y1, x2, y2], abs=2e-3)


def test_iou_by_hand() -> None:
    a = np.array([[0, 0, 10, 10], [0, 0, 4, 2]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [10, 0, 20, 10], [2, 1, 6, 3], [2, 2, 8, 8]], np.float32)
    expected = [
        [1, 25 / 175, 0, 8 / 100, 36 / 100],
        [8 / 100, 0, 0, 2 / 14, 0],
    ]
    found = box_iou(a, b)
    assert found.dtype == np.float64
    assert found == pytest.approx(np.array(expected))
    assert box_iou(b, a) == pytest.approx(np.array(expected).T)


def test_iou_of_boxes_without_area_is_zero() -> None:
    empty = np.array([[5, 5, 5, 5]], np.float32)
    assert box_iou(empty, empty).tolist() == [[0]]
    assert box_iou(empty, np.array([[0, 0, 9, 9]], np.float32)).tolist() == [[0]]


def test_iou_of_nothing() -> None:
    some = np.zeros((3, 4), np.float32)
    assert box_iou(np.zeros((0, 4), np.float32), some).shape == (0, 3)
    assert box_iou(some, np.zeros((0, 4), np.float32)).shape == (3, 0)


def test_a_box_that_repeats_an_earlier_one_is_left_out() -> None:
    boxes = np.array([[0, 0, 100, 100], [1, 0, 100, 100], [50, 0, 150, 100], [0, 0, 100, 100], [51, 0, 150, 100]], np.float32)
    assert distinct(boxes, 0.9) == [0, 2]
    assert distinct(boxes[:0], 0.9) == []
