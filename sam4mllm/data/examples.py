"""The dataset format: pictures with phrases and the masks they mean.

A dataset is a folder with ``images/`` and ``examples.jsonl``, one line an example::

    {
        "image": "images/ab12.png",
        "sha256": "…",
        "width": 640,
        "height": 480,
        "phrase": "the left cup",
        "instances": [{"box": [x1, y1, x2, y2], "rle": {"size": [480, 640], "counts": "…"}}],
        "split": "train",
        "source": "…",
        "ignore": {"size": [480, 640], "counts": "…"},
    }

``sha256`` is of the image file's bytes. Width, height, boxes (pixels, right and bottom sides exclusive) and masks (COCO run lengths) are
those of the picture turned as its EXIF data says. No instances: the phrase has no target in the picture. Other keys are passed over.

Two keys may be left out: ``ignore``, a mask whose pixels count neither way when a prediction is measured; and ``origin``, which picture it
is where sets share their pictures, such as ``coco:581857``: the same one, whatever its file's bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from sam4mllm.durable import publish, replace_file, sync_path
from sam4mllm.errors import DatasetError, ImageError, MaskCodecError
from sam4mllm.images import MAX_PIXELS, check_image, image_sha256, load_image, picture_suffix
from sam4mllm.masks import Rle, box_of, from_rle, rle_area, to_rle, union

EXAMPLES = "examples.jsonl"
IMAGES = "images"
MAX_INSTANCES = 1_000
"""Most instances of an example; a crowded picture has a few hundred, and each costs a whole mask of memory."""

_ANY = re.compile(r".*", re.DOTALL)
_SOMETHING = re.compile(r".*\S.*", re.DOTALL)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPLIT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ORIGIN = re.compile(r"[!-~]{0,128}")


@dataclass(frozen=True, eq=False)
class ExampleInstance:
    """One object that a phrase means: ``box_px`` (4,) float32 x1, y1, x2, y2 and its mask as ``rle``."""

    box_px: NDArray[np.float32]
    rle: Rle


@dataclass(frozen=True, eq=False)
class Example:
    """One line of a dataset; ``image`` is the path inside the dataset's folder."""

    image: str
    sha256: str
    width: int
    height: int
    phrase: str
    instances: tuple[ExampleInstance, ...]
    split: str
    source: str
    ignore: Rle | None = None
    origin: str = ""

    @property
    def has_target(self) -> bool:
        """Whether the phrase means anything in the picture."""
        return len(self.instances) > 0

    @property
    def boxes_px(self) -> NDArray[np.float32]:
        """(N, 4) float32 px, a row for each instance."""
        return np.array([instance.box_px for instance in self.instances], np.float32).reshape(-1, 4)

    def masks(self) -> NDArray[np.bool_]:
        """(N, height, width) bool, one for each instance. Raises MaskCodecError, though not of what ``read_examples`` gave."""
        masks = np.zeros((len(self.instances), self.height, self.width), np.bool_)
        for index, instance in enumerate(self.instances):
            masks[index] = from_rle(instance.rle, self.height, self.width, max_pixels=self.height * self.width)
        return masks

    def union(self) -> NDArray[np.bool_]:
        """(height, width) bool, all instances together; what the metrics call the truth."""
        return union(self.masks())

    def ignored(self) -> NDArray[np.bool_] | None:
        """(height, width) bool, the pixels that count neither way, or None if all count."""
        if self.ignore is None:
            return None
        return from_rle(self.ignore, self.height, self.width, max_pixels=self.height * self.width)


@dataclass(frozen=True)
class ImageRecord:
    """A picture in a dataset's folder: its path there, the SHA-256 of its file, and its sides in pixels once it is upright."""

    image: str
    sha256: str
    width: int
    height: int


# -- reading -------------------------------------------------------------------------------------------------------------------------------


def read_examples(folder: Path, max_pixels: int = MAX_PIXELS) -> list[Example]:
    """All examples of a dataset, in order, each checked: its fields, its boxes and masks, and that its image is a file inside the folder.

    Images are not opened; ``load_example_image`` checks them when their turn comes.

    Raises:
        DatasetError: with the file and the line that is wrong, or the file that is missing.
    """
    return list(each_example(folder, max_pixels))


