"""What is done with masks: tidy them, compare them, and write them as polygons or run lengths.

A mask is (H, W) bool in the pixel frame of ``geometry``: pixel (row r, column c) is the unit square from (c, r) to (c + 1, r + 1), and its
centre is (c + 0.5, r + 0.5).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco

from sam4mllm.errors import MaskCodecError
from sam4mllm.images import MAX_PIXELS

MIN_SHARE = 0.01
"""Pieces and holes below this share of a mask count as noise. Our choice: the decoder's grid is 4 times coarser than SAM's input, so that a
hundredth of a usual object is a few of its cells."""
MAX_COMPONENTS = 100
"""Most components that are returned; each costs a whole mask of memory."""
MAX_CROSSINGS = 10_000_000
"""Most crossings of a polygon's sides with rows of pixels; an outline drawn around an object has a few thousand."""
MAX_COORDINATE = 1e6
"""Largest coordinate of a polygon in pixels, far outside every image and near enough to compute with."""
MAX_GROUPS = 7
"""Longest number in compressed run lengths, in characters: seven groups of five bits hold every difference of two 32-bit counts."""


class Rle(TypedDict):
    """Run lengths as COCO compresses them: ``size`` is [height, width], ``counts`` ascii text."""

    size: list[int]
    counts: str


# -- tidying -------------------------------------------------------------------------------------------------------------------------------


def clean(mask: NDArray[np.bool_], min_share: float = MIN_SHARE, min_hole_share: float | None = None) -> NDArray[np.bool_]:
    """The mask (H, W) bool without small pieces and small holes, as a new array.

    Pieces are 8-connected, holes 4-connected and closed: a gap that reaches the border of the image is none. The largest piece always
    stays, so that an empty mask is the only one that comes back empty.

    Args:
        mask: (H, W) bool.
        min_share: pieces with fewer pixels than this share of the mask's are dropped.
        min_hole_share: holes with fewer pixels than this share are filled; ``min_share`` if None, and 0 leaves every hole.
    """
    mask = _as_mask(mask)
    result = np.zeros_like(mask)
    if not mask.any():
        return result
    window = _window(mask)
    part = mask[window]
    area = np.count_nonzero(part)
    part = _without_specks(part, min_share * area)
    # nothing outside the window can close a hole, for the window's border is background or the border of the image
    result[window] = _without_holes(part, (min_share if min_hole_share is None else min_hole_share) * area)
    return result


def components(mask: NDArray[np.bool_], most: int = MAX_COMPONENTS) -> NDArray[np.bool_]:
    """The 8-connected pieces of a mask (H, W) as (N, H, W) bool, the largest first and at most ``most``; (0, H, W) of an empty mask."""
    labels, areas, _ = _label(_as_mask(mask), connectivity=8)
    order = 1 + np.argsort(-areas[1:], kind="stable")[:most]
    return np.asarray(labels[None] == order[:, None, None], np.bool_)


