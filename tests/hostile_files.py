"""Small files that ask a decoder for far more work or memory than their headers say, made in code."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def many_scans(side: int, scans: int, colour: str = "L") -> bytes:
    """A progressive JPEG of ``side`` squared whose last refinement scan is repeated: each repetition passes over every coefficient."""
    buffer = io.BytesIO()
    Image.new(colour, (side, side)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def tiff(tags: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory of (tag, type, count, value or offset), which ``tail`` follows."""
    tags = sorted(tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4 + tail


def huge_tile(side: int = 64, tile_width: int = 24_000, tile_height: int = 20_000) -> bytes:
    """A TIFF of ``side`` squared in a single deflated RGB tile that is far larger."""
    entries = 11
    start = 8 + 2 + 12 * entries + 4
    bits = start
    body = struct.pack("<3H", 8, 8, 8)
    packed = zlib.compress(bytes(tile_width * 3 * 64), 9)
    offset = start + len(body)
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 3, bits), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3), (284, 3, 1, 1)]
    tags += [(322, 4, 1, tile_width), (323, 4, 1, tile_height), (324, 4, 1, offset), (325, 4, 1, len(packed))]
    assert len(tags) == entries
    return tiff(tags, body + packed)


def odd_tags(count: int) -> bytes:
    """A TIFF whose directory is full of tags that reach beyond the file's end; its reader warns of each."""
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64)]
    tags += [(33_000 + number, 2, 1_000_000, 100) for number in range(count)]
    tags.append((273, 4, 1, 8 + 2 + 12 * (len(tags) + 1) + 4))
    return tiff(tags, bytes(64))
