"""Masks as polygons, (K, 2) px: the outlines of a mask, and the mask of outlines. The frame is that of ``masks``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam4mllm.errors import MaskCodecError
from sam4mllm.images import MAX_PIXELS
from sam4mllm.masks import as_mask, check_size, window_of

MAX_CROSSINGS = 10_000_000
"""Most crossings of a polygon's sides with rows of pixels; an outline drawn around an object has a few thousand."""
MAX_COORDINATE = 1e6
"""Largest coordinate of a polygon in pixels, far outside every image and near enough to compute with."""


def to_polygons(mask: NDArray[np.bool_], tolerance_px: float = 0.0) -> list[NDArray[np.float32]]:
    """The outlines of a mask (H, W): one polygon (K, 2) float32 px for each 8-connected piece, from the top down; none of an empty mask.

    The outline runs along the sides of the pixels, not through their centres, so that ``from_polygons`` gives the mask back exactly. A hole
    is joined to its outline by a cut of no width: formats that know no holes (Label Studio's polygons, COCO's) keep it this way.

    Args:
        mask: (H, W) bool.
        tolerance_px: how far a simplified outline may lie from the true one (Douglas and Peucker); 0 keeps every corner. About 1 turns
            stairs into lines that a person can edit.
    """
    mask = as_mask(mask)
    window = window_of(mask)
    origin = np.array([window[1].start, window[0].start], np.float32)
    polygons = [np.array(points, np.float32) + origin for points in _outlines(mask[window])]
    if tolerance_px > 0:
        polygons = [_simplified(polygon, tolerance_px) for polygon in polygons]
    return polygons


def from_polygons(polygons: Sequence[ArrayLike], height: int, width: int, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """The mask (height, width) bool of polygons (K, 2) px: pixels whose centre lies in any of them (inside a polygon: the even-odd rule).

    Polygons may reach outside the image, and one of fewer than three points covers nothing.

    Raises:
        MaskCodecError: the size is not allowed, a polygon is not (K, 2) or too intricate, or a coordinate is not finite or far too large.
    """
    check_size(height, width, max_pixels)
    mask = np.zeros((height, width), np.bool_)
    for polygon in polygons:
        _fill(mask, _as_polygon(polygon))
    return mask


def _as_polygon(polygon: ArrayLike) -> NDArray[np.float64]:
    try:
        points = np.asarray(polygon, np.float64)
    except (TypeError, ValueError) as error:
        raise MaskCodecError("a polygon is a list of x, y pairs of numbers") from error
    if points.size == 0:
        return np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1] != 2:
        raise MaskCodecError(f"a polygon is a list of x, y pairs, not an array of shape {points.shape}")
    if not (np.abs(points) <= MAX_COORDINATE).all():
        raise MaskCodecError(f"a polygon's coordinates are finite and at most {MAX_COORDINATE:,.0f} pixels; correct the polygon")
    return points


def _fill(mask: NDArray[np.bool_], polygon: NDArray[np.float64]) -> None:
    """Add a polygon (K, 2) to ``mask``, in place: wherever one of its sides crosses the middle of a row, all pixels to the right switch
    between outside and inside. Raises MaskCodecError if there are more than MAX_CROSSINGS crossings.
    """
    height, width = mask.shape
    following = np.roll(polygon, -1, axis=0)
    y_low, y_high = np.minimum(polygon[:, 1], following[:, 1]), np.maximum(polygon[:, 1], following[:, 1])
    first = np.clip(np.ceil(y_low - 0.5), 0, height).astype(np.int64)
    beyond = np.clip(np.ceil(y_high - 0.5), 0, height).astype(np.int64)
    counts = beyond - first
    total = int(counts.sum())
    if total == 0:
        return
    if total > MAX_CROSSINGS:
        raise MaskCodecError(f"a polygon of {len(polygon):,} points is too intricate; simplify it")
    side = np.repeat(np.arange(len(polygon)), counts)
    rows = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts) + first[side]
    slope = (following[side, 0] - polygon[side, 0]) / (following[side, 1] - polygon[side, 1])
    x = polygon[side, 0] + (rows + 0.5 - polygon[side, 1]) * slope
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    top, left = rows.min(), columns.min()
    changes = np.zeros((rows.max() + 1 - top, columns.max() + 1 - left), np.uint8)
    np.bitwise_xor.at(changes, (rows - top, columns - left), 1)
    # the last column holds no pixels of the polygon: the switches in it only end runs that began to the left
    inside = np.bitwise_xor.accumulate(changes, axis=1)[:, :-1].astype(np.bool_)
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] |= inside


