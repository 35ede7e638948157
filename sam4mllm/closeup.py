"""A closer look: the square part of the image around a box, enlarged, in which its points are asked.

Whether a point lies on an object is decided at the object's outline. A visual token covers a fixed share of the image, so that of a small
object it holds the outline of a whole side; in the close-up the same object lies on many tokens. The method itself asks all points in the
whole image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

ZOOM = 1.5
"""Side of a close-up, in long sides of the box: without surroundings the model does not see what is object and what is ground."""
LEAST_GAIN = 1.25
"""How much smaller than the image a close-up must be, as a ratio of the sides of squares of their areas, to be worth its time."""
SIDE_PX = 448
"""To which side a close-up is brought: 256 visual tokens of 28 pixels, so that its cost does not depend on the image."""


@dataclass(frozen=True)
class Window:
    """A square of an image; ``left``, ``top`` and ``side`` in its pixels."""

    left: int
    top: int
    side: int

    def cut(self, image: NDArray[np.uint8], side_px: int = SIDE_PX) -> NDArray[np.uint8]:
        """The part of an image (H, W, 3) uint8 as (side_px, side_px, 3) uint8."""
        part = image[self.top : self.top + self.side, self.left : self.left + self.side]
        way = cv2.INTER_AREA if self.side > side_px else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(part, (side_px, side_px), interpolation=way), np.uint8)

    def inner(self, coordinates_px: NDArray[np.float32], side_px: int = SIDE_PX) -> NDArray[np.float32]:
        """Coordinates (..., 2 or 4: x, y pairs) of the image as those of the close-up; what lies outside is brought to its edge."""
        corner = np.resize(np.array([self.left, self.top], np.float64), coordinates_px.shape[-1])
        return np.clip((coordinates_px - corner) * (side_px / self.side), 0, side_px).astype(np.float32)


def window_around(box_px: NDArray[np.float32], width: int, height: int, zoom: float = ZOOM) -> Window | None:
    """The close-up of a box (4,) in an image of the given sides; None where it would show hardly less than the image does."""
    x1, y1, x2, y2 = (float(value) for value in box_px)
    long, short = max(x2 - x1, y2 - y1), min(width, height)
    side = min(short, max(1, round(zoom * long)))
    if long > side or (width * height) ** 0.5 < LEAST_GAIN * side:
        return None
    left, top = ((x1 + x2 - side) / 2, (y1 + y2 - side) / 2)
    return Window(int(min(max(0.0, left), width - side)), int(min(max(0.0, top), height - side)), side)
