"""From a region that Label Studio sends to its mask: the inverse of :mod:`backend.label_studio.write_regions`. A region is foreign data."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from backend import brush
from backend.errors import TaskError
from backend.label_studio.label_config import LabelConfig
from sam4mllm.errors import MaskCodecError
from sam4mllm.images import MAX_PIXELS
from sam4mllm.polygons import from_polygons

PNG_URL = "data:image/png;base64,"
MAX_POINTS = 100_000
ELLIPSE_CORNERS = 720
"""Corners of an ellipse's polygon: of one of 5,000 pixels across, its sides lie within 0.03 pixels of the curve."""
MAX_PERCENT = 1000.0
"""The largest absolute coordinate that is accepted, in percent of the picture's side; the same holds for lengths and for degrees. A shape
may be dragged past the border, but not this far.
"""

MIN_CORNERS = 3
EMPTY = "a region covers no pixel of its image; draw it again, or delete it, which says that nothing is there"

Mask = NDArray[np.bool_]


def from_region(region: Mapping[str, Any], config: LabelConfig, max_pixels: int = MAX_PIXELS) -> tuple[Mask, int, int]:
    """Return the mask (height, width) bool of a region of the config's mask control, with its height and width.

    A region whose type is known is read as that type, any other as the mask control's. The mask has at least one pixel. An empty mask is
    refused, because it does not mean that the object is missing, as a deleted region does: it may have been saved while its layer was
    hidden. No memory of the mask's size is allocated before the size and the encoding have been checked.

    Raises:
        TaskError: one line; the region has no size or too large a one, was drawn on a turned image, or its mask is malformed, cut short,
            empty, or of another size than the region says.
    """
    kind = region.get("type")
    return read_mask(region, kind if isinstance(kind, str) and kind in _READ else config.mask.drawing.lower(), max_pixels)


def read_mask(region: Mapping[str, Any], kind: str, max_pixels: int = MAX_PIXELS) -> tuple[Mask, int, int]:
    """Return the same as :func:`from_region` for a region of a known type (``kind``), such as ``brushlabels``. Raises TaskError."""
    height, width = _size(region, max_pixels)
    if region.get("image_rotation") not in (None, 0, 360):
        raise TaskError("a region was drawn on a turned image; turn it back and draw again")
    value = region.get("value")
    if not isinstance(value, dict):
        raise TaskError("a region has no value")
    try:
        mask = _READ[kind](value, height, width)
    except MaskCodecError as error:
        raise TaskError(str(error)) from error
    if not mask.any():
        raise TaskError(EMPTY)
    return mask, height, width


def _size(region: Mapping[str, Any], max_pixels: int) -> tuple[int, int]:
    height, width = (_side(region.get(name), name) for name in ("original_height", "original_width"))
    if height * width > max_pixels:
        raise TaskError(f"a region's image of {width} x {height} pixels is too large; at most {max_pixels:,} are read")
    return height, width


def _side(value: object, name: str) -> int:
    """Return a side of a region's image in pixels: a whole number, also if it is written as 640.0 or as text. Raises TaskError."""
    if value is None:
        raise TaskError(f"a region does not say how large its image is; it has no {name}")
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not (number.is_integer() and 0 < number < 1 << 31):
        raise TaskError(f"a region's {name} is {ascii(value)[:40]}; it is a whole number of pixels")
    return int(number)


