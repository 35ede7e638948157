"""Label Studio's brush masks: a bit stream of the RGBA values, run-length coded.

The stream, most significant bit first, begins with 32 bits for the number of values (4 per pixel), 5 bits for the word size minus 1 (the
word size is always 8), and four times 4 bits for a size minus 1 (the four sizes are 3, 4, 8 and 16 by custom). Records follow, each of 1
bit (1 for a run, 0 for a literal), 2 bits that choose one of the four sizes, as many bits as that size says for the length minus 1, and
8-bit words: one for a run, which repeats it ``length`` times, and ``length`` different ones for a literal. Zero bits fill the last byte.

Label Studio shows every alpha above 0 in the label's colour but keeps the alpha itself, and its editor draws antialiased edges: how a
caller gets a yes or no per pixel is decided in :mod:`backend.label_studio.read_regions`.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sam4mllm.errors import MaskCodecError

MAX_PIXELS = 100_000_000
"""Masks with more pixels are neither written nor read: the header can count up to 2**32 values, which would take gigabytes."""

CHANNELS = 4
WORD_BITS = 8
SIZES = (3, 4, 8, 16)
HEADER_BITS = 32 + 5 + 4 * 4
LONGEST_RUN = 1 << SIZES[-1]

_MARK_BITS = 3  # the bit run/literal and the two bits that choose the size
_RUN = 1 << 31
_BATCH_BITS = 1 << 20  # bits of the stream that are read at a time: keeps the work arrays of a noisy mask at some 10 MB

_Ints = NDArray[np.int64]
_Bytes = NDArray[np.uint8]


class _Stream(NamedTuple):
    """A mask's bytes, padded with zeros so that reading ahead stays inside, their ``bits`` without the padding, and what the header says:
    the ``total`` of values and the four ``sizes``.
    """

    data: bytes
    bits: int
    total: int
    sizes: tuple[int, ...]


def encode(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> list[int]:
    """A mask (H, W) as Label Studio's ``rle``: ints 0–255.

    True becomes alpha 255; uint8 is kept as alpha, so a mask of 0 and 1 would be all but transparent. R, G and B repeat the alpha. The
    bytes are those of the SDK's ``mask2rle``, less the spare zero byte that it adds where the stream already ends on a whole byte.

    Raises MaskCodecError for another shape or dtype, for a mask without pixels, and for one of more than ``MAX_PIXELS``.
    """
    flat = _flat(mask)
    ends = _run_ends(flat.view(np.uint8))
    alpha = flat[ends - 1].astype(np.int64) * (255 if flat.dtype == np.bool_ else 1)
    rle: list[int] = _pack(flat.size * CHANNELS, *_records(np.diff(ends, prepend=0) * CHANNELS, alpha)).tolist()
    return rle


def decode(rle: Sequence[int] | bytes | NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The alpha channel (height, width), uint8, of a mask that the SDK, the browser's editor or another tool wrote.

    The four sizes may differ from the usual ones, R, G and B from the alpha, and a record may begin inside a pixel. What follows the last
    record is ignored, as by the SDK and the editor. Pixels take memory only once the records that fill them are found to be right, and
    never more than two bytes each.

    Raises MaskCodecError where the stream does not hold exactly height x width pixels, is cut short, is longer than any mask of its size,
    is not one of 8-bit words or not made of ints 0–255, and where the sides are not positive or make more than ``MAX_PIXELS``.
    """
    pixels = _pixels(height, width)
    stream = _read_header(_to_bytes(rle, pixels), pixels)
    return _read_records(stream).reshape(height, width)


# Writing


def _flat(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> NDArray[Any]:
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8):
        what = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise MaskCodecError(f"a mask to encode is a (height, width) array of bool or uint8, not {what}")
    _pixels(*mask.shape)
    return np.ascontiguousarray(mask).reshape(-1)


def _run_ends(flat: _Bytes) -> _Ints:
    """Where each run of equal pixels ends (exclusive), ascending; the last is the number of pixels."""
    left, right = flat[:-1], flat[1:]
    # A clean mask changes in few places, so eight pairs of neighbours are compared at once, and only eights that differ are looked into.
    whole = left.size // 8 * 8
    busy = np.flatnonzero(left[:whole].view(np.uint64) != right[:whole].view(np.uint64))
    word, pair = np.nonzero(left[:whole].reshape(-1, 8)[busy] != right[:whole].reshape(-1, 8)[busy])
    rest = np.flatnonzero(left[whole:] != right[whole:]) + whole
    return np.concatenate([busy[word] * 8 + pair + 1, rest + 1, [flat.size]])


