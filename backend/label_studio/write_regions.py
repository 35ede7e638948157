"""Turns found instances into the regions that Label Studio draws.

They have ``origin: prediction``; Label Studio changes that if a reviewer edits the region, which distinguishes a correction from an
acceptance.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend import brush
from backend.label_studio.label_config import UNTYPED_TAGS, LabelConfig
from backend.label_studio.wire import Region
from sam4mllm.identity import digest_of
from sam4mllm.masks import box_of, components
from sam4mllm.polygons import to_polygons
from sam4mllm.values import Instance

POLYGON_TOLERANCE_PX = 1.5
"""Pixels that a polygon may be off the mask's outline: too few to be seen, but enough to leave few points to drag."""
MAX_PIECES = 20
UNCALIBRATED = "not calibrated: it orders, and is no probability"


def to_regions(
    instance: Instance,
    index: int,
    config: LabelConfig,
    label: str | None,
    key: str,
    page: int | None = None,
    calibrated: bool = False,
) -> list[Region]:
    """Return the regions of a phrase's instance for the config's mask control.

    The ids of the regions follow from ``key``, which is the phrase's own, and from the instance's ``index``. So the same answer has the
    same ids in every request. ``page`` is the picture's number, from 0, in a task of several. If the score is not ``calibrated``, the
    regions' ``meta`` says so.
    """
    height, width = instance.mask.shape
    drawn = [(config.mask, value) for value in values_of(instance.mask, config.mask.drawing)]
    labels = [label] if label is not None else []
    shared = {
        "to_name": config.image,
        "origin": "prediction",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": instance.score,
        **({} if calibrated else {"meta": {"score": UNCALIBRATED}}),
        **({} if page is None else {"item_index": page}),
    }
    regions: list[Region] = []
    for piece, (control, value) in enumerate(drawn):
        region = {"id": region_id(key, index, piece), "type": control.type, "from_name": control.name, **shared}
        if control.tag not in UNTYPED_TAGS:
            regions.append({**region, "value": {**value, control.type: labels}})
            continue
        regions.append({**region, "value": value})
        if control.labelled_by and labels:
            regions.append({**region, "type": "labels", "from_name": control.labelled_by, "value": {**value, "labels": labels}})
    return regions


def answer_line(config: LabelConfig, text: str, key: str) -> list[Region]:
    """A line for the annotator in the config's answer control, if it has one."""
    if config.answer is None:
        return []
    return [
        {
            "id": region_id(key, "answer"),
            "type": "textarea",
            "from_name": config.answer.name,
            "to_name": config.image,
            "origin": "prediction",
            "value": {"text": [text]},
        }
    ]


def region_id(*parts: object) -> str:
    """Ten letters and digits that follow from the parts."""
    return base64.b32encode(bytes.fromhex(digest_of({"parts": parts})))[:10].decode()


def _brush(mask: NDArray[np.bool_]) -> list[dict[str, Any]]:
    return [{"format": "rle", "rle": brush.encode(mask)}]


def _bitmask(mask: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return a PNG that is black where the mask is and transparent elsewhere; only its alpha channel matters."""
    pixels = np.zeros((*mask.shape, 2), np.uint8)
    pixels[..., 1] = mask * np.uint8(255)
    data = io.BytesIO()
    Image.fromarray(pixels).convert("RGBA").save(data, "PNG")
    return [{"imageDataURL": "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()}]


def _polygons(mask: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return one closed polygon, in percent, for each of the MAX_PIECES largest pieces.

    Label Studio's polygons have no holes, so a hole is joined to its outline by a cut of no width.
    """
    percent = 100 / np.array(mask.shape[::-1])
    outlines = [_largest(to_polygons(piece, POLYGON_TOLERANCE_PX)) for piece in components(mask, MAX_PIECES)]
    return [{"points": (outline * percent).round(3).tolist(), "closed": True} for outline in outlines if len(outline) > 2]


def _largest(outlines: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return max(outlines, key=lambda outline: float(np.ptp(outline[:, 0]) * np.ptp(outline[:, 1])), default=np.zeros((0, 2), np.float32))


def _rectangle(mask: NDArray[np.bool_]) -> list[dict[str, Any]]:
    return [_box_value(box_of(mask), mask.shape[1], mask.shape[0])]


def values_of(mask: NDArray[np.bool_], tag: str) -> list[dict[str, Any]]:
    """Return the values of the regions with which a control with this tag shows a mask, one for each region."""
    return _DRAW[tag](mask)


_DRAW: dict[str, Callable[[NDArray[np.bool_]], list[dict[str, Any]]]] = {
    "BrushLabels": _brush,
    "BitmaskLabels": _bitmask,
    "PolygonLabels": _polygons,
    "RectangleLabels": _rectangle,
}


def _box_value(box_px: NDArray[np.float32], width: int, height: int) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(side) for side in box_px / np.array([width, height, width, height]) * 100)
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