def _opaque(alpha: NDArray[np.uint8]) -> Mask:
    """Return the pixels that are more than half as opaque as the most opaque one.

    Label Studio shows every alpha above 0, and tools differ in the alpha that they write: the editor 255 with antialiased edges, the SDK's
    contour2rle 100, its mask2rle of a mask of 0 and 1 no more than 1.
    """
    return np.asarray(alpha > int(alpha.max(initial=0)) // 2)


def _brush(value: Mapping[str, Any], height: int, width: int) -> Mask:
    return _opaque(brush.decode(value.get("rle"), height, width))  # type: ignore[arg-type]  # decode checks the type itself


def _bitmask(value: Mapping[str, Any], height: int, width: int) -> Mask:
    url = value.get("imageDataURL")
    if not isinstance(url, str) or not url.startswith(PNG_URL):
        raise TaskError("a bitmask region holds no PNG image")
    try:
        image = PngImageFile(io.BytesIO(base64.b64decode(url[len(PNG_URL) :], validate=True)))
        if image.size == (width, height) and image.has_transparency_data:
            return _opaque(np.asarray(image.convert("RGBA").getchannel("A")))
    except Exception as error:  # a decoder on foreign bytes raises almost anything
        raise TaskError("a bitmask region's PNG image is damaged or cut short") from error
    if image.size != (width, height):
        raise TaskError(f"a bitmask is of {image.size[0]} x {image.size[1]} pixels, and its image of {width} x {height}")
    raise TaskError("a bitmask region's PNG image has no alpha channel, which is to tell what is in the mask")


def _polygon(value: Mapping[str, Any], height: int, width: int) -> Mask:
    points = value.get("points")
    if not isinstance(points, list) or len(points) > MAX_POINTS or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise TaskError(f"a polygon is a list of x, y pairs, at most {MAX_POINTS:,}")
    percent = np.array([_percents(*point) for point in points]).reshape(-1, 2)
    if len(points) < MIN_CORNERS:
        raise TaskError(f"a polygon has {len(points)} of the {MIN_CORNERS} points that it needs at least; finish or delete it")
    return _filled(percent * [width / 100, height / 100], height, width)


def _rectangle(value: Mapping[str, Any], height: int, width: int) -> Mask:
    """Read a rectangle, which may be turned clockwise about its upper left corner. It is turned in pixels, not in percent."""
    x, y, wide, high = _percents(*(value.get(name) for name in ("x", "y", "width", "height")))
    [degrees] = _percents(value.get("rotation") or 0)
    scale = np.array([width, height]) / 100
    right = np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]) * wide * scale[0]
    down = np.array([-math.sin(math.radians(degrees)), math.cos(math.radians(degrees))]) * high * scale[1]
    corner_px = np.array([x, y]) * scale
    return _filled(np.array([corner_px, corner_px + right, corner_px + right + down, corner_px + down]), height, width)


def _ellipse(value: Mapping[str, Any], height: int, width: int) -> Mask:
    """Read an ellipse, which may be turned clockwise about its centre, in pixels. It is drawn as a polygon of ELLIPSE_CORNERS corners."""
    x, y, across, down = _percents(*(value.get(name) for name in ("x", "y", "radiusX", "radiusY")))
    [degrees] = _percents(value.get("rotation") or 0)
    angles = np.linspace(0, 2 * math.pi, ELLIPSE_CORNERS, endpoint=False)
    scale = np.array([width, height]) / 100
    flat = np.stack([np.cos(angles) * across * scale[0], np.sin(angles) * down * scale[1]], axis=1)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _filled(flat @ np.array([[cos, sin], [-sin, cos]]) + np.array([x, y]) * scale, height, width)


def _filled(polygon_px: NDArray[np.float64], height: int, width: int) -> Mask:
    return from_polygons([polygon_px], height, width, max_pixels=height * width)


def _percents(*values: object) -> list[float]:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_PERCENT]
    if len(numbers) != len(values):
        raise TaskError("a region's coordinates are numbers, in percent of its image")
    return [float(number) for number in numbers]


_READ: dict[str, Callable[[Mapping[str, Any], int, int], Mask]] = {
    "brushlabels": _brush,
    "bitmasklabels": _bitmask,
    "polygonlabels": _polygon,
    "rectanglelabels": _rectangle,
    "ellipselabels": _ellipse,
    # the next ones are written by controls that have no labels of their own: Brush, Polygon and so on
    "brush": _brush,
    "bitmask": _bitmask,
    "polygon": _polygon,
    "rectangle": _rectangle,
    "ellipse": _ellipse,
}