def _records(lengths: _Ints, words: _Ints) -> tuple[_Ints, _Ints]:
    """Return the records for runs, of which the i-th repeats the byte ``words[i]`` ``lengths[i]`` times: each record's bits as a number,
    and how many bits these are.

    A run too long for one record is split, and keeps the largest size for its remainder, as in the SDK.
    """
    chosen = np.searchsorted([1 << size for size in SIZES[:-1]], lengths)
    parts = -(-lengths // LONGEST_RUN)
    if parts.max() > 1:
        last = np.cumsum(parts) - 1
        remainders = lengths - (parts - 1) * LONGEST_RUN
        chosen, words = np.repeat(chosen, parts), np.repeat(words, parts)
        lengths = np.full(chosen.size, LONGEST_RUN)
        lengths[last] = remainders
    size = np.array(SIZES)[chosen]
    return (((4 | chosen) << size) | (lengths - 1)) << WORD_BITS | words, _MARK_BITS + size + WORD_BITS


def _pack(count: int, codes: _Ints, widths: _Ints) -> _Bytes:
    """Return as bytes the header for ``count`` values and, after it, records of ``widths`` bits each, given as the numbers ``codes``."""
    ends = HEADER_BITS + np.cumsum(widths)
    starts = ends - widths
    total = -(-int(ends[-1]) // 8)
    out = np.zeros(total + 5, np.uint8)
    header = count << 5 | (WORD_BITS - 1)
    for size in SIZES:
        header = header << 4 | (size - 1)
    out[:7] = np.frombuffer((header << 56 - HEADER_BITS).to_bytes(7, "big"), np.uint8)
    # A record has 14 to 27 bits and lies in at most five bytes. As none is shorter than a byte, no two begin in the same byte, so each
    # assignment below meets every byte at most once.
    windows = codes << (40 - widths - (starts & 7))
    first = starts >> 3
    for k in range(5):
        out[first + k] |= (windows >> (32 - 8 * k) & 255).astype(np.uint8)
    return out[:total]


# Reading


def _pixels(height: int, width: int) -> int:
    try:
        height, width = operator.index(height), operator.index(width)
    except TypeError:
        raise MaskCodecError("a mask's height and width are whole numbers") from None
    if height <= 0 or width <= 0:
        raise MaskCodecError("a mask's height and width are above 0")
    if height * width > MAX_PIXELS:
        raise MaskCodecError(f"a mask has at most {MAX_PIXELS:,} pixels")
    return height * width


def _to_bytes(rle: Sequence[int] | bytes | NDArray[np.uint8], pixels: int) -> bytes:
    if isinstance(rle, str) or not isinstance(rle, (Sequence, np.ndarray)):
        raise MaskCodecError(f"a mask's rle is a list of whole numbers 0 to 255, not {type(rle).__name__}")
    if isinstance(rle, np.ndarray) and (rle.dtype != np.uint8 or rle.ndim != 1):
        raise MaskCodecError(f"a mask's rle as an array is uint8 (length,), not {rle.dtype} {rle.shape}")
    # The longest stream has a record of the largest size for every single value, and the SDK's spare byte.
    if len(rle) > (HEADER_BITS + pixels * CHANNELS * (_MARK_BITS + SIZES[-1] + WORD_BITS)) // 8 + 2:
        raise MaskCodecError(f"a mask's rle of {len(rle):,} bytes is too long for its {pixels:,} pixels")
    if isinstance(rle, np.ndarray):
        return rle.tobytes()
    try:
        return bytes(rle if isinstance(rle, (bytes, list)) else list(rle))
    except (TypeError, ValueError, OverflowError):
        raise MaskCodecError("a mask's rle is made of whole numbers 0 to 255") from None


def _read_header(data: bytes, pixels: int) -> _Stream:
    bits = len(data) * 8
    if bits < HEADER_BITS:
        raise MaskCodecError(f"a mask's rle is cut short: {len(data)} bytes do not hold its header")
    header = int.from_bytes(data[:7], "big") >> 56 - HEADER_BITS
    count, word_bits = header >> 21, (header >> 16 & 31) + 1
    if count != pixels * CHANNELS:
        raise MaskCodecError(f"a mask's rle counts {count:,} values, and its {pixels:,} pixels are {pixels * CHANNELS:,}")
    if word_bits != WORD_BITS:
        raise MaskCodecError(f"a mask's rle has words of {word_bits} bits instead of {WORD_BITS}")
    return _Stream(data + bytes(8), bits, count, tuple((header >> shift & 15) + 1 for shift in (12, 8, 4, 0)))


def _read_records(stream: _Stream) -> _Bytes:
    """The alpha of all pixels, in their order."""
    data = np.frombuffer(stream.data, np.uint8)
    parts: list[_Bytes] = []
    position, filled = HEADER_BITS, 0
    while filled < stream.total:
        starts, position, after = _walk(stream, position, filled)
        if position > stream.bits or not starts:
            raise MaskCodecError(f"a mask's rle is cut short: its {stream.bits // 8:,} bytes end before its last pixel")
        if after > stream.total:
            raise MaskCodecError("a mask's rle runs on past its last pixel")
        parts.append(_alpha(data, np.array(starts), filled, stream.sizes))
        filled = after
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _walk(stream: _Stream, position: int, filled: int) -> tuple[list[int], int, int]:
    """Go through one batch of records, from the bit ``position``, where ``filled`` values are already read.

    Return the bit at which each record begins, the bit after the last record, and the number of values by then. Only marks and lengths are
    read in this loop, for each record's place depends on the one before; numpy does the rest.
    """
    data, total, stop = stream.data, stream.total, min(stream.bits, position + _BATCH_BITS)
    fields = [(size, 29 - size, (1 << size) - 1) for size in stream.sizes]
    window_at = struct.Struct(">I").unpack_from
    starts: list[int] = []
    while filled < total and position < stop:
        starts.append(position)
        # 25 bits from here on, from bit 31 down; the mark and the longest length take 19.
        window = window_at(data, position >> 3)[0] << (position & 7)
        size, shift, mask = fields[window >> 29 & 3]
        length = (window >> shift & mask) + 1
        filled += length
        position += _MARK_BITS + size + (WORD_BITS if window & _RUN else WORD_BITS * length)
    return starts, position, filled


def _alpha(data: _Bytes, starts: _Ints, filled: int, sizes: tuple[int, ...]) -> _Bytes:
    """The alpha of the pixels that end in the records that begin at the bits ``starts``; ``filled`` values come before these."""
    marks = _bits(data, starts, _MARK_BITS)
    size = np.array(sizes)[marks & 3]
    lengths = _bits(data, starts + _MARK_BITS, size) + 1
    words = starts + _MARK_BITS + size
    ends = filled + np.cumsum(lengths)
    begins = ends - lengths
    # Alpha is every fourth value: pixel p has it at value 4p + 3, so t values hold the alpha of t // 4 pixels.
    first = begins // CHANNELS
    repeats = ends // CHANNELS - first
    literal = marks < 4
    if literal.any():
        # Each pixel of a literal has a word of its own, a run only one.
        entries = np.where(literal, repeats, 1)
        record = np.repeat(np.arange(starts.size), entries)
        pixel = first[record] + np.arange(record.size) - (np.cumsum(entries) - entries)[record]
        skipped = np.where(literal[record], pixel * CHANNELS + CHANNELS - 1 - begins[record], 0)
        words = words[record] + skipped * WORD_BITS
        repeats = np.where(literal[record], 1, repeats[record])
    return np.repeat(_bits(data, words, WORD_BITS).astype(np.uint8), repeats)


def _bits(data: _Bytes, positions: _Ints, widths: _Ints | int) -> _Ints:
    """The numbers of ``widths`` bits (at most 17) at the bits ``positions``."""
    first = positions >> 3
    window: _Ints = data[first].astype(np.int64) << 16 | data[first + 1].astype(np.int64) << 8 | data[first + 2]
    return window >> (24 - widths - (positions & 7)) & (1 << widths) - 1
