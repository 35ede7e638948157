"""A picture of an answer: the mask is tinted, the box is drawn, and each point has the colour of what the MLLM answered about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sam4mllm.masks import box_of
from sam4mllm.values import Segmentation

TINTS = ((255, 92, 56), (46, 134, 255), (24, 178, 107), (214, 72, 214), (240, 178, 0))
INSIDE, OUTSIDE, UNSURE = (40, 200, 80), (235, 60, 60), (150, 150, 150)
MIN_LONG_SIDE, MAX_LONG_SIDE = 720, 1600
PAPER, INK = (250, 250, 248), (30, 30, 34)
TRUE, PREDICTED = (46, 134, 255), (255, 92, 56)
"""The RGB colours in which ``draw_compared`` outlines the true and the predicted mask."""
THUMBNAIL = 560
"""Long side, in pixels, of a picture by ``draw_compared`` if nothing else is asked for: one of many on a page."""
CONTEXT = 0.35
"""Margin that ``draw_compared`` shows on each side of the objects, as a share of the long side of the box that encloses them."""
LEAST_SHOWN = 0.4
"""Least side of the part of the image that ``draw_compared`` shows, as a share of the image's long side. The surroundings often explain an
error."""


class Marked(Protocol):
    """What of an instance is drawn besides its mask."""

    @property
    def box_px(self) -> NDArray[np.float32]: ...
    @property
    def points_px(self) -> NDArray[np.float32]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...


def draw(image: NDArray[np.uint8], answers: Sequence[Segmentation]) -> Image.Image:
    """One panel a phrase, side by side (at most three a row), over a legend. Raises ValueError if there is no answer to draw."""
    if not answers:
        raise ValueError("there is no answer to draw")
    panels = [_panel(image, answer) for answer in answers]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    width, height = panels[0].size
    legend = _legend(width * columns)
    sheet = Image.new("RGB", (width * columns, height * rows + legend.height), PAPER)
    for index, panel in enumerate(panels):
        sheet.paste(panel, (index % columns * width, index // columns * height))
    sheet.paste(legend, (0, height * rows))
    return sheet


def draw_compared(
    image: NDArray[np.uint8],
    truth: NDArray[np.bool_],
    predicted: NDArray[np.bool_],
    instances: Sequence[Marked],
    shown: NDArray[np.bool_] | None = None,
    long_side: int = THUMBNAIL,
) -> Image.Image:
    """A small picture of a prediction against the truth: both outlines, with the boxes and points that led to it.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) bool, outlined in TRUE.
        predicted: (H, W) bool, tinted and outlined in PREDICTED.
        instances: what was found, with boxes and points in pixels of the image.
        shown: (H, W) bool, what has to be in the picture besides the instances; truth and prediction if None. With the same ``shown`` and
            instances, several pictures show the same part of the image.
        long_side: of the picture, in pixels.
    """
    x1, y1, x2, y2 = _window(truth | predicted if shown is None else shown, instances)
    image, truth, predicted = image[y1:y2, x1:x2], truth[y1:y2, x1:x2], predicted[y1:y2, x1:x2]
    zoom = long_side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom)))
    canvas = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if zoom > 1 else cv2.INTER_AREA), dtype=np.float32)
    canvas = _tint(canvas, predicted, PREDICTED, strength=0.3)
    drawn = np.clip(_tint(canvas, truth, TRUE, strength=0.0), 0, 255).astype(np.uint8)
    for instance in instances:
        _mark(drawn, instance, PREDICTED, zoom, 0.55, (x1, y1))
    return Image.fromarray(drawn)


def _window(shown: NDArray[np.bool_], instances: Sequence[Marked]) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of what to show: all masks and boxes with something around them; the whole image if there are none."""
    height, width = shown.shape
    boxes = [instance.box_px for instance in instances] + ([box_of(shown)] if shown.any() else [])
    if not boxes:
        return 0, 0, width, height
    low, high = np.min([box[:2] for box in boxes], 0), np.max([box[2:] for box in boxes], 0)
    sides = np.minimum(np.maximum(high - low + 2 * CONTEXT * (high - low).max(), LEAST_SHOWN * max(height, width)), (width, height))
    start = np.clip((low + high - sides) / 2, 0, np.array([width, height]) - sides)
    x1, y1 = np.floor(start).astype(int).tolist()
    x2, y2 = np.ceil(start + sides).astype(int).tolist()
    return x1, y1, min(x2, width), min(y2, height)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def _panel(image: NDArray[np.uint8], answer: Segmentation) -> Image.Image:
    long = max(image.shape[:2])
    zoom = min(max(1.0, MIN_LONG_SIDE / long), MAX_LONG_SIDE / long)
    size = (round(image.shape[1] * zoom), round(image.shape[0] * zoom))
    canvas = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if zoom > 1 else cv2.INTER_AREA), dtype=np.float32)
    for index, instance in enumerate(answer.instances):
        canvas = _tint(canvas, instance.mask, TINTS[index % len(TINTS)])
    drawn = np.clip(canvas, 0, 255).astype(np.uint8)
    unit = max(size) / MIN_LONG_SIDE
    for index, instance in enumerate(answer.instances):
        _mark(drawn, instance, TINTS[index % len(TINTS)], zoom, unit)
    return _caption(Image.fromarray(drawn), answer, unit)


