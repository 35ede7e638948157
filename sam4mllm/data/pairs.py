"""The pairs (a picture, a phrase and outlines) that every reader of a public data set gives, and how they are written as a dataset folder.

The readers (:mod:`sam4mllm.data.refer`, :mod:`~sam4mllm.data.coco`, …) make a :class:`Reading` and know nothing of the folder that is
written; what they have in common is here. The data is not trusted, so it is checked; a pair that cannot be used is left out and counted
with its reason.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from sam4mllm.data.examples import ExampleInstance, ImageRecord
from sam4mllm.data.write_dataset import ExampleWriter, FolderError
from sam4mllm.durable import whole_folder
from sam4mllm.errors import DatasetError, ImageError, MaskCodecError
from sam4mllm.masks import box_of
from sam4mllm.polygons import MAX_COORDINATE
from sam4mllm.run_lengths import Rle, from_rle, to_rle

T = TypeVar("T")
Draw = Callable[[int, int], NDArray[np.bool_]]
"""A function that takes the height and width of a picture and returns a mask (height, width) bool."""
Outline = Sequence[Sequence[float]] | Mapping[str, Any] | Draw
"""An object's polygons, each x1, y1, x2, y2, …, or its COCO run lengths, as in a COCO annotation's ``segmentation``; or a function that
draws its mask."""
Track = Callable[[Iterable[T], int | None], Iterable[T]]
"""A function that takes an iterable and its length (None if unknown) and returns the same items, with a progress bar."""

TRAIN = "train"
LEAST_NUMBERS = 6
"""The fewest numbers that a polygon may have, those of three corners; a shorter one is not drawn. pycocotools would take four numbers for a
box, and fail with fewer."""
MAX_OUTLINE_PX = 1e7
"""The greatest length of one polygon's outline, as the sum of |dx| + |dy| of its sides, in pixels. A longer polygon is refused, because
pycocotools keeps five points in memory for each pixel of the outline; around an object it is usually a few thousand pixels long."""
_COCO_NAME = re.compile(r"COCO_(?:train|val|test)20\d\d_(\d{12})\.")


@dataclass(frozen=True)
class PhrasedPicture:
    """A picture and a phrase, with the outlines of the objects that the phrase means.

    ``image`` is the path of the picture's file, or the bytes of one. ``outlines`` is empty if the phrase means nothing in the picture.
    ``split``, ``source``, ``origin``, ``label`` and ``thought`` are the dataset format's fields of these names
    (:mod:`sam4mllm.data.examples`). ``ignore`` is a function that draws the format's mask ``ignore``; None if all pixels count.

    ``size`` is the picture's (height, width) as the data set states it, or None. The outlines refer to this size, so a pair whose picture
    has another size is left out.
    """

    image: Path | bytes
    phrase: str
    outlines: tuple[Outline, ...]
    split: str
    source: str
    origin: str = ""
    size: tuple[int, int] | None = None
    ignore: Draw | None = None
    label: str | None = None
    thought: str = ""


@dataclass(frozen=True)
class LeftOut:
    """An item of a data set from which no pair can be made. ``reason`` says why, in words for a user."""

    split: str
    source: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """A data set whose files were all found.

    ``pairs`` yields the pairs and, in place of those that cannot be made, a LeftOut; it may be an iterator, so it is iterated only once.
    ``total`` is the number of both together, or None if it is not known beforehand. ``pictures`` is the number of pictures in each split.
    """

    pairs: Iterable[PhrasedPicture | LeftOut]
    total: int | None = None
    pictures: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Prepared:
    """What became of the pairs of a data set.

    ``read`` and ``written`` count pairs by split; those left out count as read. ``images`` is the number of different pictures of the
    written pairs, ``merged`` the number of repetitions dropped, and ``left_out`` the number of pairs left out for each reason. ``first``
    has, for each reason, the source of the first pair left out for it, as an example.
    """

    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    images: int = 0
    merged: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str, source: str) -> None:
        self.left_out[reason] += 1
        self.first.setdefault(reason, source)


def untracked(items: Iterable[T], total: int | None) -> Iterable[T]:
    """Return ``items`` as they are: the Track that shows no progress bar."""
    return items


def coco_origin(name: str) -> str:
    """Return ``coco:<image id>`` for a file name in the form of COCO 2014, ``COCO_train2014_<12 digits>.jpg``.

    ``val`` and ``test``, other years from 2000 on and other suffixes will do, too. Any other name, such as one of COCO 2017, gives an empty
    text.
    """
    found = _COCO_NAME.search(name)
    return f"coco:{int(found[1])}" if found else ""


@contextmanager
def new_dataset(folder: Path) -> Iterator[ExampleWriter]:
    """Give the block a writer of a dataset. ``folder`` appears, complete, when the block ends; after an error in it nothing is left.

    Raises DatasetError if ``folder`` is a file or a folder that is not empty, and FolderError if it cannot be written. An OSError that the
    block raises becomes a FolderError, too.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder} already holds something; choose a new folder")
    try:
        with whole_folder(folder) as temporary, ExampleWriter(temporary) as writer:
            yield writer
    except OSError as error:
        raise FolderError(f"{folder} cannot be written ({error.strerror}); free space or choose another folder") from error