def _simplified(polygon: NDArray[np.float32], tolerance_px: float) -> NDArray[np.float32]:
    """Simplify a polygon by the method of Douglas and Peucker; one that would lose its area stays as it is."""
    simple = np.asarray(cv2.approxPolyDP(polygon[:, None], tolerance_px, True), np.float32).reshape(-1, 2)
    return simple if len(simple) >= 3 else polygon


def _outlines(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """The (x, y) corners of each piece's outline, holes joined in.

    The corners of a rectilinear outline pair up: in reading order each two of a row are the ends of a horizontal side, in column order each
    two of a column the ends of a vertical one. To walk an outline is to go from partner to partner, in turns along a row and a column.
    """
    corners, vertical = _corners(mask)
    stride = mask.shape[1] + 1
    position = [(int(corner % stride), int(corner // stride)) for corner in corners]
    rings: list[list[int]] = []
    is_hole: list[bool] = []
    seen = bytearray(len(corners))
    for start, (x, y) in enumerate(position):
        if seen[start]:
            continue
        # the first corner of a ring in reading order is its upper left one: below and right of it lies the piece, or the hole
        is_hole.append(not mask[y, x])
        rings.append(_ring(start, vertical, column_first=is_hole[-1], seen=seen))
    joined: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, ring in enumerate(rings):
        if is_hole[number]:
            x, y = position[ring[0]]
            above = np.flatnonzero(~mask[:y, x])
            row = int(above[-1]) + 1 if len(above) else 0
            side = int(np.searchsorted(corners, row * stride + x, side="right")) - 1
            joined[side].append((x, number))
    outlines = []
    for piece in (number for number in range(len(rings)) if not is_hole[number]):
        outline: list[tuple[int, int]] = []
        # a stack instead of recursion, which Python limits: thousands of holes can hang below one another
        walks = [_walk(rings[piece], False, position, joined)]
        while walks:
            point = next(walks[-1], None)
            if point is None:
                walks.pop()
            elif isinstance(point, int):
                walks.append(_walk(rings[point], True, position, joined))
            else:
                outline.append(point)
        outlines.append(outline)
    return outlines


def _corners(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], list[int]]:
    """The corners (C,) of all outlines as y * (W + 1) + x in reading order, and each one's partner along its column.

    The partner along the row needs no list: it is the corner's number with the lowest bit changed.
    """
    padded = np.pad(mask, 1)
    upper_left, upper_right, lower_left, lower_right = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    single = upper_left ^ upper_right ^ lower_left ^ lower_right
    # where two pixels touch at a point only, two corners lie in it
    double = (upper_left == lower_right) & (upper_right == lower_left) & (upper_left != upper_right)
    found = np.flatnonzero(single | double)
    corners = np.repeat(found, 1 + double.ravel()[found])
    second = np.zeros(len(corners), np.bool_)
    second[1:] = corners[1:] == corners[:-1]
    # two pixels that touch belong to one piece: of two corners in a point, the one with the left side takes the upper side
    # if the background lies upper left, else the lower side
    swapped = double.ravel()[corners] & upper_left.ravel()[corners]
    order = np.lexsort((second ^ swapped, corners // padded[:-1, :-1].shape[1], corners % padded[:-1, :-1].shape[1]))
    vertical = np.empty(len(corners), np.int64)
    vertical[order[0::2]], vertical[order[1::2]] = order[1::2], order[0::2]
    return corners, vertical.tolist()


def _ring(start: int, vertical: list[int], column_first: bool, seen: bytearray) -> list[int]:
    """The numbers of the corners of one outline from ``start`` on; clockwise around a piece, the other way around a hole.

    ``vertical``: each corner's partner along its column. ``column_first``: whether the first step is along the column. Each corner of the
    outline is marked in ``seen``.
    """
    ring = []
    corner, along_column = start, column_first
    while not seen[corner]:
        seen[corner] = 1
        ring.append(corner)
        corner = vertical[corner] if along_column else corner ^ 1
        along_column = not along_column
    return ring


def _walk(
    ring: list[int], column_first: bool, position: list[tuple[int, int]], joined: Mapping[int, list[tuple[int, int]]]
) -> Iterator[tuple[int, int] | int]:
    """The points of a ring in order, and between two ends of a cut the number of the hole to walk around there.

    ``joined`` holds, by the left corner of a side, the holes that hang from it as (x of the cut, number of the hole's ring).
    """
    for step, corner in enumerate(ring):
        yield position[corner]
        along_column = (step % 2 == 0) == column_first
        for x, hole in [] if along_column else sorted(joined.get(corner & ~1, ()), reverse=bool(corner & 1)):
            yield from ((x, position[corner][1]), hole, (x, position[corner][1]))
    if column_first:
        yield position[ring[0]]
