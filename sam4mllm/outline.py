"""The outline of a mask drawn on its image: what an MLLM is shown when it is asked whether a mask is what a phrase means."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

COLOUR = (255, 0, 255)
"""Magenta: rare in photos, and the demo's scenes name no colour near it."""
WIDTH = 1 / 120
"""Thickness of the outline as a share of the image's long side, at least two pixels: 2.4 pixels of 288, the side of a square image as the
demo's model takes it, and 6.4 of 768."""


def draw_outline(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A copy of an image (H, W, 3) uint8 with the outline of a mask (H, W) bool, holes included; an empty mask has none."""
    thickness = max(2, round(WIDTH * max(mask.shape)))
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    drawn = image.copy()
    cv2.drawContours(drawn, contours, -1, COLOUR, thickness, cv2.LINE_AA)
    return drawn
