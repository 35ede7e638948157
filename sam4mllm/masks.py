"""Tidy masks and compare them. The modules ``polygons`` and ``run_lengths`` write masks in those forms and read them.

A mask is (H, W) bool in the pixel frame of ``geometry``: pixel (row r, column c) is the unit square from (c, r) to (c + 1, r + 1), and its
centre is (c + 0.5, r + 0.5).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam4mllm.errors import MaskCodecError

MIN_SHARE = 0.01
"""Pieces and holes below this share of a mask count as noise. Our choice: the decoder's grid is 4 times coarser than SAM's input, so that a
hundredth of a usual object is a few of its cells."""
MAX_COMPONENTS = 100
"""Most pieces that :func:`components` returns, if its caller does not say how many; each costs a whole mask of memory."""


# -- tidying -------------------------------------------------------------------------------------------------------------------------------


def clean(mask: NDArray[np.bool_], min_share: float = MIN_SHARE, min_hole_share: float | None = None) -> NDArray[np.bool_]:
    """The mask (H, W) bool without small pieces and small holes, as a new array.

    Pieces are 8-connected, holes 4-connected and closed: a gap that reaches the border of the image is none. The largest piece always
    stays, so that an empty mask is the only one that comes back empty.

    Args:
        mask: (H, W) bool.
        min_share: pieces with fewer pixels than this share of the mask's are dropped.
        min_hole_share: holes with fewer pixels than this share of the mask's are filled; ``min_share`` if None, and 0 leaves every hole.
    """
    mask = as_mask(mask)
    result = np.zeros_like(mask)
    if not mask.any():
        return result
    window = window_of(mask)
    part = mask[window]
    area = np.count_nonzero(part)
    part = _without_specks(part, min_share * area)
    # nothing outside the window can close a hole, for the window's border is background or the border of the image
    result[window] = _without_holes(part, (min_share if min_hole_share is None else min_hole_share) * area)
    return result


def components(mask: NDArray[np.bool_], most: int = MAX_COMPONENTS) -> NDArray[np.bool_]:
    """The 8-connected pieces of a mask (H, W) as (N, H, W) bool, the largest first and at most ``most``; (0, H, W) of an empty mask."""
    labels, areas, _ = label_pieces(as_mask(mask), connectivity=8)
    order = 1 + np.argsort(-areas[1:], kind="stable")[:most]
    return np.asarray(labels[None] == order[:, None, None], np.bool_)


def _without_specks(mask: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    labels, areas, _ = label_pieces(mask, connectivity=8)
    if len(areas) == 2:
        return mask
    keep = areas >= least
    keep[1 + areas[1:].argmax()] = True
    keep[0] = False
    kept: NDArray[np.bool_] = keep[labels]
    return kept


def _without_holes(mask: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    height, width = mask.shape
    labels, areas, boxes = label_pieces(~mask, connectivity=4)
    left, top, wide, high = boxes.T
    fill = (left > 0) & (top > 0) & (left + wide < width) & (top + high < height) & (areas < least)
    fill[0] = False
    if not fill.any():
        return mask
    filled: NDArray[np.bool_] = mask | fill[labels]
    return filled


def label_pieces(mask: NDArray[np.bool_], connectivity: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Labels (H, W), areas (N,) and boxes (N, 4: left, top, width, height) of the pieces; the first is the background, label 0."""
    # not connectedComponents: its worker threads wait for each other, many times slower on small masks and busy machines
    _, labels, found, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity, ltype=cv2.CV_32S)
    stats: NDArray[np.int32] = np.asarray(found, np.int32)
    return np.asarray(labels, np.int32), stats[:, cv2.CC_STAT_AREA], stats[:, : cv2.CC_STAT_AREA]


# -- comparing -----------------------------------------------------------------------------------------------------------------------------


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the intersection over union of two masks (H, W); 1.0 for two empty masks, for they agree.

    Raises ValueError if their shapes differ or are not two-dimensional.
    """
    a, b = as_mask(a), as_mask(b)
    if a.shape != b.shape:
        raise ValueError(f"masks of one image have one shape, not {a.shape} and {b.shape}")
    union_area = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union_area if union_area else 1.0


def union(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All of masks (N, H, W) bool in one (H, W) bool; empty if N is 0."""
    return np.asarray(np.asarray(masks, np.bool_).any(axis=0))


def lies_on(mask: NDArray[np.bool_], points_px: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(K,) bool: whether the pixel under each of (K, 2) points is in the mask (H, W); a point outside the image counts as on its border."""
    rows = np.clip(points_px[:, 1].astype(int), 0, mask.shape[0] - 1)
    columns = np.clip(points_px[:, 0].astype(int), 0, mask.shape[1] - 1)
    return np.asarray(mask[rows, columns])


def box_of(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The box around a mask (H, W): (4,) float32 px, x1, y1, x2, y2 with the right and bottom sides exclusive; zeros of an empty mask."""
    rows, columns = window_of(as_mask(mask))
    return np.array([columns.start, rows.start, columns.stop, rows.stop], np.float32)


def window_of(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and the columns that hold a mask; empty slices at 0 of an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def as_mask(mask: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(mask, np.bool_)
    if array.ndim != 2:
        raise ValueError(f"a mask is (height, width), not {array.shape}")
    return array


def check_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1 or height * width > max_pixels:
        raise MaskCodecError(f"a mask of {width} x {height} pixels is not allowed; it has at least one and at most {max_pixels:,}")
