"""The pictures of an export: each once, under a name of its own, upright."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sam4mllm.images import SUFFIXES, decode_image, open_image, orientation_of, picture_suffix

LONGEST_NAME = 200
"""The most bytes of a picture's name, in UTF-8 and without its ending: with numbers and the ending it then has under 255 bytes, the most
that file systems take."""
_UNFIT = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]')


@dataclass(frozen=True)
class ExportedPicture:
    """A picture of the export. ``number`` counts from 1. ``name`` is its file name, whose stem no other picture has. ``height`` and
    ``width`` are those of the upright picture, in pixels.
    """

    number: int
    name: str
    reference: str
    height: int
    width: int

    @property
    def stem(self) -> str:
        return Path(self.name).stem


@dataclass(frozen=True)
class PictureFile:
    """The file that is written for a picture. ``data`` are its bytes, which show the picture upright; ``ending`` is that of
    its format, such as ".png"; ``height`` and ``width`` are in pixels.
    """

    data: bytes
    ending: str
    height: int
    width: int


def read_upright(data: bytes, max_pixels: int) -> PictureFile:
    """Return a picture's file as it is, or, if its EXIF data say that it must be turned, as a PNG that has been turned. Half of the readers
    ignore EXIF data, and the masks are those of the picture as Label Studio shows it, which is turned.

    Raises ImageError if it is no picture that can be read, or has more than ``max_pixels`` pixels.
    """
    with open_image(io.BytesIO(data), max_pixels) as image:
        turned = orientation_of(image) != 1  # asked before decoding, because decoding a TIFF turns it
        pixels = decode_image(image, max_pixels)
    height, width = pixels.shape[:2]
    if turned:
        return PictureFile(_as_png(pixels), ".png", height, width)
    return PictureFile(data, SUFFIXES[image.format or ""][0], height, width)


def _as_png(pixels: NDArray[np.uint8]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


class Names:
    """Gives each picture a name whose stem no other has, for label files are named by stems."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def choose(self, reference: str, task: int, ending: str) -> str:
        """Return the file's own name, or ``task-NUMBER`` if the file has no name. If the stem is taken, in upper or lower case, the task's
        number is added, and a further number if that is taken, too. Characters that some file systems refuse become ``_``, and a name of
        more than LONGEST_NAME bytes is cut.

        ``ending`` is that of the file to be written, and replaces an ending of another format; it is empty if no file is written.
        """
        path = PurePosixPath(_UNFIT.sub("_", own_name(reference)))
        suffix = path.suffix if picture_suffix(path) else ""
        stem = (path.name.removesuffix(suffix) or f"task-{task}").encode()[:LONGEST_NAME].decode(errors="ignore")
        numbered = (f"{stem}-{task}-{number}" for number in count(len(self._taken)))
        name = next(one for one in chain([stem, f"{stem}-{task}"], numbered) if one.casefold() not in self._taken)
        self._taken.add(name.casefold())
        same = any({suffix.lower(), ending} <= {*endings} for endings in SUFFIXES.values())
        return name + (suffix if same or not ending else ending)


def own_name(reference: str) -> str:
    """Return the last segment of a reference's path, or of the path in a local file's ``?d=``. It is empty for ``data:`` URIs."""
    if reference[:5].lower() == "data:":
        return ""
    try:
        parts = urlsplit(reference)
        path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0] if "local-files" in parts.path else unquote(parts.path)
    except ValueError:
        path = reference
    return path.rstrip("/").rpartition("/")[2]
