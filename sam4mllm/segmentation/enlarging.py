"""A mask on the model's grid as a mask of the image: bilinear interpolation of its logits, computed only where they change sign.

    logits on the grid  ──►  the model's square frame  ──►  without its padding  ──►  the image
    (h, w)                   (only of models that pad)       rows and columns seen     (H, W) bool

Interpolation takes the weighted mean of four neighbours. Where all four are above the threshold, so is the mean; where none is, neither is
the mean. Only the pixels between neighbours of both kinds, those along the mask's edge, have to be computed. :func:`enlarge_plainly`
computes all pixels; tests compare this with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

PIXELS_AT_ONCE = 1 << 20
"""Pixels of the image that are computed at once; each takes a byte in every intermediate array. More at once was no faster on masks of 12
megapixels."""


@dataclass(frozen=True)
class Enlarging:
    """How a grid of mask logits lies on an image.

    Args:
        size: height and width of the image.
        frame: side of the square to which the grid of a model that pads its images is enlarged first; None for a model that squashes images
            to a square.
        seen: the numbers of rows and of columns of that square that are not padding.
        threshold: logit above which a pixel is on the object.
    """

    size: tuple[int, int]
    frame: int | None = None
    seen: tuple[int, int] = (0, 0)
    threshold: float = 0.0

    def coarse(self, logits: Tensor) -> NDArray[np.bool_]:
        """Return the masks (N, rows, columns) bool of logits (N, h, w), still on the grid but without the cells that lie on padding."""
        on: NDArray[np.bool_] = (logits > self.threshold).cpu().numpy()
        if self.frame is None:
            return on
        rows, columns = (max(1, -(-seen * side // self.frame)) for seen, side in zip(self.seen, on.shape[1:], strict=True))
        return on[:, :rows, :columns]

    def full(self, logits: Tensor) -> NDArray[np.bool_]:
        """Return the mask (H, W) bool of one mask's logits (h, w). It equals that of :func:`enlarge_plainly`, except where rounding
        decides.
        """
        values = _without_padding(logits.float().cpu(), self).numpy()
        rows, columns = (_Taps.between(before, after) for before, after in zip(values.shape, self.size, strict=True))
        return _enlarge(values, rows, columns, self.threshold)


def enlarge_plainly(logits: Tensor, how: Enlarging) -> NDArray[np.bool_]:
    """(H, W) bool of logits (h, w), every pixel computed: the reference of :meth:`Enlarging.full`."""
    values = _without_padding(logits.float(), how)
    full = interpolate(values[None, None], how.size, mode="bilinear", align_corners=False)[0, 0]
    mask: NDArray[np.bool_] = (full > how.threshold).cpu().numpy()
    return mask


def _without_padding(logits: Tensor, how: Enlarging) -> Tensor:
    if how.frame is None:
        return logits
    square = interpolate(logits[None, None], (how.frame, how.frame), mode="bilinear", align_corners=False)[0, 0]
    return square[: how.seen[0], : how.seen[1]]


@dataclass(frozen=True)
class _Taps:
    """Interpolation along one side of the image: for each of n pixels the two cells that it lies between, ``low`` and ``high`` (n,), and
    ``share`` (n,), the weight of ``high``.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    share: NDArray[np.float32]

    @classmethod
    def between(cls, cells: int, pixels: int) -> _Taps:
        """Follow the rule of torch's ``interpolate`` with ``align_corners=False``, in the same float32 arithmetic."""
        half, scale = np.float32(0.5), np.float32(cells / pixels)
        at = np.maximum((np.arange(pixels, dtype=np.float32) + half) * scale - half, 0)
        low = np.minimum(at.astype(np.int64), cells - 1)
        return cls(low, np.minimum(low + 1, cells - 1), (at - low).astype(np.float32))


def _enlarge(values: NDArray[np.float32], rows: _Taps, columns: _Taps, threshold: float) -> NDArray[np.bool_]:
    mask = np.zeros((len(rows.low), len(columns.low)), np.bool_)
    on = np.pad((values > threshold).astype(np.uint8), ((0, 1), (0, 1)), mode="edge")
    corners = on[:-1, :-1] + on[1:, :-1] + on[:-1, 1:] + on[1:, 1:]  # how many of the four are above the threshold
    down, across = (np.flatnonzero(np.asarray(corners.any(axis))[taps.low]) for axis, taps in ((1, rows), (0, columns)))
    if not len(down) or not len(across):
        return mask
    window = slice(int(across[0]), int(across[-1]) + 1)
    wide = corners[:, columns.low[window]]
    at_once = max(1, PIXELS_AT_ONCE // wide.shape[1])
    for start in range(int(down[0]), int(down[-1]) + 1, at_once):
        part = slice(start, min(start + at_once, int(down[-1]) + 1))
        count = wide[rows.low[part]]
        mask[part, window] = count == 4
        row, column = np.nonzero((count > 0) & (count < 4))
        row, column = row + part.start, column + window.start
        mask[row, column] = _interpolated(values, rows, columns, row, column) > threshold
    return mask


def _interpolated(
    values: NDArray[np.float32], rows: _Taps, columns: _Taps, row: NDArray[np.int64], column: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the interpolated logits (K,) of the pixels at ``row`` and ``column`` (K,)."""
    low, high, across, down = columns.low[column], columns.high[column], columns.share[column], rows.share[row]
    above, below = (values[line, low] * (1 - across) + values[line, high] * across for line in (rows.low[row], rows.high[row]))
    return np.asarray(above * (1 - down) + below * down, np.float32)
