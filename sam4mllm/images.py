"""Pictures from anywhere to one form: (H, W, 3) uint8 RGB, turned as its EXIF data says.

A picture is foreign data. Its format must be one of a short list, and its size is read from the header and checked before a pixel is
decoded. The format readers of Pillow are called directly: ``Image.open`` reports a large picture through the warnings filter, which belongs
to the whole process and cannot be silenced by one thread of a server.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path, PurePath
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sam4mllm.errors import ImageError

MAX_PIXELS = 50_000_000
"""Most pixels (width times height) of a picture that is decoded: more than usual cameras have, and 150 MB as RGB. A caller may allow more,
up to Pillow's own limit of 89,478,485."""
MIN_SIDE = 8
"""Smallest side in pixels, about half a patch of the vision towers in use (14 or 16 pixels): below it there is nothing to see, and 1 x N
pictures make several image processors round a side to nothing."""

ImageSource = str | Path | bytes | BinaryIO | Image.Image | NDArray[Any]

_READERS: tuple[tuple[tuple[bytes, ...], Callable[[IO[bytes]], ImageFile]], ...] = (
    ((b"\xff\xd8\xff",), JpegImageFile),
    ((b"\x89PNG\r\n\x1a\n",), PngImageFile),
    ((b"RIFF",), WebPImageFile),
    ((b"GIF87a", b"GIF89a"), GifImageFile),
    ((b"II*\0", b"MM\0*"), TiffImageFile),
    ((b"BM",), BmpImageFile),
)
NO_MEMORY = "the image takes more memory to decode than a picture of its size should; save it again as PNG or JPEG"
_PILLOW_NO_MEMORY = "error -9"
"""How Pillow says that a decoder could not allocate (IMAGING_CODEC_MEMORY)."""
_FORMATS = "JPEG, PNG, WebP, BMP, TIFF or GIF"
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
"""What the names of files end in, by Pillow's names of the formats that are read; the usual ending first."""
PICTURE_SUFFIXES = tuple(chain.from_iterable(SUFFIXES.values()))

_STORED_VIEWS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}
"""For each EXIF orientation that is not upright (EXIF 2.32, tag 274): the view of the upright array in which pixels lie as in the file."""
_BAND_ROWS = 256
"""Rows that are converted at once, so that a conversion takes only some megabytes beside the decoded picture."""


