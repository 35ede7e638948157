"""Masks as run lengths: exact round trips, and encodings made to hurt."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from sam4mllm.errors import MaskCodecError
from sam4mllm.polygons import from_polygons
from sam4mllm.run_lengths import from_rle, rle_area, to_rle
from tests.small_masks import MASKS, drawn, quick

old_numpy_protocol = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools 2.0.11 decodes with a warning under NumPy 2; the package itself never decodes with it."""


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
