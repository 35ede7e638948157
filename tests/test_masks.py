"""Masks tidied, compared and written: drawn cases, exact round trips, and encodings made to hurt."""

from __future__ import annotations

import json
import time

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco

from sam4mllm.errors import MaskCodecError
from sam4mllm.masks import box_of, clean, components, mask_iou, union
from sam4mllm.polygons import from_polygons, to_polygons
from sam4mllm.run_lengths import from_rle, rle_area, to_rle

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))
quick = settings(deadline=None, max_examples=200)
old_numpy_protocol = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools 2.0.11 decodes with a warning under NumPy 2; the package itself never decodes with it."""


def drawn(*rows: str) -> NDArray[np.bool_]:
    """A mask from its picture: # is inside."""
    return np.array([[mark == "#" for mark in row] for row in rows], np.bool_)


# -- tidying -------------------------------------------------------------------------------------------------------------------------------

RING = drawn("#####", "#...#", "#.#.#", "#...#", "#####")


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


# -- polygons ------------------------------------------------------------------------------------------------------------------------------


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


# -- run lengths ---------------------------------------------------------------------------------------------------------------------------


@old_numpy_protocol
@settings(deadline=None, max_examples=400)
@given(MASKS)
@example(np.zeros((1, 1), np.bool_))
@example(np.ones((1, 1), np.bool_))
@example(np.zeros((300, 200), np.bool_))
@example(np.ones((300, 200), np.bool_))
@example(np.indices((40, 50)).sum(axis=0) % 2 == 0)
def test_run_lengths_give_any_mask_back(mask: NDArray[np.bool_]) -> None:
    height, width = mask.shape
    rle = json.loads(json.dumps(to_rle(mask)))
    decoded = from_rle(rle, height, width)
    assert decoded.dtype == np.bool_
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, mask)
    np.testing.assert_array_equal(coco.decode(rle), mask)
    assert rle_area(rle, height, width) == mask.sum()


@quick
@given(MASKS)
def test_plain_lists_of_counts_are_read_too(mask: NDArray[np.bool_]) -> None:
    height, width = mask.shape
    pixels = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff([0, *edges, len(pixels)]).tolist()
    counts = [0, *counts] if pixels[0] else counts
    np.testing.assert_array_equal(from_rle({"size": [height, width], "counts": counts}, height, width), mask)


def test_bytes_from_pycocotools_are_read() -> None:
    mask = drawn("##..", ".##.")
    np.testing.assert_array_equal(from_rle(coco.encode(np.asfortranarray(mask, np.uint8)), 2, 4), mask)


@old_numpy_protocol
@quick
@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=12))
def test_counts_of_any_length_are_read_as_pycocotools_writes_them(counts: list[int]) -> None:
    height, width = 1, max(len(counts), sum(counts))
    counts[-1] += width - sum(counts)
    rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    np.testing.assert_array_equal(from_rle(rle, height, width), coco.decode(rle))


GOOD = to_rle(drawn("##..", ".##."))["counts"]