def write_pairs(reading: Reading, folder: Path, track: Track[PhrasedPicture | LeftOut] = untracked) -> Prepared:
    """Write pairs as a dataset, all or nothing.

    In the split ``train``, pairs with the same picture, phrase and objects are written once. Repetitions in the other splits stay, because
    published figures count each of them. A pair whose picture or outlines cannot be used is left out and counted. ``track`` adds a progress
    bar.

    Raises DatasetError if ``folder`` holds something or cannot be written, or if the reader meets a broken or missing file.
    """
    prepared = Prepared()
    with new_dataset(folder) as writer:
        pairs = _Pairs(writer, prepared)
        for pair in track(reading.pairs, reading.total):
            prepared.read[pair.split] += 1
            if isinstance(pair, LeftOut):
                prepared.leave_out(pair.reason, pair.source)
                continue
            try:
                pairs.write(pair)
            except FolderError:
                raise
            except (_Unfit, DatasetError, ImageError, MaskCodecError) as error:
                prepared.leave_out(str(error), pair.source)
    return prepared


class _Unfit(Exception):
    """Raised for a pair that is left out; its message is the reason."""


class _Pairs:
    """Writes pairs. It reads each picture once, and draws outlines once for consecutive pairs that share them."""

    def __init__(self, writer: ExampleWriter, prepared: Prepared) -> None:
        self._writer = writer
        self._prepared = prepared
        self._records: dict[Path | bytes, ImageRecord | str] = {}
        self._seen: set[bytes] = set()
        self._written: set[str] = set()
        self._drawn: tuple[ImageRecord | None, tuple[Outline, ...], list[ExampleInstance]] = None, (), []

    def write(self, pair: PhrasedPicture) -> None:
        phrase = " ".join(pair.phrase.split())
        if not phrase:
            raise _Unfit("it has no phrase")
        record = self._record(pair.image)
        if pair.size is not None and pair.size != (record.height, record.width):
            raise _Unfit("its picture is not of the size that was outlined")
        instances = self._instances(pair, record)
        if pair.split == TRAIN:
            key = same_example(record.sha256, phrase, instances)
            if key in self._seen:
                self._prepared.merged += 1
                return
            self._seen.add(key)
        ignored = None if pair.ignore is None else encode(pair.ignore, record.height, record.width)
        ignore = None if ignored is None else ignored.rle
        split, source, origin, label, thought = pair.split, pair.source, pair.origin, pair.label, pair.thought
        self._writer.add_encoded(record, phrase, instances, split, source, ignore=ignore, origin=origin, label=label, thought=thought)
        self._prepared.written[pair.split] += 1
        self._written.add(record.sha256)
        self._prepared.images = len(self._written)

    def _record(self, image: Path | bytes) -> ImageRecord:
        key = image if isinstance(image, Path) else hashlib.sha256(image).digest()
        if key not in self._records:
            try:
                self._records[key] = self._stored(image)
            except ImageError as error:
                self._records[key] = str(error)
        found = self._records[key]
        if isinstance(found, str):
            raise _Unfit(found)
        return found

    def _stored(self, image: Path | bytes) -> ImageRecord:
        if isinstance(image, bytes):
            return self._writer.add_image_data(image)
        return self._writer.add_image_file(image, link=True)

    def _instances(self, pair: PhrasedPicture, record: ImageRecord) -> list[ExampleInstance]:
        """Draw a pair's objects; those without a single pixel are dropped.

        If none is left, the pair raises _Unfit: its phrase has a target, so it must not be written as one without. The exception is a pair
        with ``ignore`` outside the split ``train``: its objects may lie under the ignored pixels. It is tested on as in LISA, where the
        right answer is then to predict nothing outside of those pixels. Raises MaskCodecError for an outline that cannot be drawn.
        """
        if self._drawn[0] is not record or self._drawn[1] is not pair.outlines:
            drawn = [encode(outline, record.height, record.width) for outline in pair.outlines]
            self._drawn = record, pair.outlines, [one for one in drawn if one is not None]
        if pair.outlines and not self._drawn[2] and (pair.ignore is None or pair.split == TRAIN):
            raise _Unfit("its objects have no pixel in the picture")
        return self._drawn[2]


