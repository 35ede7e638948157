"""Masks as run lengths in COCO's format, column by column: text that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from sam4mllm.errors import MaskCodecError
from sam4mllm.images import MAX_PIXELS
from sam4mllm.masks import as_mask, check_size

MAX_GROUPS = 7
"""Longest number in compressed run lengths, in characters: seven groups of five bits hold every difference of two 32-bit counts."""


class Rle(TypedDict):
    """Run lengths as COCO compresses them: ``size`` is [height, width], ``counts`` ascii text."""

    size: list[int]
    counts: str


def to_rle(mask: NDArray[np.bool_]) -> Rle:
    """A mask (H, W) as COCO run lengths, column by column, compressed to text by pycocotools; JSON can hold it.

    Raises ValueError if the mask has no pixels or is not two-dimensional.
    """
    mask = as_mask(mask)
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


def _counts(rle: Mapping[str, Any], height: int, width: int, max_pixels: int) -> NDArray[np.int64]:
    """(R,) lengths of the runs, background first, which add up to height times width."""
    check_size(height, width, max_pixels)
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
