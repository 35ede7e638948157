"""Regions back to masks: what we drew comes back, and foreign regions raise one line or give a mask."""

from __future__ import annotations

import base64
import contextlib
import io
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backend import brush
from backend.errors import TaskError
from backend.label_studio.label_config import read_label_config
from backend.label_studio.read_regions import from_region
from backend.label_studio.write_regions import _DRAW
from tests.review_fakes import CONFIG, HEIGHT, WIDTH, Mask, blob
from tests.test_wire import JSON

TAGS = ("BrushLabels", "BitmaskLabels", "PolygonLabels", "RectangleLabels")
CONFIGS = {tag: read_label_config(CONFIG.replace("BrushLabels", tag)) for tag in TAGS}
FIELDS = ("rle", "imageDataURL", "points", "x", "y", "width", "height", "rotation")


def region(value: object, height: object = HEIGHT, width: object = WIDTH, **more: object) -> dict[str, Any]:
    return {"original_height": height, "original_width": width, "image_rotation": 0, "value": value, **more}


def png(pixels: np.ndarray[Any, Any], mode: str | None = None) -> str:
    data = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def refused(value: object, tag: str, **more: Any) -> str:
    with pytest.raises(TaskError) as caught:
        from_region(region(value, **more), CONFIGS[tag])
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("tag", TAGS)
def test_a_rectangle_comes_back_whatever_it_was_drawn_as(tag: str) -> None:
    [value] = _DRAW[tag](blob(5, 3, 11))
    mask, height, width = from_region(region(value), CONFIGS[tag])
    assert (height, width, mask.dtype) == (HEIGHT, WIDTH, np.bool_)
    assert (mask == blob(5, 3, 11)).all()


@pytest.mark.parametrize("tag", ["BrushLabels", "BitmaskLabels"])
def test_any_mask_comes_back_from_a_raster(tag: str) -> None:
    mask: Mask = np.random.default_rng(3).random((HEIGHT, WIDTH)) < 0.3
    [value] = _DRAW[tag](mask)
    assert (from_region(region(value), CONFIGS[tag])[0] == mask).all()


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA"])
def test_every_png_with_transparency_is_read(mode: str) -> None:
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[2:5, 3:9, 3] = 255
    if mode == "PA":
        data = io.BytesIO()
        Image.fromarray((pixels[..., 3] > 0).astype(np.uint8), "P").save(data, "PNG", transparency=b"\x00\xff")
        url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    else:
        url = png(pixels, mode)
    mask, *_ = from_region(region({"imageDataURL": url}), CONFIGS["BitmaskLabels"])
    assert (mask == (pixels[..., 3] > 0)).all()


def test_a_rectangle_turns_about_its_corner_in_pixels() -> None:
    """A quarter turn of a box of 8 by 4 pixels with its corner at (16, 8): it now lies left of the corner, 4 wide and 8 high."""
    value = {"x": 50.0, "y": 100 / 3, "width": 25.0, "height": 100 / 6, "rotation": 90}
    mask, *_ = from_region(region(value), CONFIGS["RectangleLabels"])
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 15, 12, 15)
    assert mask.sum() == 32


def test_polygons_may_reach_outside() -> None:
    value = {"points": [[-50, -50], [50, -50], [50, 150], [-50, 150]]}
    mask, *_ = from_region(region(value), CONFIGS["PolygonLabels"])
    assert mask[:, :16].all()
    assert not mask[:, 16:].any()


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [
        pytest.param("BrushLabels", {}, "not NoneType", id="no rle"),
        pytest.param("BrushLabels", {"rle": [0, 0, 12, 0, 1]}, "cut short", id="truncated"),
        pytest.param("BrushLabels", {"rle": [256, -1]}, "0 to 255", id="no bytes"),
        pytest.param("BrushLabels", {"rle": "AAAA"}, "not str", id="text"),
        pytest.param("BitmaskLabels", {}, "no PNG", id="no url"),
        pytest.param("BitmaskLabels", {"imageDataURL": "http://evil/a.png"}, "no PNG", id="an address"),
        pytest.param("BitmaskLabels", {"imageDataURL": "data:image/png;base64,!"}, "damaged", id="no base64"),
        pytest.param("BitmaskLabels", {"imageDataURL": "data:image/png;base64,é"}, "damaged", id="no ascii"),
        pytest.param("BitmaskLabels", {"imageDataURL": "data:image/png;base64,AAAA"}, "damaged", id="no PNG"),
        pytest.param("BitmaskLabels", {"imageDataURL": png(np.zeros((9, 9, 4), np.uint8))}, "9 x 9", id="another size"),
        pytest.param("BitmaskLabels", {"imageDataURL": png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))}, "no alpha", id="no alpha"),
        pytest.param(
            "BitmaskLabels",
            {"imageDataURL": png(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8))[:2000]},
            "damaged",
            id="cut short",
        ),
        pytest.param("PolygonLabels", {"points": None}, "x, y pairs", id="no points"),
        pytest.param("PolygonLabels", {"points": [[1, 2, 3]]}, "x, y pairs", id="three coordinates"),
        pytest.param("PolygonLabels", {"points": [["1", "2"]]}, "numbers", id="texts"),
        pytest.param("PolygonLabels", {"points": [[float("nan"), 2]]}, "numbers", id="nan"),
        pytest.param("PolygonLabels", {"points": [[10**400, 2]]}, "numbers", id="huge"),
        pytest.param("PolygonLabels", {"points": [[1, 2]] * 100_001}, "at most 100,000", id="too many"),
        pytest.param("RectangleLabels", {"x": 1, "y": 1, "width": True, "height": 1}, "numbers", id="no number"),
        pytest.param("RectangleLabels", {"x": 1, "y": 1, "width": 1, "height": 1, "rotation": "a"}, "numbers", id="no angle"),
        pytest.param("RectangleLabels", [1], "no value", id="no object"),
    ],
)
def test_what_is_malformed_is_told(tag: str, value: object, reason: str) -> None:
    assert reason in refused(value, tag)


SIDES: dict[str, tuple[object, str]] = {
    "none": (None, "does not say how large"),
    "zero": (0, "whole number of pixels"),
    "negative": (-1, "whole number of pixels"),
    "a truth": (True, "whole number of pixels"),
    "a fraction": (23.5, "whole number of pixels"),
    "nan": (float("nan"), "whole number of pixels"),
    "infinite": (float("inf"), "whole number of pixels"),
    "huge": (1 << 40, "whole number of pixels"),
    "too long for a float": (10**400, "whole number of pixels"),
    "a word": ("wide", "whole number of pixels"),
    "a list": ([24], "whole number of pixels"),
}


@pytest.mark.parametrize(("side", "reason"), SIDES.values(), ids=SIDES.keys())
@pytest.mark.parametrize("tag", TAGS)
def test_a_size_that_cannot_be_is_told(tag: str, side: object, reason: str) -> None:
    assert reason in refused({}, tag, height=side)
    assert reason in refused({}, tag, width=side)


@pytest.mark.parametrize("form", [float, str, lambda side: f"{side}.0"], ids=["a float", "text", "a float as text"])
@pytest.mark.parametrize("tag", TAGS)
def test_a_size_may_be_written_in_other_forms(tag: str, form: Callable[[int], object]) -> None:
    [value] = _DRAW[tag](blob(5, 3, 11))
    mask, height, width = from_region(region(value, form(HEIGHT), form(WIDTH)), CONFIGS[tag])
    assert ((height, width), type(height)) == ((HEIGHT, WIDTH), int)
    assert (mask == blob(5, 3, 11)).all()


FAINT: dict[str, tuple[list[int], list[int]]] = {
    "opaque, with antialiased edges": ([0, 1, 127, 128, 255], [0, 0, 0, 1, 1]),
    "as the SDK colours contours": ([0, 1, 50, 51, 100], [0, 0, 0, 1, 1]),
    "a mask of 0 and 1": ([0, 1, 0, 1, 1], [0, 1, 0, 1, 1]),
    "of 0 and 2": ([0, 2, 0, 2, 2], [0, 1, 0, 1, 1]),
    "all of it": ([100, 100, 100, 100, 100], [1, 1, 1, 1, 1]),
}


