"""The two frames of coordinates and the way between them.

``px``: float pixels of the EXIF-rotated image, (0, 0) at the top left corner of the top left pixel. ``milli``: integers 0–999, the
thousandth of the image's width or height in which a pixel coordinate falls; a milli coordinate stands for the middle of its
thousandth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

MILLI = 1000
"""Number of steps of the milli frame across the width, and across the height (paper: integers 0–999 relative to the original width and
height)."""


def _sides(width: float, height: float, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    if width <= 0 or height <= 0:
        raise ValueError(f"an image has positive sides, not {width} x {height}")
    return np.resize(np.array([width, height], np.float64), coordinates.shape[-1])


def to_steps(coordinates_px: ArrayLike, size: tuple[int, int], steps: tuple[int, int]) -> NDArray[np.int64]:
    """Convert pixels (..., 2 or 4: x, y pairs) of an image of ``size`` (width, height) to whole steps, an array of the same shape.

    ``steps`` is the number of steps across the width and across the height. What lies outside the image is moved to its edge. Raises
    ValueError if a side of the image is not positive.
    """
    px = np.asarray(coordinates_px, np.float64)
    count = np.resize(np.array(steps, np.float64), px.shape[-1])
    return np.clip(np.floor(px / _sides(*size, px) * count), 0, count - 1).astype(np.int64)


def from_steps(coordinates: ArrayLike, size: tuple[int, int], steps: tuple[int, int]) -> NDArray[np.float32]:
    """Convert steps (..., 2 or 4: x, y pairs) to the pixel coordinates of their middles, float32; the arguments are those of ``to_steps``.

    Steps outside of the range are moved into it, so that the result lies inside the image.
    """
    numbers = np.asarray(coordinates, np.float64)
    count = np.resize(np.array(steps, np.float64), numbers.shape[-1])
    return ((np.clip(numbers, 0, count - 1) + 0.5) / count * _sides(*size, numbers)).astype(np.float32)


def to_milli(coordinates_px: ArrayLike, width: int, height: int) -> NDArray[np.int64]:
    """Pixels (..., 2 or 4: x, y pairs) to milli of the same shape; what lies outside the image is brought to its edge."""
    return to_steps(coordinates_px, (width, height), (MILLI, MILLI))


def to_px(coordinates_milli: ArrayLike, width: int, height: int) -> NDArray[np.float32]:
    """Milli (..., 2 or 4) to the pixels in the middle of each thousandth, float32."""
    return from_steps(coordinates_milli, (width, height), (MILLI, MILLI))


def order_box(box_px: NDArray[np.float32], width: float, height: float) -> NDArray[np.float32]:
    """A box with its corners in order, inside the image and at least a pixel wide and high, whatever a model wrote."""
    x1, x2 = np.sort(np.clip(box_px[[0, 2]], 0, width))
    y1, y2 = np.sort(np.clip(box_px[[1, 3]], 0, height))
    x1, y1 = max(0.0, min(x1, width - 1)), max(0.0, min(y1, height - 1))
    return np.array([x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)], np.float32)


def box_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, M) intersection over union of boxes (N, 4) and (M, 4)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    union = area_a[:, None] + area_b[None] - inner
    return np.asarray(np.where(union > 0, inner / np.where(union > 0, union, 1), 0.0), np.float64)


def distinct(boxes_px: NDArray[np.float32], most_iou: float) -> list[int]:
    """Indices of the boxes (N, 4) that overlap no earlier kept one by more than ``most_iou``."""
    overlaps = box_iou(boxes_px, boxes_px)
    kept: list[int] = []
    for index in range(len(boxes_px)):
        if not (overlaps[index, kept] > most_iou).any():
            kept.append(index)
    return kept