def each_example(folder: Path, max_pixels: int = MAX_PIXELS) -> Iterator[Example]:
    """The same, one at a time: those of a large set fill a gigabyte. Raises DatasetError, when the line's turn comes."""
    folder = Path(folder)
    path = folder / EXAMPLES
    pictures: dict[str, ImageRecord] = {}
    root = folder.resolve()
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    example = _checked(_parse(line), max_pixels)
                    _check_picture(root, example, pictures)
                except DatasetError as error:
                    raise DatasetError(f"{path}, line {number}: {error}") from error
                yield example
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); a dataset is a folder with {EXAMPLES} and {IMAGES}/") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text after line {number}; write it again") from error


def load_example_image(folder: Path, example: Example, verify_sha256: bool = False, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """An example's picture, upright, (height, width, 3) uint8 RGB.

    Args:
        folder: the dataset.
        example: one of its examples.
        verify_sha256: compare the file's hash too, which reads it a second time.
        max_pixels: as of ``load_image``.

    Raises:
        DatasetError: it lies outside the folder, is missing, cannot be decoded, or is not the picture that was meant.
    """
    path = _image_path(Path(folder).resolve(), example.image)
    try:
        if verify_sha256 and image_sha256(path) != example.sha256:
            raise DatasetError(f"{path} is not the file that the dataset was written with (SHA-256); restore it or write the dataset again")
        image = load_image(path, max_pixels)
    except ImageError as error:
        raise DatasetError(f"{path}: {error}") from error
    if image.shape[:2] != (example.height, example.width):
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise DatasetError(f"{path} is {size} pixels, its examples say {example.width} x {example.height}; write the dataset again")
    return image


def _check_picture(root: Path, example: Example, pictures: dict[str, ImageRecord]) -> None:
    """Look for an image once, and see that all its examples say the same of it; ``pictures`` remembers."""
    record = ImageRecord(example.image, example.sha256, example.width, example.height)
    if example.image not in pictures:
        _image_path(root, example.image)
    if pictures.setdefault(example.image, record) != record:
        raise DatasetError(f"the image {_shown(example.image)} has another hash or size on an earlier line; write the dataset again")


def _image_path(root: Path, image: str) -> Path:
    """Where an image of the folder ``root`` (resolved) lies; links are followed, so that none leads out of it."""
    path = root / image
    try:
        inside = path.resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):
        inside = False
    if not inside:
        raise DatasetError(f"the image {_shown(image)} is not inside the dataset's folder; copy it there")
    if not os.path.isfile(path):
        raise DatasetError(f"the image {_shown(image)} is missing; copy it into the dataset's folder")
    return path


def _parse(line: str) -> object:
    try:
        return json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DatasetError("it is not valid JSON; write one object a line") from error


def _checked(fields: object, max_pixels: int) -> Example:
    """A line's fields as an example, all of it checked but the image's file; errors say what is wrong, the caller says where."""
    if not isinstance(fields, dict):
        raise DatasetError("it is not an object with image, phrase and instances")
    width, height = _side(fields, "width"), _side(fields, "height")
    if width * height > max_pixels:
        raise DatasetError(f"{width} x {height} pixels are more than the {max_pixels:,} that are allowed")
    instances = fields.get("instances")
    if not isinstance(instances, list) or len(instances) > MAX_INSTANCES:
        raise DatasetError(f"instances is a list of at most {MAX_INSTANCES:,} objects, empty if the phrase has no target")
    return Example(
        image=_relative(_text(fields, "image", _SOMETHING)),
        sha256=_text(fields, "sha256", _SHA256),
        width=width,
        height=height,
        phrase=_text(fields, "phrase", _SOMETHING),
        instances=tuple(_checked_instance(instance, index, height, width, max_pixels) for index, instance in enumerate(instances)),
        split=_text(fields, "split", _SPLIT),
        source=_text(fields, "source", _ANY),
        ignore=_checked_ignore(fields.get("ignore"), height, width, max_pixels),
        origin=_text(fields, "origin", _ORIGIN) if "origin" in fields else "",
    )


def _checked_ignore(rle: object, height: int, width: int, max_pixels: int) -> Rle | None:
    if rle is None:
        return None
    if not isinstance(rle, dict):
        raise DatasetError("ignore is the run lengths of a mask, or left out")
    try:
        rle_area(rle, height, width, max_pixels)
    except MaskCodecError as error:
        raise DatasetError(f"ignore: {error}") from error
    return Rle(size=[height, width], counts=rle["counts"])