def _tint(canvas: NDArray[np.float32], mask: NDArray[np.bool_], tint: tuple[int, int, int], strength: float = 0.5) -> NDArray[np.float32]:
    large = cv2.resize(mask.astype(np.float32), (canvas.shape[1], canvas.shape[0]), interpolation=cv2.INTER_LINEAR)[..., None]
    blended = canvas * (1 - strength * large) + np.array(tint, np.float32) * strength * large
    contours, _ = cv2.findContours((large[..., 0] > 0.5).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(blended, contours, -1, tint, max(2, canvas.shape[1] // 400), cv2.LINE_AA)
    return np.asarray(blended, dtype=np.float32)


def _mark(
    drawn: NDArray[np.uint8],
    instance: Marked,
    tint: tuple[int, int, int],
    zoom: float,
    unit: float,
    origin: tuple[int, int] = (0, 0),
) -> None:
    """Draw an instance's box and points on a picture that shows the image from ``origin`` (x, y) on, ``zoom`` times as large.

    ``unit`` scales the width of lines and the size of points.
    """
    x1, y1, x2, y2 = np.rint((instance.box_px - np.tile(origin, 2)) * zoom).astype(int).tolist()
    cv2.rectangle(drawn, (x1, y1), (x2, y2), (255, 255, 255), round(4 * unit), cv2.LINE_AA)
    cv2.rectangle(drawn, (x1, y1), (x2, y2), tint, round(2 * unit), cv2.LINE_AA)
    for point, label in zip(instance.points_px, instance.labels, strict=True):
        spot = tuple(np.rint((point - origin) * zoom).astype(int).tolist())
        colour = {1: INSIDE, 0: OUTSIDE}.get(int(label), UNSURE)
        radius = round((5 if label >= 0 else 3) * unit)
        cv2.circle(drawn, spot, radius + round(1.5 * unit), (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(drawn, spot, radius, colour, -1, cv2.LINE_AA)


def _caption(picture: Image.Image, answer: Segmentation, unit: float) -> Image.Image:
    size = round(20 * unit)
    panel = Image.new("RGB", (picture.width, picture.height + 2 * size), PAPER)
    panel.paste(picture, (0, 0))
    count = len(answer.instances)
    found = "no such object" if not count else f"{count} found" if count > 1 else "found"
    text = f"“{answer.phrase}”  –  {found}, {answer.score:.2f}"
    ImageDraw.Draw(panel).text((size // 2, picture.height + size // 2), text, fill=INK, font=_font(size))
    return panel


def _legend(width: int) -> Image.Image:
    strip = Image.new("RGB", (width, 40), PAPER)
    draw_on, x = ImageDraw.Draw(strip), 14
    font = _font(15)
    for colour, text in ((INSIDE, "answered: on the object"), (OUTSIDE, "answered: off it"), (UNSURE, "unsure, not used")):
        draw_on.ellipse((x, 14, x + 11, 25), fill=colour)
        draw_on.text((x + 18, 10), text, fill=INK, font=font)
        x += 34 + round(font.getlength(text))
    return strip
