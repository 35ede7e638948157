"""Close-ups: the square part of an image around a box, enlarged, in which the model is asked about the points of that box.

Whether a point lies on an object is decided at the object's outline. A visual token covers a fixed share of the image, so a single token
may hold a whole side of a small object's outline; in the close-up the same object lies on many tokens. The published method asks about all
points in the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

ZOOM = 1.5
"""Side of a close-up, as a multiple of the box's long side. Without surroundings the model cannot tell the object from its background."""
LEAST_GAIN = 1.25
"""Least ratio of the image's size to the close-up's at which a close-up is worth its time. The size is the square root of the area."""
SIDE_PX = 448
"""Side in pixels to which a close-up is resized: 256 visual tokens of 28 x 28 pixels, so that its cost does not depend on the image."""


@dataclass(frozen=True)
class Window:
    """A square part of an image; ``left``, ``top`` and ``side`` are in pixels of the whole image."""

    left: int
    top: int
    side: int

    def cut(self, image: NDArray[np.uint8], side_px: int = SIDE_PX) -> NDArray[np.uint8]:
        """The part of an image (H, W, 3) uint8 as (side_px, side_px, 3) uint8."""
        part = image[self.top : self.top + self.side, self.left : self.left + self.side]
        way = cv2.INTER_AREA if self.side > side_px else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(part, (side_px, side_px), interpolation=way), np.uint8)

    def inner(self, coordinates_px: NDArray[np.float32], side_px: int = SIDE_PX) -> NDArray[np.float32]:
        """Convert coordinates (..., 2 or 4: x, y pairs) in the image to those in the close-up; what lies outside is moved to its edge."""
        corner = np.resize(np.array([self.left, self.top], np.float64), coordinates_px.shape[-1])
        return np.clip((coordinates_px - corner) * (side_px / self.side), 0, side_px).astype(np.float32)


def window_around(box_px: NDArray[np.float32], width: int, height: int, zoom: float = ZOOM) -> Window | None:
    """Return the close-up of a box (4,) in an image of the given sides.

    None if the box is longer than the image's short side, or if the close-up would show hardly less than the image does.
    """
    x1, y1, x2, y2 = (float(value) for value in box_px)
    long, short = max(x2 - x1, y2 - y1), min(width, height)
    side = min(short, max(1, round(zoom * long)))
    if long > side or (width * height) ** 0.5 < LEAST_GAIN * side:
        return None
    left, top = ((x1 + x2 - side) / 2, (y1 + y2 - side) / 2)
    return Window(int(min(max(0.0, left), width - side)), int(min(max(0.0, top), height - side)), side)
