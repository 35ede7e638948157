"""The pictures of an export: each once, under a name of its own, upright."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from sam4mllm.images import load_image

LONGEST_NAME = 120
"""Characters of a picture's name, so that with its ending and a number it fits any file system's 255 bytes."""
_UNFIT = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]')
_ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "TIFF": ".tif", "BMP": ".bmp"}
_KNOWN = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class ExportedPicture:
    """``number`` from 1, ``name`` of its file, without a second one of its stem; ``height`` and ``width`` upright, in pixels."""

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
    """What is written of a picture: ``data`` upright, with the ``ending`` of its format."""

    data: bytes
    ending: str
    height: int
    width: int


def read_upright(data: bytes, max_pixels: int) -> PictureFile:
    """A picture's file as it is, or where its EXIF data turns it, as a PNG that is turned: half of the readers pay no heed to EXIF data.

    Masks are of the picture as Label Studio shows it, turned. Raises ImageError if it is no picture that can be read.
    """
    pixels = load_image(data, max_pixels)
    height, width = pixels.shape[:2]
    # its size and its pixels are found right, so that Pillow has nothing to warn of
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            ending = _ENDINGS.get(image.format or "", "")
            turned = _orientation(image) != 1
    return PictureFile(_as_png(pixels) if turned else data, ".png" if turned else ending, height, width)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block turns nothing, as in a browser
        return 1
    return found if found in range(2, 9) else 1


def _as_png(pixels: NDArray[np.uint8]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


class Names:
    """Gives each picture a name whose stem no other has, for label files are named by stems."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def choose(self, reference: str, task: int, ending: str) -> str:
        """The file's own name, with the task's number where that is taken. ``ending`` is empty where the file could not be had."""
        path = PurePosixPath(_UNFIT.sub("_", own_name(reference)))
        suffix = path.suffix if path.suffix.lower() in _KNOWN else ""
        stem = (path.name.removesuffix(suffix) or f"task-{task}")[:LONGEST_NAME]
        tries = [stem, f"{stem}-{task}"]
        while tries[0].casefold() in self._taken:
            tries = tries[1:] or [f"{stem}-{task}-{len(self._taken)}"]
        self._taken.add(tries[0].casefold())
        same = suffix.lower().replace("jpeg", "jpg").replace("tiff", "tif") == ending
        return tries[0] + (suffix if same or not ending else ending)


def own_name(reference: str) -> str:
    """The last part of a path, an address or a local file's ``?d=``; empty of ``data:``."""
    if reference[:5].lower() == "data:":
        return ""
    try:
        parts = urlsplit(reference)
        path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0] if "local-files" in parts.path else unquote(parts.path)
    except ValueError:
        path = reference
    return path.rstrip("/").rpartition("/")[2]