def _empty(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.empty(shape, np.uint8)


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return the picture as a new, writable (H, W, 3) uint8 RGB array in reading order.

    Its EXIF orientation is applied, and pixel coordinates elsewhere always refer to this array. Of an animation or a file of several pages
    the first is taken. Transparent parts become white, and 16-bit grey is reduced to its upper 8 bits.

    Args:
        source: a path, the bytes of a file, an open binary file (read from where it stands, and not closed), a Pillow image, or an array
            that is already (H, W, 3) uint8 RGB.
        max_pixels: the most pixels that are decoded; Pillow's own limit (``PIL.Image.MAX_IMAGE_PIXELS``) holds as well.

    Raises:
        ImageError: the source is none of these, cannot be opened, is of another format, is damaged, has sides that are not allowed or 32
            bits a channel, or takes too much memory to decode.
    """
    if isinstance(source, np.ndarray):
        check_image(source)
        _check_sides(source.shape[1], source.shape[0], max_pixels)
        return np.array(source, np.uint8, order="C")
    if isinstance(source, Image.Image):
        return decode_image(source, max_pixels)
    with _opened(source) as file:
        return decode_image(open_image(file, max_pixels), max_pixels)


def open_image(file: BinaryIO, max_pixels: int) -> ImageFile:
    """Open a picture and check its size without decoding its pixels. The file must stay open until they are decoded.

    Raises ImageError if the format is unknown, the header is damaged, or the size is not allowed.
    """
    start = file.read(16)
    if not start:
        raise ImageError("the image file is empty; send it again")
    reader = next((reader for signatures, reader in _READERS if start.startswith(signatures)), None)
    if reader is None:
        raise ImageError(f"the file is no image of a known format; use {_FORMATS}")
    try:
        if reader is GifImageFile:
            _check_sides(*_first_gif_frame(file), max_pixels)
        file.seek(0)
        if (stated := _webp_size(file)) is not None:
            _check_sides(*stated, max_pixels)
        image = reader(file)
        _check_sides(*image.size, max_pixels)
        return image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large; make it smaller, at most {max_pixels:,} pixels in all") from error
    except Exception as error:  # foreign bytes make a reader raise almost anything
        raise ImageError(f"the image's header is damaged ({_brief(error)}); save it again as {_FORMATS}") from error


def read_size(file: BinaryIO, max_pixels: int) -> tuple[int, int]:
    """Return the width and height that a file's header states, before its EXIF orientation is applied. Only the header is read, and the
    file is then rewound.

    Raises ImageError if the format is unknown, the header is damaged, or the size is not allowed; the file may not be rewound then.
    """
    size = _webp_size(file)
    if size is None:
        with open_image(file, max_pixels) as image:
            size = image.size
    _check_sides(*size, max_pixels)
    file.seek(0)
    return size


def decode_image(
    image: Image.Image, max_pixels: int, empty: Callable[[tuple[int, int, int]], NDArray[np.uint8]] = _empty
) -> NDArray[np.uint8]:
    """The pixels of an opened picture, as :func:`load_image` gives them, in an array that ``empty`` makes, given its shape (H, W, 3).

    Raises ImageError if the picture is damaged, has sides that are not allowed or 32 bits a channel, or takes too much memory to decode.
    """
    _check_sides(*image.size, max_pixels)
    if image.mode in ("I", "F"):
        raise ImageError("the image has 32 bits a channel and no defined white; save it with 8 or 16 bits")
    try:
        image.load()
        return _upright_rgb(image, empty)
    except MemoryError as error:
        raise ImageError(NO_MEMORY) from error
    except Exception as error:  # foreign bytes make a decoder raise almost anything
        if str(error).endswith(_PILLOW_NO_MEMORY):
            raise ImageError(NO_MEMORY) from error
        raise ImageError(f"the image is damaged or cut short ({_brief(error)}); send it again") from error


def picture_suffix(path: PurePath) -> str:
    """The ending of a picture's name in lower case; empty if it is that of no format that is read."""
    suffix = path.suffix.lower()
    return suffix if suffix in PICTURE_SUFFIXES else ""


def check_image(image: NDArray[Any]) -> None:
    """Raise ImageError unless the array is a picture as ``load_image`` gives it, (H, W, 3) uint8 with sides of at least MIN_SIDE."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(f"an image array is (height, width, 3) uint8 RGB, not {image.shape} {image.dtype}; convert it first")
    if min(image.shape[:2]) < MIN_SIDE:
        raise ImageError(_too_small(image.shape[1], image.shape[0]))


def image_sha256(source: str | Path | bytes) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits, the ``sha256`` of the dataset format.

    Raises:
        ImageError: the file cannot be read.
    """
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with _opened(source) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _opened(source: str | Path | bytes | BinaryIO) -> Iterator[io.BytesIO | io.BufferedReader]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        # a pipe or a device would block or never end
        if not os.path.isfile(path):
            raise ImageError(f"{path} is not a file; give the path of an image")
        try:
            file = path.open("rb")
        except OSError as error:
            raise ImageError(f"{path} cannot be opened ({error.strerror}); check its permissions") from error
        with file:
            yield file
    else:
        data = source.read() if hasattr(source, "read") else None
        if not isinstance(data, bytes):
            raise ImageError(f"an image is given as a path, bytes, a binary file, a Pillow image or an array, not {type(source).__name__}")
        yield io.BytesIO(data)


def _first_gif_frame(file: BinaryIO) -> tuple[int, int]:
    """Return the width and height of a GIF's screen, enlarged so that the first frame fits. Raises ImageError if there is no frame, and
    struct.error or IndexError if the file is cut short before it.

    A frame may be larger than the screen that the header states, and Pillow's reader warns of it before it hands out the size.
    """
    file.seek(6)
    screen = struct.unpack("<HHBxx", file.read(7))
    if screen[2] & 0x80:
        file.seek(3 << ((screen[2] & 7) + 1), os.SEEK_CUR)
    while kind := file.read(1):
        if kind == b",":
            left, top, width, height = struct.unpack("<4H", file.read(8))
            return max(screen[0], left + width), max(screen[1], top + height)
        if kind == b"!":
            file.seek(1, os.SEEK_CUR)
            while length := file.read(1)[0]:
                file.seek(length, os.SEEK_CUR)
    raise ImageError("the GIF holds no frame; save it again")


def _webp_size(file: BinaryIO) -> tuple[int, int] | None:
    """Width and height that the first chunk of a WebP states; None for another format or what is damaged.

    Pillow's reader takes memory for two whole pictures before it hands out the size.
    """
    head = file.read(30)
    file.seek(0)
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return None


def _too_small(width: int, height: int) -> str:
    return f"the image is {width} x {height} pixels; use one of at least {MIN_SIDE} pixels a side"


def _check_sides(width: int, height: int, max_pixels: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(_too_small(width, height))
    limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    if width * height > limit:
        raise ImageError(f"the image is {width} x {height} pixels; make it smaller, at most {limit:,} pixels in all")


def _upright_rgb(image: Image.Image, empty: Callable[[tuple[int, int, int]], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The decoded picture as an array, converted band by band and turned while it is written."""
    orientation = orientation_of(image)
    width, height = image.size
    stored = _STORED_VIEWS.get(orientation)
    upright = empty((height, width, 3) if orientation < 5 else (width, height, 3))
    rows = upright if stored is None else stored(upright)
    for top in range(0, height, _BAND_ROWS):
        bottom = min(top + _BAND_ROWS, height)
        rows[top:bottom] = np.asarray(_to_rgb(image.crop((0, top, width, bottom))))
    return upright


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened picture, 1 to 8; 1 if its pixels are stored upright, or if it has no valid orientation."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block leaves the pixels as they are, as in a browser
        return 1
    return found if isinstance(found, int) and found in _STORED_VIEWS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion to 8 bits is not the same in all of its releases
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _brief(error: Exception) -> str:
    """An error as the few words of it that fit in a line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 120 else words[:117] + "..."
