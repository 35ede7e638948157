"""The two frames of coordinates and the way between them.

``px``: float pixels of the EXIF-rotated image, (0, 0) at the top left corner of the top left pixel. ``milli``: integers 0–999, the
thousandth of the image's width or height in which a pixel coordinate falls; a milli coordinate stands for the middle of its
thousandth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

MILLI = 1000
"""Steps of the text frame (paper: integers 0–999 relative to the original width and height)."""


def _sides(width: float, height: float, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    if width <= 0 or height <= 0:
        raise ValueError(f"an image has positive sides, not {width} x {height}")
    return np.resize(np.array([width, height], np.float64), coordinates.shape[-1])


def to_milli(coordinates_px: ArrayLike, width: float, height: float) -> NDArray[np.int64]:
    """Pixels (..., 2 or 4: x, y pairs) to milli of the same shape; what lies outside the image is brought to its edge."""
    px = np.asarray(coordinates_px, np.float64)
    return np.clip(np.floor(px / _sides(width, height, px) * MILLI), 0, MILLI - 1).astype(np.int64)


def to_px(coordinates_milli: ArrayLike, width: float, height: float) -> NDArray[np.float32]:
    """Milli (..., 2 or 4) to the pixels in the middle of each thousandth, float32."""
    milli = np.asarray(coordinates_milli, np.float64)
    return ((milli + 0.5) / MILLI * _sides(width, height, milli)).astype(np.float32)


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