def _checked_instance(fields: object, index: int, height: int, width: int, max_pixels: int) -> ExampleInstance:
    if not isinstance(fields, dict) or not isinstance(fields.get("rle"), dict):
        raise DatasetError(f"instance {index} is not an object with box and rle")
    box = fields.get("box")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_coordinate(number) for number in box):
        raise DatasetError(f"instance {index}: box is four finite numbers, x1, y1, x2, y2")
    if not (box[0] < box[2] and box[1] < box[3]):
        raise DatasetError(f"instance {index}: box {box} has no area; x1 < x2 and y1 < y2")
    try:
        area = rle_area(fields["rle"], height, width, max_pixels)
    except MaskCodecError as error:
        raise DatasetError(f"instance {index}: {error}") from error
    if area == 0:
        raise DatasetError(f"instance {index}: its mask is empty; leave the instance out")
    rle = Rle(size=[height, width], counts=fields["rle"]["counts"])
    return ExampleInstance(np.array(box, np.float32), rle)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _is_coordinate(number: object) -> bool:
    # the bound is far above every picture, and NaN and infinity are not below it
    return isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 1e9


def _side(fields: dict[str, Any], name: str) -> int:
    side = fields.get(name)
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise DatasetError(f"{name} is the picture's in pixels, a whole number from 1 up, not {_shown(side)}")
    return side