def _without_specks(mask: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    labels, areas, _ = _label(mask, connectivity=8)
    if len(areas) == 2:
        return mask
    keep = areas >= least
    keep[1 + areas[1:].argmax()] = True
    keep[0] = False
    kept: NDArray[np.bool_] = keep[labels]
    return kept


def _without_holes(mask: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    height, width = mask.shape
    labels, areas, boxes = _label(~mask, connectivity=4)
    left, top, wide, high = boxes.T
    fill = (left > 0) & (top > 0) & (left + wide < width) & (top + high < height) & (areas < least)
    fill[0] = False
    if not fill.any():
        return mask
    filled: NDArray[np.bool_] = mask | fill[labels]
    return filled


def _label(mask: NDArray[np.bool_], connectivity: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Labels (H, W), areas (N,) and boxes (N, 4: left, top, width, height) of the pieces; the first is the background, label 0."""
    # not connectedComponents: its worker threads wait for each other, many times slower on small masks and busy machines
    _, labels, found, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity, ltype=cv2.CV_32S)
    stats: NDArray[np.int32] = np.asarray(found, np.int32)
    return np.asarray(labels, np.int32), stats[:, cv2.CC_STAT_AREA], stats[:, : cv2.CC_STAT_AREA]


# -- comparing -----------------------------------------------------------------------------------------------------------------------------


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks of one shape (H, W); 1.0 of two empty masks, for they agree."""
    a, b = _as_mask(a), _as_mask(b)
    if a.shape != b.shape:
        raise ValueError(f"masks of one image have one shape, not {a.shape} and {b.shape}")
    union_area = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union_area if union_area else 1.0


def union(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All of masks (N, H, W) bool in one (H, W) bool; empty if N is 0."""
    return np.asarray(np.asarray(masks, np.bool_).any(axis=0))


def lies_on(mask: NDArray[np.bool_], points_px: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(K,) bool: whether the pixel under each of (K, 2) points is in the mask (H, W); points outside count as on its edge."""
    rows = np.clip(points_px[:, 1].astype(int), 0, mask.shape[0] - 1)
    columns = np.clip(points_px[:, 0].astype(int), 0, mask.shape[1] - 1)
    return np.asarray(mask[rows, columns])


def box_of(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The box around a mask (H, W): (4,) float32 px, x1, y1, x2, y2 with the right and bottom sides exclusive; zeros of an empty mask."""
    rows, columns = _window(_as_mask(mask))
    return np.array([columns.start, rows.start, columns.stop, rows.stop], np.float32)


def _window(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and the columns that hold a mask; empty slices at 0 of an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _as_mask(mask: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(mask, np.bool_)
    if array.ndim != 2:
        raise ValueError(f"a mask is (height, width), not {array.shape}")
    return array


# -- polygons ------------------------------------------------------------------------------------------------------------------------------


def to_polygons(mask: NDArray[np.bool_], tolerance_px: float = 0.0) -> list[NDArray[np.float32]]:
    """The outlines of a mask (H, W): one polygon (K, 2) float32 px for each 8-connected piece, from the top down; none of an empty mask.

    The outline runs along the sides of the pixels, not through their centres, so that ``from_polygons`` gives the mask back exactly. A hole
    is joined to its outline by a cut of no width: formats that know no holes (Label Studio's polygons, COCO's) keep it this way.

    Args:
        mask: (H, W) bool.
        tolerance_px: how far a simplified outline may lie from the true one (Douglas and Peucker); 0 keeps every corner. About 1 turns
            stairs into lines that a person can edit.
    """
    mask = _as_mask(mask)
    window = _window(mask)
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
    _check_size(height, width, max_pixels)
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
    """Add a polygon (K, 2): wherever one of its sides crosses the middle of a row, all pixels to the right of it change sides."""
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
    # the last column only ends what began before it
    inside = np.bitwise_xor.accumulate(changes, axis=1)[:, :-1].astype(np.bool_)
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] |= inside


def _simplified(polygon: NDArray[np.float32], tolerance_px: float) -> NDArray[np.float32]:
    """By Douglas and Peucker; an outline that would lose its area stays as it is."""
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
        # a stack, for holes can hang below each other by the thousand
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
    """The corners of one outline from ``start`` on; clockwise around a piece, the other way around a hole."""
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


# -- run lengths ---------------------------------------------------------------------------------------------------------------------------


def to_rle(mask: NDArray[np.bool_]) -> Rle:
    """A mask (H, W) as COCO run lengths, column by column, compressed to text by pycocotools; JSON can hold it."""
    mask = _as_mask(mask)
    if mask.size == 0:
        raise ValueError(f"a mask has at least one pixel, not shape {mask.shape}")
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    return Rle(size=[int(side) for side in encoded["size"]], counts=encoded["counts"].decode("ascii"))


def from_rle(rle: Mapping[str, Any], height: int, width: int, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """COCO run lengths as a mask (height, width) bool.

    The counts may be compressed text (str or bytes) or a plain list of numbers. No mask is allocated before all of it is checked. Foreign
    text never reaches pycocotools: of counts that add up to too little, its decoder (release 2.0.11) returns memory that nobody wrote.

    Raises:
        MaskCodecError: malformed, of another size than height and width, or larger than allowed.
    """
    counts = _counts(rle, height, width, max_pixels)
    columns = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height)
    return np.ascontiguousarray(columns.T)


def rle_area(rle: Mapping[str, Any], height: int, width: int, max_pixels: int = MAX_PIXELS) -> int:
    """Pixels in the mask of COCO run lengths, which are checked as by ``from_rle`` but not expanded."""
    return int(_counts(rle, height, width, max_pixels)[1::2].sum())


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1 or height * width > max_pixels:
        raise MaskCodecError(f"a mask of {width} x {height} pixels is not allowed; it has at least one and at most {max_pixels:,}")


def _counts(rle: Mapping[str, Any], height: int, width: int, max_pixels: int) -> NDArray[np.int64]:
    """(R,) lengths of the runs, background first, which add up to height times width."""
    _check_size(height, width, max_pixels)
    if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
        raise MaskCodecError("an encoded mask is an object with size and counts")
    size, packed = rle["size"], rle["counts"]
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise MaskCodecError(f"the encoded mask's size is not [{height}, {width}], height and width of its image")
    counts = _decompressed(packed, height * width) if isinstance(packed, str | bytes) else _listed(packed, height * width)
    if (counts < 0).any() or (counts > height * width).any() or counts.sum() != height * width:
        raise MaskCodecError(f"the encoded mask's counts do not add up to {height} x {width} pixels")
    return counts


def _listed(packed: object, pixels: int) -> NDArray[np.int64]:
    if not isinstance(packed, list | tuple) or len(packed) > pixels + 1:
        raise MaskCodecError("an encoded mask's counts are text or a list of numbers, at most one more than it has pixels")
    if not all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= pixels for count in packed):
        raise MaskCodecError(f"an encoded mask's counts are whole numbers from 0 to its number of pixels, {pixels:,}")
    return np.array(packed, np.int64)


def _decompressed(packed: str | bytes, pixels: int) -> NDArray[np.int64]:
    """COCO's compressed counts as numbers, which may still be negative or add up to anything.

    A character less 48 holds five bits of a number, the lowest first, and in its sixth bit whether another follows; the fifth bit of the
    last one is the sign. From the fourth number on, each is the difference to the one two places before.
    """
    try:
        data = np.frombuffer(packed.encode("ascii") if isinstance(packed, str) else packed, np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError as error:
        raise MaskCodecError("an encoded mask's counts are ascii text") from error
    # a run needs a second character only if it or its neighbour has 16 pixels or more, so two for each pixel are plenty
    if len(data) == 0 or len(data) > 2 * pixels + 16:
        raise MaskCodecError("an encoded mask's counts are empty or longer than its pixels allow")
    last = data & 32 == 0
    if data.min() < 0 or data.max() > 63 or not last[-1]:
        raise MaskCodecError("an encoded mask's counts hold a character that does not belong, or end too early")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_GROUPS or len(ends) > pixels + 1:
        raise MaskCodecError("an encoded mask's counts hold a number that is too long, or too many numbers")
    places = np.arange(len(data)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((data & 31) << 5 * places, starts)
    numbers -= (data[ends] & 16 != 0).astype(np.int64) << 5 * lengths
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers
