"""From pixels to the numbers that a dialect says, and back: see the frames of :class:`~sam4mllm.prompts.dialects.Dialect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam4mllm.geometry import MILLI, from_steps, to_steps
from sam4mllm.prompts.dialects import Dialect


class Framed(Protocol):
    """What numbers of an image refer to: its sides in pixels, and those of the image as the processor resized it."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def resized(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Frame:
    """The plainest :class:`Framed`: only the sizes."""

    width: int
    height: int
    resized: tuple[int, int]


def highest(dialect: Dialect, image: Framed) -> int:
    """Return the highest number that any coordinate can have, as :func:`to_numbers` gives them. Where x and y have different highest
    numbers, it is the greater.
    """
    return 10**dialect.decimals if dialect.frame in ("unit", "square") else max(_steps(dialect, image)) - 1


def to_numbers(dialect: Dialect, image: Framed, coordinates_px: ArrayLike) -> NDArray[np.int64]:
    """Convert pixels (..., 2 or 4: x, y pairs) to the dialect's numbers, int64 of the same shape. What lies outside is brought to the edge.

    A share is a whole number here, too: it is multiplied by 10 to the power of ``dialect.decimals``.
    """
    if dialect.frame in ("milli", "resized"):
        return to_steps(coordinates_px, (image.width, image.height), _steps(dialect, image))
    px = np.asarray(coordinates_px, np.float64)
    corner, sides, inner = (np.resize(pair, px.shape[-1]) for pair in _square(dialect, image))
    numbers: NDArray[np.int64] = np.rint((np.clip(px, 0, inner) + corner) / sides * 10**dialect.decimals).astype(np.int64)
    return numbers


def to_pixels(dialect: Dialect, image: Framed, numbers: ArrayLike) -> NDArray[np.float32]:
    """Convert the dialect's numbers (..., 2 or 4: x, y pairs), as :func:`to_numbers` returns them, to pixels inside the image, float32 of
    the same shape. Numbers on a grid (0 to 999, for example) become the middle of their grid cell; shares are scaled as they are.
    """
    if dialect.frame in ("milli", "resized"):
        return from_steps(numbers, (image.width, image.height), _steps(dialect, image))
    shares = np.asarray(numbers, np.float64) / 10**dialect.decimals
    corner, sides, inner = (np.resize(pair, shares.shape[-1]) for pair in _square(dialect, image))
    px: NDArray[np.float32] = np.clip(shares * sides - corner, 0, inner).astype(np.float32)
    return px


def _steps(dialect: Dialect, image: Framed) -> tuple[int, int]:
    """Return into how many steps the image's width and height are divided."""
    return image.resized if dialect.frame == "resized" else (MILLI, MILLI)


def _square(dialect: Dialect, image: Framed) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return three (x, y) pairs in pixels for a frame of shares. The shares refer to a rectangle, the image or the padded square. The pairs
    are the place of the image's top left corner in that rectangle, the rectangle's sides, and the image's sides.
    """
    inner = np.array([image.width, image.height], np.float64)
    if dialect.frame == "unit":
        return np.zeros(2), inner, inner
    return (inner.max() - inner) // 2, np.full(2, inner.max()), inner
