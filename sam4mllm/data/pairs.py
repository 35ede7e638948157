"""What every reader of a public data set gives: pictures on the disk with phrases and outlines; and how that becomes a dataset folder.

The readers (:mod:`sam4mllm.data.refer`, :mod:`~sam4mllm.data.coco`, …) make a :class:`Reading` and know nothing of folders; what they have
in common is here. What they read is foreign and is checked; a pair that cannot be used is left out and counted with its reason.
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
"""Height and width of a picture to a mask of it (height, width) bool."""
Outline = Sequence[Sequence[float]] | Mapping[str, Any] | Draw
"""An object's polygons, each x1, y1, x2, y2, …, or its COCO run lengths, as in a COCO annotation's ``segmentation``; or what draws it."""
Track = Callable[[Iterable[T], int | None], Iterable[T]]
"""Wraps a loop over so many things, if that is known, for a progress bar."""

TRAIN = "train"
LEAST_NUMBERS = 6
"""Numbers of a polygon with three corners. pycocotools takes four for a box, and fewer for an error."""
MAX_OUTLINE_PX = 1e7
"""Longest outline that is drawn, in pixels: pycocotools keeps five points for each, and a polygon around an object has a few thousand."""
_COCO_NAME = re.compile(r"COCO_(?:train|val|test)20\d\d_(\d{12})\.")


@dataclass(frozen=True)
class PhrasedPicture:
    """A picture (its file, or what is in it) and a phrase; ``outlines`` of the objects that it means, none if it means nothing there.

    ``origin`` says which picture it is, ``ignore`` draws what counts neither way, ``label`` is a reviewer's, ``thought`` comes before the
    answer, as in the dataset format.
    ``size`` is the picture's (height, width) in the set's own words, if it has any: outlines are of that frame, and another picture is not
    what was outlined.
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
    """Something of a set that makes no pair, and why."""

    split: str
    source: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """A set that was found whole: its pairs, to be read once; how many there are, if that is known beforehand; its pictures by split."""

    pairs: Iterable[PhrasedPicture | LeftOut]
    total: int | None = None
    pictures: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Prepared:
    """What became of the pairs: those read and those written by split, pictures written, repetitions merged, and why others were left out.

    ``first`` has a source of each reason, to look at.
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
    """A loop without a progress bar."""
    return items


def coco_origin(name: str) -> str:
    """The origin of a picture whose file name has COCO's form of 2014, also with something before it; else nothing."""
    found = _COCO_NAME.search(name)
    return f"coco:{int(found[1])}" if found else ""


@contextmanager
def new_dataset(folder: Path) -> Iterator[ExampleWriter]:
    """A writer to a new folder, which appears whole at the end; after an error nothing is left of it.

    Raises DatasetError if there is something in that place, and FolderError if it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder} already holds something; choose a new folder")
    try:
        with whole_folder(folder) as temporary, ExampleWriter(temporary) as writer:
            yield writer
    except OSError as error:
        raise FolderError(f"{folder} cannot be written ({error.strerror}); free space or choose another folder") from error


def write_pairs(reading: Reading, folder: Path, track: Track[PhrasedPicture | LeftOut] = untracked) -> Prepared:
    """Write pairs as a dataset, all or nothing. To be trained on, the same phrase of the same objects of a picture is written once.

    Repetitions in the other splits stay: published figures count each.

    Raises DatasetError if there is something in the folder's place, it cannot be written, or a picture is missing.
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
    """Why a pair is left out."""


class _Pairs:
    """Writes pairs; a picture is read once, and the objects of sentences that follow each other are drawn once."""

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
        """An object without a single pixel is none, but a phrase whose objects are all like that has not lost its target. If they may lie
        under what is ignored, the phrase can still be tested on, as LISA does: nothing outside of that is right.
        """
        if self._drawn[0] is not record or self._drawn[1] is not pair.outlines:
            drawn = [encode(outline, record.height, record.width) for outline in pair.outlines]
            self._drawn = record, pair.outlines, [one for one in drawn if one is not None]
        if pair.outlines and not self._drawn[2] and (pair.ignore is None or pair.split == TRAIN):
            raise _Unfit("its objects have no pixel in the picture")
        return self._drawn[2]


def same_example(picture: str, phrase: str, instances: Sequence[ExampleInstance]) -> bytes:
    """16 bytes that two examples have in common if they say the same of a picture."""
    said = (picture, phrase.casefold(), *sorted(one.rle["counts"] for one in instances))
    return hashlib.sha256("\n".join(said).encode("utf-8", "replace")).digest()[:16]


def encode(outline: Outline, height: int, width: int) -> ExampleInstance | None:
    """An outline's box and run lengths, drawn by pycocotools as published figures are; None without a pixel. Raises MaskCodecError."""
    if callable(outline) or isinstance(outline, Mapping):
        mask = outline(height, width) if callable(outline) else from_rle(outline, height, width)
        return ExampleInstance(box_of(mask), to_rle(mask)) if mask.any() else None
    polygons = [polygon for polygon in map(_checked, outline) if len(polygon) >= LEAST_NUMBERS]
    if not polygons:
        return None
    # run lengths all the way: a whole mask for each of a million objects would take hours
    drawn = coco.merge(coco.frPyObjects(polygons, height, width))
    if not coco.area(drawn):
        return None
    x, y, wide, high = coco.toBbox(drawn)
    return ExampleInstance(
        np.array([x, y, x + wide, y + high], np.float32), Rle(size=[height, width], counts=drawn["counts"].decode("ascii"))
    )


def to_mask(outline: Outline, height: int, width: int) -> NDArray[np.bool_]:
    """The same as a mask (height, width) bool."""
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
