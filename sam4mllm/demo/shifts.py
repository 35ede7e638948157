"""Looks of scenes that training never shows, to measure how a model does on images that differ from its training data.

Layouts, phrases and masks are made as for other scenes; only the pixels differ. Every shifted scene has a background of a kind that
training does not have. Each of SHIFTS but ``background`` changes something else as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.demo.layout import Thing

SHIFTS = ("background", "lighting", "blur", "noise", "sketch")
GAMMA, SHADE, CAST = (0.55, 1.7), 0.55, 0.12
"""Of the shift ``lighting``: the range of the gamma; the largest share of its brightness that one side of the image loses (the least is
0.2); and the largest share by which a colour channel is scaled up or down. Within these, the names of colours still hold.
"""
BLUR = (0.002, 0.006)
"""Range of the standard deviation of the Gaussian blur, which is drawn for each image; as shares of the image's long side."""
NOISE = (10.0, 35.0)
"""Range of the standard deviation of the noise, which is drawn for each image; in grey levels of 0–255."""


@dataclass(frozen=True)
class Look:
    """How a scene is painted; ``shift`` is one of SHIFTS."""

    shift: str

    def retell(self, thing: Thing) -> Thing:
        """Return the thing as this look shows it: a pencil drawing in a sketch, unchanged in every other look.

        In a sketch its ``colour`` is empty, so that no phrase can name one.
        """
        if self.shift != "sketch":
            return thing
        return replace(thing, glyph=replace(thing.glyph, rgba=sketch(thing.glyph.rgba)), hue=0.0, brightness=1.0, colour="")

    def draw_background(self, rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
        """A background (H, W, 3) float32 in 0–255: mosaic, rings, dots or scribbles; plain paper under a sketch."""
        if self.shift == "sketch":
            return np.full((height, width, 3), rng.uniform(215, 250, 3), np.float32)
        makers = (_mosaic, _rings, _dots, _scribbles)
        return makers[rng.integers(len(makers))](rng, height, width)

    def finish(self, rng: np.random.Generator, canvas: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply the shift's lighting, blur or noise, if it is one of these, to the painted scene (H, W, 3), 0–255."""
        if self.shift == "lighting":
            return _light(rng, canvas)
        if self.shift == "blur":
            return np.asarray(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(*BLUR) * max(canvas.shape)), np.float32)
        if self.shift == "noise":
            return (canvas + rng.normal(0, rng.uniform(*NOISE), canvas.shape)).astype(np.float32)
        return canvas


def look_of(seed: Sequence[int]) -> Look:
    """Return the look with which the shifted scene of this seed is painted. Its shift is drawn from SHIFTS by the seed alone."""
    return Look(SHIFTS[np.random.default_rng([*seed, 6]).integers(len(SHIFTS))])


def sketch(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A glyph (S, S, 4) as a pencil drawing: dark where its lightness changes and along its outline, paper elsewhere."""
    opaque = rgba[..., 3].astype(np.float32) / 255
    grey = cv2.cvtColor(np.ascontiguousarray(rgba[..., :3]), cv2.COLOR_RGB2GRAY).astype(np.float32) * opaque + 255 * (1 - opaque)
    soft = cv2.GaussianBlur(grey, (0, 0), 1.0)
    edges = np.hypot(cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1))
    outline = 255 * np.hypot(cv2.Sobel(opaque, cv2.CV_32F, 1, 0), cv2.Sobel(opaque, cv2.CV_32F, 0, 1))
    shade = np.clip(245 - 1.2 * np.maximum(edges, outline), 40, 245)
    drawn = rgba.copy()
    drawn[..., :3] = shade.astype(np.uint8)[..., None]
    return drawn


def _colour(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.uniform(30, 240, 3).astype(np.float32)


def _mosaic(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Cells of one colour each: the regions nearest to random points (a Voronoi diagram)."""
    count = int(rng.integers(12, 60))
    places = rng.uniform(0, 1, (count, 2)) * (height, width)
    rows, columns = np.mgrid[0:height:4, 0:width:4]
    nearest = np.hypot(rows[..., None] - places[:, 0], columns[..., None] - places[:, 1]).argmin(-1).astype(np.float32)
    cells = cv2.resize(nearest, (width, height), interpolation=cv2.INTER_NEAREST).astype(int)
    return np.asarray(np.stack([_colour(rng) for _ in range(count)])[cells], np.float32)


def _rings(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    centre, period = rng.uniform(0, 1, 2) * (height, width), rng.uniform(0.05, 0.2) * max(height, width)
    rows, columns = np.mgrid[:height, :width]
    wave = 0.5 + 0.5 * np.sin(np.hypot(rows - centre[0], columns - centre[1]) * (2 * np.pi / period))[..., None]
    return np.asarray(_colour(rng) * wave + _colour(rng) * (1 - wave), np.float32)


def _dots(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    canvas = np.tile(_colour(rng), (height, width, 1))
    for _ in range(int(rng.integers(40, 160))):
        centre = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(canvas, centre, int(rng.uniform(0.005, 0.025) * max(height, width)), _colour(rng).tolist(), -1, cv2.LINE_AA)
    return canvas


def _scribbles(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    canvas = np.tile(_colour(rng), (height, width, 1))
    for _ in range(int(rng.integers(5, 20))):
        walk = rng.uniform(0, 1, 2) * (width, height) + np.cumsum(rng.normal(0, 0.05 * max(height, width), (30, 2)), 0)
        thickness = max(1, int(rng.uniform(0.002, 0.01) * max(height, width)))
        cv2.polylines(canvas, [walk.astype(np.int32)], False, _colour(rng).tolist(), thickness, cv2.LINE_AA)
    return canvas


def _light(rng: np.random.Generator, canvas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scene (H, W, 3) with a random gamma, darkened towards one random side, and with each colour channel slightly scaled."""
    height, width = canvas.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)[None]
    ramp = np.clip(0.5 + rows * np.sin(angle) + columns * np.cos(angle), 0, 1)[..., None]
    cast = 1 + rng.uniform(-CAST, CAST, 3)
    lit = (np.clip(canvas, 0, 255) / 255) ** rng.uniform(*GAMMA) * (1 - rng.uniform(0.2, SHADE) * ramp) * cast
    return np.asarray(255 * lit, np.float32)