@pytest.mark.parametrize(("levels", "inside"), FAINT.values(), ids=FAINT.keys())
@pytest.mark.parametrize("tag", ["BrushLabels", "BitmaskLabels"])
def test_what_is_half_as_opaque_as_its_most_opaque_pixel_is_in_the_mask(tag: str, levels: list[int], inside: list[int]) -> None:
    alpha = np.array([levels], np.uint8)
    value = {"rle": brush.encode(alpha), "imageDataURL": png(np.stack([alpha] * 4, -1))}
    mask, *_ = from_region(region(value, 1, 5), CONFIGS[tag])
    assert mask.tolist() == [[bool(one) for one in inside]]


def test_a_faint_palette_is_read_by_its_alpha() -> None:
    data = io.BytesIO()
    Image.fromarray(blob(4).astype(np.uint8), "P").save(data, "PNG", transparency=b"\x00\x30")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    assert (from_region(region({"imageDataURL": url}), CONFIGS["BitmaskLabels"])[0] == blob(4)).all()


def test_grey_without_alpha_is_refused_as_what_it_is() -> None:
    assert "no alpha channel" in refused({"imageDataURL": png(blob(4).astype(np.uint8) * 255, "L")}, "BitmaskLabels")


ZERO = {"x": 10.0, "y": 10.0, "rotation": 0}
EMPTY: dict[str, tuple[str, dict[str, Any], str]] = {
    "a brush without alpha": ("BrushLabels", {"rle": brush.encode(np.zeros((HEIGHT, WIDTH), np.uint8))}, "covers no pixel"),
    "a transparent bitmask": ("BitmaskLabels", {"imageDataURL": png(np.zeros((HEIGHT, WIDTH, 4), np.uint8))}, "covers no pixel"),
    "a polygon along a line": ("PolygonLabels", {"points": [[5, 5], [50, 5], [20, 5]]}, "covers no pixel"),
    "a polygon outside": ("PolygonLabels", {"points": [[150, 5], [190, 5], [190, 90]]}, "covers no pixel"),
    "a polygon of two points": ("PolygonLabels", {"points": [[5, 5], [50, 5]]}, "2 of the 3 points"),
    "a polygon of none": ("PolygonLabels", {"points": []}, "0 of the 3 points"),
    "a rectangle without width": ("RectangleLabels", {**ZERO, "width": 0, "height": 20}, "covers no pixel"),
    "an ellipse without height": ("BrushLabels", {**ZERO, "radiusX": 5, "radiusY": 0}, "covers no pixel"),
}


@pytest.mark.parametrize(("tag", "value", "reason"), EMPTY.values(), ids=EMPTY.keys())
def test_a_mask_without_a_pixel_is_refused_as_that(tag: str, value: dict[str, Any], reason: str) -> None:
    more = {"type": "ellipselabels"} if "radiusX" in value else {}
    assert reason in refused(value, tag, **more)


@pytest.mark.parametrize("tag", TAGS)
def test_nothing_is_allocated_for_a_size_that_is_not_borne_out(tag: str) -> None:
    """A stated size of 49 million pixels with next to no data behind it, where the data says the size; else one that is not allowed."""
    [value] = _DRAW[tag](blob(4))
    side = 7000 if tag in ("BrushLabels", "BitmaskLabels") else 8000
    tracemalloc.start()
    try:
        refused(value, tag, height=side, width=side)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@given(st.dictionaries(st.sampled_from(FIELDS), JSON | st.floats(), max_size=8) | JSON, JSON, st.sampled_from(TAGS))
def test_foreign_regions_raise_nothing_else(value: object, rotation: object, tag: str) -> None:
    with contextlib.suppress(TaskError):
        mask, height, width = from_region(region(value, image_rotation=rotation), CONFIGS[tag])
        assert mask.shape == (height, width) == (HEIGHT, WIDTH)