def _text(fields: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    text = fields.get(name)
    if not isinstance(text, str) or not pattern.fullmatch(text) or not _is_unicode(text):
        raise DatasetError(f"{name} is missing or not as it should be: {_shown(text)}")
    return text


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; JSON can spell half a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _relative(image: str) -> str:
    path = PurePosixPath(image)
    # a backslash or a colon is a separator or a drive on another system
    if path.is_absolute() or ".." in path.parts or any(mark in image for mark in "\\:\0"):
        raise DatasetError(f"the image {_shown(image)} is not a path inside the dataset's folder, such as {IMAGES}/ab12.png")
    return image


# -- writing -------------------------------------------------------------------------------------------------------------------------------


class FolderError(DatasetError):
    """A dataset's folder cannot be written, whatever is written to it."""


class ExampleWriter:
    """Writes a dataset into a folder, as a context manager.

    ``examples.jsonl`` appears at the end and whole: it is written under another name, flushed to the disk, and renamed when the block ends
    without an error. Images are written in the same way as they come, so that whatever it names is there. After an error or a kill the
    folder has no ``examples.jsonl``, and writing it again uses the images that are there. One writer to a folder at a time.

    Raises:
        DatasetError: the folder already holds a dataset (on entering).
        FolderError: it cannot be written (at any time).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._target = self.folder / EXAMPLES
        self._temporary = self.folder / f".{EXAMPLES}.tmp"
        self._file: IO[bytes] | None = None
        self._copied: dict[str, ImageRecord] = {}

    def __enter__(self) -> Self:
        if self._target.exists():
            raise DatasetError(f"{self.folder} already holds a dataset; choose another folder or remove {EXAMPLES}")
        with self._writing():
            (self.folder / IMAGES).mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        file, self._file = self._opened(), None
        try:
            with self._writing():
                file.close()
                if kind is None:
                    sync_path(self.folder / IMAGES)
                    publish(self._temporary, self._target)
        finally:
            with suppress(OSError):
                self._temporary.unlink()

    def add_image(self, image: NDArray[np.uint8]) -> ImageRecord:
        """Store a picture (H, W, 3) uint8 RGB as PNG, once however often it is added. Raises ImageError unless it is such an array."""
        check_image(image)
        packed = io.BytesIO()
        Image.fromarray(image).save(packed, "PNG")
        return self._store(packed.getvalue(), ".png", image.shape[1], image.shape[0])

    def add_image_file(self, path: Path, max_pixels: int = MAX_PIXELS, *, link: bool = False) -> ImageRecord:
        """Store a picture's file as it is; a photo stays a JPEG of its size. Raises ImageError if it cannot be read.

        ``link``: as a second name of the same file where the disk allows it, for collections of pictures that nobody edits.
        """
        path = Path(path)
        image = load_image(path, max_pixels)
        return self._store(path.read_bytes(), picture_suffix(path), image.shape[1], image.shape[0], path if link else None)

    def add_image_data(self, data: bytes, max_pixels: int = MAX_PIXELS) -> ImageRecord:
        """Store a picture's file that is in memory, as it is. Raises ImageError if it cannot be read."""
        height, width = load_image(data, max_pixels).shape[:2]
        return self._store(data, "", width, height)

    def add(
        self,
        record: ImageRecord,
        phrase: str,
        masks: Iterable[NDArray[np.bool_]],
        split: str,
        source: str,
        *,
        boxes: ArrayLike | None = None,
        ignored: NDArray[np.bool_] | None = None,
        origin: str = "",
    ) -> None:
        """Write one example.

        Args:
            record: what ``add_image`` or ``add_image_file`` returned.
            phrase: the referring expression.
            masks: N of (H, W) bool, none of them empty; N = 0 says that the phrase has no target. They are taken one at a time, and may
                be made as they are asked for: hundreds of a large picture are gigabytes.
            split: ``train``, ``val``, ``test`` and the like.
            source: where the example comes from; may be empty.
            boxes: (N, 4) px; those around the masks if None.
            ignored: (H, W) bool, pixels that count neither way; None if all count.
            origin: which picture it is, as in the dataset format; may be empty.

        Raises:
            DatasetError: what ``read_examples`` would refuse is not written; what ``masks`` raises passes, and nothing is written either.
        """
        encoded = [_encoded(mask, record) for mask in masks]
        boxes_px = np.array([box for box, _ in encoded], np.float32) if boxes is None else np.asarray(boxes, np.float32)
        if boxes_px.shape != (len(encoded), 4) and (encoded or boxes_px.size):
            raise DatasetError(f"boxes are one row of four numbers for each of {len(encoded)} masks, not {boxes_px.shape}")
        instances = [ExampleInstance(box, rle) for box, (_, rle) in zip(boxes_px, encoded, strict=True)]
        ignore = to_rle(ignored) if ignored is not None and ignored.any() else None
        self.add_encoded(record, phrase, instances, split, source, ignore=ignore, origin=origin)

    def add_encoded(
        self,
        record: ImageRecord,
        phrase: str,
        instances: Iterable[ExampleInstance],
        split: str,
        source: str,
        *,
        ignore: Rle | None = None,
        origin: str = "",
    ) -> None:
        """Write one example as ``add`` does, of masks that are run lengths already."""
        fields = {
            **asdict(record),
            "phrase": phrase,
            "instances": [{"box": one.box_px.tolist(), "rle": one.rle} for one in instances],
            "split": split,
            "source": source,
            **({"ignore": ignore} if ignore else {}),
            **({"origin": origin} if origin else {}),
        }
        _checked(fields, max_pixels=record.width * record.height)
        with self._writing():
            self._opened().write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")

    def copy(self, folder: Path, example: Example) -> None:
        """Write an example of the dataset in ``folder``, with its picture's file, linked where the disk allows it.

        Raises DatasetError, also if that file has changed.
        """
        record = self._copied.get(example.sha256)
        if record is None:
            path = _image_path(Path(folder).resolve(), example.image)
            try:
                data = path.read_bytes()
            except OSError as error:
                raise DatasetError(f"{path} cannot be read ({error.strerror})") from error
            if hashlib.sha256(data).hexdigest() != example.sha256:
                raise DatasetError(
                    f"{path} is not the file that the dataset was written with (SHA-256); restore it or write the dataset again"
                )
            record = self._store(data, picture_suffix(path), example.width, example.height, path)
            self._copied[example.sha256] = record
        self.add_encoded(
            record, example.phrase, example.instances, example.split, example.source, ignore=example.ignore, origin=example.origin
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FolderError(f"{self.folder} cannot be written ({error.strerror}); free space or choose another folder") from error

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            raise RuntimeError("an ExampleWriter writes inside its with block only")
        return self._file

    def _store(self, data: bytes, suffix: str, width: int, height: int, source: Path | None = None) -> ImageRecord:
        """``source``: the file that holds the data and may be linked."""
        self._opened()
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"{IMAGES}/{sha256[:16]}{suffix}"
        target = self.folder / name
        with self._writing():
            if (not target.is_file() or target.stat().st_size != len(data)) and not (source and _linked(source, target)):
                replace_file(target, data)
        return ImageRecord(name, sha256, width, height)


def _linked(source: Path, target: Path) -> bool:
    """Whether the file has the second name now; not on another disk, and not where the system forbids it."""
    with suppress(OSError):
        os.link(source.resolve(), target)
        return True
    return False


def _encoded(mask: ArrayLike, record: ImageRecord) -> tuple[NDArray[np.float32], Rle]:
    """A mask's box (4,) px and its run lengths. Raises DatasetError unless it is of the image's size."""
    array = np.asarray(mask, np.bool_)
    if array.shape != (record.height, record.width):
        raise DatasetError(f"masks are (N, {record.height}, {record.width}) as their image, and one of them is {array.shape}")
    return box_of(array), to_rle(array)
