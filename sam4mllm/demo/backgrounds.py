"""What lies behind the things of a scene: procedural textures and crops of five public-domain photos."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

PHOTOS = Path(__file__).parent / "assets" / "photos"


@functools.cache
def _photos() -> tuple[NDArray[np.uint8], ...]:
    return tuple(np.array(Image.open(path).convert("RGB")) for path in sorted(PHOTOS.glob("*.png")))


def _colour(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.uniform(40, 235, 3).astype(np.float32)


def _gradient(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)[None]
    ramp = np.clip(0.5 + rows * np.sin(angle) + columns * np.cos(angle), 0, 1)[..., None]
    return np.asarray(_colour(rng) * ramp + _colour(rng) * (1 - ramp), dtype=np.float32)


def _clouds(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    field = np.zeros((height, width), np.float32)
    for octave in range(1, 5):
        cells = rng.random((2**octave + 1, 2**octave + 1), dtype=np.float32)
        field += cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    field = np.clip(field, 0, 1)[..., None]
    return np.asarray(_colour(rng) * field + _colour(rng) * (1 - field), dtype=np.float32)


def _stripes(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.03, 0.2) * max(height, width)
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    wave = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * (2 * np.pi / period))
    band = np.clip(0.5 + wave * rng.uniform(0.5, 4), 0, 1)[..., None]
    return np.asarray(_colour(rng) * band + _colour(rng) * (1 - band), dtype=np.float32)


def _checks(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    side = max(4, int(rng.uniform(0.04, 0.16) * max(height, width)))
    rows, columns = np.arange(height)[:, None] // side, np.arange(width)[None] // side
    odd = ((rows + columns) % 2)[..., None]
    return (_colour(rng) * odd + _colour(rng) * (1 - odd)).astype(np.float32)


def _photo(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    photo = _photos()[rng.integers(len(_photos()))]
    side = int(rng.uniform(0.4, 1.0) * photo.shape[0])
    crop_height, crop_width = (side, max(8, side * width // height)) if width <= height else (max(8, side * height // width), side)
    top, left = rng.integers(photo.shape[0] - crop_height + 1), rng.integers(photo.shape[1] - crop_width + 1)
    crop = photo[top : top + crop_height, left : left + crop_width]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    resized = cv2.resize(
        np.ascontiguousarray(crop), (width, height), interpolation=cv2.INTER_AREA if side > max(height, width) else cv2.INTER_LINEAR
    )
    return np.asarray(resized.astype(np.float32) * rng.uniform(0.6, 1.1, 3).astype(np.float32), dtype=np.float32)


def draw_background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """A background of (H, W, 3) float32 in 0–255: a photo three times in ten, else a texture."""
    if rng.random() < 0.3:
        background = _photo(rng, height, width)
    else:
        makers = (_gradient, _clouds, _stripes, _checks)
        background = makers[rng.integers(len(makers))](rng, height, width)
    return np.clip(background, 0, 255)
