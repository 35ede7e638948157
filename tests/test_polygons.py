"""Masks as polygons: drawn cases, exact round trips, and outlines made to hurt."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam4mllm.errors import MaskCodecError
from sam4mllm.masks import components, mask_iou
from sam4mllm.polygons import from_polygons, to_polygons
from tests.small_masks import MASKS, RING, drawn, quick


def test_an_outline_runs_along_the_sides_of_the_pixels() -> None:
    (polygon,) = to_polygons(drawn("....", ".##.", "...."))
    assert polygon.dtype == np.float32
    assert polygon.tolist() == [[1, 1], [3, 1], [3, 2], [1, 2]]


def test_a_hole_is_joined_by_a_cut() -> None:
    mask = drawn("###", "#.#", "###")
    (polygon,) = to_polygons(mask)
    assert polygon.tolist() == [[0, 0], [1, 0], [1, 1], [1, 2], [2, 2], [2, 1], [1, 1], [1, 0], [3, 0], [3, 3], [0, 3]]


def test_the_winding_leaves_holes_empty_wherever_it_is_drawn() -> None:
    """A canvas fills by the nonzero rule: the signed area is that of the mask, with the hole taken off."""
    mask = drawn("#####", "#.#.#", "#####", "..###")
    (polygon,) = to_polygons(mask)
    x, y = polygon.T
    assert (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2 == mask.sum()


@pytest.mark.parametrize(
    ("mask", "count"),
    [
        pytest.param(drawn("...", "..."), 0, id="empty"),
        pytest.param(drawn("#"), 1, id="one pixel"),
        pytest.param(drawn("#.#"), 2, id="two pieces"),
        pytest.param(drawn("#.", ".#"), 1, id="touching in a point"),
        pytest.param(drawn(".#", "#."), 1, id="touching in the other point"),
        pytest.param(RING, 2, id="a piece in a hole"),
        pytest.param(drawn("#######", "#.#.#.#", "#######"), 1, id="three holes from one side"),
        pytest.param(drawn("###", "#.#", "###", "#.#", "###"), 1, id="a hole below a hole"),
        pytest.param(drawn("####", "#.##", "##.#", "####"), 1, id="holes touching in a point"),
    ],
)
def test_polygons_give_the_mask_back(mask: NDArray[np.bool_], count: int) -> None:
    polygons = to_polygons(mask)
    assert len(polygons) == count
    np.testing.assert_array_equal(from_polygons(polygons, *mask.shape), mask)


@settings(deadline=None, max_examples=400)
@given(MASKS)
@example(np.indices((13, 13)).sum(axis=0) % 2 == 0)
@example(np.indices((13, 13)).sum(axis=0) % 2 == 1)
@example(~((np.indices((13, 13)) % 2 == 1).all(axis=0)))
def test_polygons_give_any_mask_back(mask: NDArray[np.bool_]) -> None:
    polygons = to_polygons(mask)
    np.testing.assert_array_equal(from_polygons(polygons, *mask.shape), mask)
    assert len(polygons) == len(components(mask, most=1000))
    assert all((polygon != np.roll(polygon, 1, axis=0)).any(axis=1).all() or len(polygon) > 4 for polygon in polygons)


def test_a_simplified_outline_has_few_points_and_stays_near() -> None:
    rows, columns = np.indices((200, 300))
    mask = (columns - 150) ** 2 / 4 + (rows - 100) ** 2 < 60**2
    (exact,), (simple,) = to_polygons(mask), to_polygons(mask, tolerance_px=1.5)
    assert len(simple) < 40 < len(exact)
    assert mask_iou(from_polygons([simple], 200, 300), mask) > 0.98


def test_a_simplified_speck_does_not_vanish() -> None:
    mask = drawn("....", ".#..", "....")
    np.testing.assert_array_equal(from_polygons(to_polygons(mask, tolerance_px=5), 3, 4), mask)


@pytest.mark.parametrize(
    ("polygons", "expected"),
    [
        pytest.param([], drawn("....", "....", "...."), id="none"),
        pytest.param([[]], drawn("....", "....", "...."), id="no points"),
        pytest.param([[[1, 1]]], drawn("....", "....", "...."), id="one point"),
        pytest.param([[[0, 0], [4, 3]]], drawn("....", "....", "...."), id="two points"),
        pytest.param([[[1, 1], [3, 1], [3, 2], [1, 2]]], drawn("....", ".##.", "...."), id="along the sides"),
        pytest.param([[[1, 2], [3, 2], [3, 1], [1, 1]]], drawn("....", ".##.", "...."), id="the other way round"),
        pytest.param([[[1.4, 1.4], [2.6, 1.4], [2.6, 1.6], [1.4, 1.6]]], drawn("....", ".##.", "...."), id="the centres count"),
        pytest.param([[[1.6, 1.0], [2.4, 1.0], [2.4, 2.0], [1.6, 2.0]]], drawn("....", "....", "...."), id="between the centres"),
        pytest.param([[[-9, -9], [99, -9], [99, 99], [-9, 99]]], drawn("####", "####", "####"), id="around the image"),
        pytest.param([[[-9, 1], [2, 1], [2, 2], [-9, 2]]], drawn("....", "##..", "...."), id="out to the left"),
        pytest.param([[[9, 1], [2, 1], [2, 2], [9, 2]]], drawn("....", "..##", "...."), id="out to the right"),
        pytest.param([[[-9, 1], [-5, 1], [-5, 2], [-9, 2]]], drawn("....", "....", "...."), id="left of it"),
        pytest.param([[[7, 1], [8, 1], [8, 2], [7, 2]]], drawn("....", "....", "...."), id="right of it"),
        pytest.param([[[0, 0], [4, 0], [0, 3]]], drawn("###.", "##..", "#..."), id="triangle"),
        pytest.param(
            [[[0, 0], [2, 0], [2, 3], [0, 3]], [[1, 0], [3, 0], [3, 3], [1, 3]]],
            drawn("###.", "###.", "###."),
            id="overlapping ones add up",
        ),
    ],
)
def test_polygons_drawn(polygons: list[list[list[float]]], expected: NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(from_polygons(polygons, 3, 4), expected)


@quick
@given(st.lists(st.tuples(st.floats(-5, 15, width=32), st.floats(-5, 15, width=32)), max_size=8))
def test_a_polygon_covers_the_centres_inside_it(points: list[tuple[float, float]]) -> None:
    """Against opencv, for every centre that is not on the outline itself."""
    mask = from_polygons([points], 9, 11)
    contour = np.array(points, np.float32).reshape(-1, 1, 2)
    if len(points) < 3:
        assert not mask.any()
        return
    for row, column in np.ndindex(mask.shape):
        distance = cv2.pointPolygonTest(contour, (column + 0.5, row + 0.5), True)
        if abs(distance) > 1e-3:
            assert mask[row, column] == (distance > 0)


@pytest.mark.parametrize(
    "polygon",
    [
        pytest.param([[0, 0], [1, np.nan], [1, 1]], id="not a number"),
        pytest.param([[0, 0], [np.inf, 0], [1, 1]], id="infinite"),
        pytest.param([[0, 0], [1e300, 0], [1, 1]], id="too far"),
        pytest.param([0, 0, 4, 0, 4, 3], id="flat"),
        pytest.param([[0, 0, 1], [1, 0, 1], [1, 1, 1]], id="three coordinates"),
        pytest.param([[0, 0], [1]], id="ragged"),
        pytest.param("no polygon", id="text"),
        pytest.param([["a", "b"]], id="letters"),
        pytest.param([[None, None]], id="null"),
        pytest.param({"x": 1}, id="object"),
    ],
)
def test_what_is_no_polygon_is_refused(polygon: object) -> None:
    with pytest.raises(MaskCodecError, match="polygon"):
        from_polygons([polygon], 3, 4)  # type: ignore[list-item]


def test_an_endless_polygon_is_refused_before_it_is_filled() -> None:
    zigzag = np.array([[0, 0], [10, 4000]] * 5000)
    began = time.perf_counter()
    with pytest.raises(MaskCodecError, match="simplify"):
        from_polygons([zigzag], 4000, 100)
    assert time.perf_counter() - began < 5