@pytest.mark.parametrize(
    "rle",
    [
        pytest.param({"size": [2, 4]}, id="no counts"),
        pytest.param({"counts": GOOD}, id="no size"),
        pytest.param({"size": [4, 2], "counts": GOOD}, id="sides swapped"),
        pytest.param({"size": [2, 5], "counts": GOOD}, id="another size"),
        pytest.param({"size": 8, "counts": GOOD}, id="size a number"),
        pytest.param({"size": [2, 4, 1], "counts": GOOD}, id="size of three"),
        pytest.param({"size": [2, None], "counts": GOOD}, id="size of nothing"),
        pytest.param({"size": [2, 4], "counts": ""}, id="empty text"),
        pytest.param({"size": [2, 4], "counts": GOOD[:-1]}, id="cut off"),
        pytest.param({"size": [2, 4], "counts": GOOD + "1"}, id="a run too many"),
        pytest.param({"size": [2, 4], "counts": GOOD + "P"}, id="ends inside a number"),
        pytest.param({"size": [2, 4], "counts": "9"}, id="one too many pixels"),
        pytest.param({"size": [2, 4], "counts": "7"}, id="one too few pixels"),
        pytest.param({"size": [2, 4], "counts": "M;"}, id="negative count"),
        pytest.param({"size": [2, 4], "counts": "000J0<"}, id="negative by difference"),
        pytest.param({"size": [2, 4], "counts": "oooooooooo0"}, id="a number without end"),
        pytest.param({"size": [2, 4], "counts": "oooooo?"}, id="a huge number"),
        pytest.param({"size": [2, 4], "counts": "ooooooO8"}, id="a huge negative number"),
        pytest.param({"size": [2, 4], "counts": "8" + "0" * 10_000}, id="runs of nothing without end"),
        pytest.param({"size": [2, 4], "counts": "\x00"}, id="below the alphabet"),
        pytest.param({"size": [2, 4], "counts": "p"}, id="above the alphabet"),
        pytest.param({"size": [2, 4], "counts": "8é"}, id="no ascii"),
        pytest.param({"size": [2, 4], "counts": "\ud800"}, id="half a character"),
        pytest.param({"size": [2, 4], "counts": b"\xff\xfe"}, id="bytes beyond ascii"),
        pytest.param({"size": [2, 4], "counts": None}, id="null"),
        pytest.param({"size": [2, 4], "counts": 8}, id="a number"),
        pytest.param({"size": [2, 4], "counts": {}}, id="an object"),
        pytest.param({"size": [2, 4], "counts": []}, id="empty list"),
        pytest.param({"size": [2, 4], "counts": [4, 5]}, id="list too long"),
        pytest.param({"size": [2, 4], "counts": [4, 3]}, id="list too short"),
        pytest.param({"size": [2, 4], "counts": [9, -1]}, id="negative in a list"),
        pytest.param({"size": [2, 4], "counts": [10**30, 8 - 10**30]}, id="beyond 64 bits"),
        pytest.param({"size": [2, 4], "counts": [2**63, -(2**63) + 8]}, id="around 64 bits"),
        pytest.param({"size": [2, 4], "counts": [4.0, 4.0]}, id="fractions"),
        pytest.param({"size": [2, 4], "counts": [True, 7]}, id="truth values"),
        pytest.param({"size": [2, 4], "counts": ["4", "4"]}, id="numbers as text"),
        pytest.param({"size": [2, 4], "counts": [[4], [4]]}, id="nested"),
        pytest.param({"size": [2, 4], "counts": [0] * 100_000 + [8]}, id="a list of nothing without end"),
        pytest.param([], id="a list for an object"),
        pytest.param(None, id="null for an object"),
    ],
)
def test_hostile_run_lengths_are_refused(rle: dict[str, object]) -> None:
    for read in (from_rle, rle_area):
        with pytest.raises(MaskCodecError) as caught:
            read(rle, 2, 4)
        assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=1000)
@given(st.text(alphabet=[chr(code) for code in range(47, 113)], max_size=30) | st.text(max_size=10) | st.binary(max_size=30))
def test_any_text_gives_a_mask_or_one_error(counts: str | bytes) -> None:
    try:
        mask = from_rle({"size": [3, 5], "counts": counts}, 3, 5)
    except MaskCodecError:
        return
    assert mask.shape == (3, 5)
    np.testing.assert_array_equal(from_rle(to_rle(mask), 3, 5), mask)


@pytest.mark.parametrize(
    ("height", "width"), [(0, 4), (2, 0), (-2, -4), (100_000, 100_000), (1, 50_000_001)], ids=["flat", "thin", "negative", "vast", "long"]
)
def test_a_size_is_checked_before_memory_is_taken(height: int, width: int) -> None:
    rle = {"size": [height, width], "counts": [height * width]}
    with pytest.raises(MaskCodecError, match="not allowed"):
        from_rle(rle, height, width)
    with pytest.raises(MaskCodecError, match="not allowed"):
        from_polygons([], height, width)


def test_the_cap_can_be_set() -> None:
    rle = to_rle(drawn("##", "##"))
    assert from_rle(rle, 2, 2, max_pixels=4).all()
    with pytest.raises(MaskCodecError, match="at most 3"):
        from_rle(rle, 2, 2, max_pixels=3)


def test_a_mask_of_no_pixels_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="one pixel"):
        to_rle(np.zeros((0, 5), np.bool_))