def same_example(picture: str, phrase: str, instances: Sequence[ExampleInstance]) -> bytes:
    """Return a 16-byte key, which is the same for examples with the same picture, phrase (regardless of case) and masks.

    ``picture`` is the picture's hash or origin.
    """
    said = (picture, phrase.casefold(), *sorted(one.rle["counts"] for one in instances))
    return hashlib.sha256("\n".join(said).encode("utf-8", "replace")).digest()[:16]


def encode(outline: Outline, height: int, width: int) -> ExampleInstance | None:
    """Return an outline's box and run lengths, or None if it has no pixel.

    pycocotools draws the polygons, as for the published figures; those with fewer than LEAST_NUMBERS are skipped. Raises MaskCodecError if
    the outline is invalid or is run lengths of another size. What a function that draws the mask raises is passed on.
    """
    if callable(outline) or isinstance(outline, Mapping):
        mask = outline(height, width) if callable(outline) else from_rle(outline, height, width)
        return ExampleInstance(box_of(mask), to_rle(mask)) if mask.any() else None
    polygons = [polygon for polygon in map(_checked, outline) if len(polygon) >= LEAST_NUMBERS]
    if not polygons:
        return None
    # never decoded into whole masks: for a million objects that would take hours
    drawn = coco.merge(coco.frPyObjects(polygons, height, width))
    if not coco.area(drawn):
        return None
    x, y, wide, high = coco.toBbox(drawn)
    return ExampleInstance(
        np.array([x, y, x + wide, y + high], np.float32), Rle(size=[height, width], counts=drawn["counts"].decode("ascii"))
    )


def to_mask(outline: Outline, height: int, width: int) -> NDArray[np.bool_]:
    """Return an outline as a mask (height, width) bool, which may be empty. Raises what ``encode`` raises."""
    found = encode(outline, height, width)
    return np.zeros((height, width), np.bool_) if found is None else from_rle(found.rle, height, width)


def _checked(polygon: object) -> list[float]:
    if not isinstance(polygon, list | tuple) or len(polygon) % 2:
        raise MaskCodecError("a polygon is a list of x, y, x, y, …")
    if not all(isinstance(number, int | float) and abs(number) <= MAX_COORDINATE for number in polygon):
        raise MaskCodecError(f"a polygon's coordinates are finite and at most {MAX_COORDINATE:,.0f} pixels")
    corners = np.array(polygon, np.float64).reshape(-1, 2)
    if np.abs(corners - np.roll(corners, 1, axis=0)).sum() > MAX_OUTLINE_PX:
        raise MaskCodecError(f"a polygon's outline is longer than {MAX_OUTLINE_PX:,.0f} pixels")
    return [float(number) for number in polygon]
