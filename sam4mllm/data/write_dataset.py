"""Writes a dataset's folder, so that it holds a complete dataset or none."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from sam4mllm.data.example_fields import check_fields
from sam4mllm.data.examples import EXAMPLES, IMAGES, Example, ExampleInstance, ImageRecord
from sam4mllm.data.read_dataset import find_image
from sam4mllm.durable import publish, replace_file, sync_path
from sam4mllm.errors import DatasetError
from sam4mllm.images import MAX_PIXELS, check_image, load_image, picture_suffix
from sam4mllm.masks import box_of
from sam4mllm.run_lengths import Rle, to_rle


class FolderError(DatasetError):
    """Raised when a dataset's folder cannot be written, for example on a full disk; the example is not at fault."""


class ExampleWriter:
    """Writes a dataset into a folder, as a context manager.

    ``examples.jsonl`` is written under another name. When the block ends without an error, it is flushed to the disk and renamed, so it
    appears complete. Each image is written in the same way when it is added, so every image that ``examples.jsonl`` names is there. After
    an error or a kill the folder has no ``examples.jsonl``; a second attempt reuses the images that are there. Only one writer may use a
    folder at a time.

    Raises:
        DatasetError: the folder already holds a dataset (on entering).
        FolderError: the folder cannot be written (at any time).
        RuntimeError: a method is called outside of the ``with`` block.
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
        """Store a picture (H, W, 3) uint8 RGB as PNG, once however often it is added.

        Raises ImageError unless it is such an array with sides of at least :data:`~sam4mllm.images.MIN_SIDE` pixels.
        """
        check_image(image)
        packed = io.BytesIO()
        Image.fromarray(image).save(packed, "PNG")
        return self._store(packed.getvalue(), ".png", image.shape[1], image.shape[0])

    def add_image_file(self, path: Path, max_pixels: int = MAX_PIXELS, *, link: bool = False) -> ImageRecord:
        """Store a picture's file byte for byte, so a JPEG is not encoded again.

        ``link`` makes a hard link to the file where the disk allows it, instead of a copy. It is meant for collections of pictures that
        nobody edits. Raises ImageError if the file cannot be decoded, or has more than ``max_pixels`` pixels or a side below
        :data:`~sam4mllm.images.MIN_SIDE`.
        """
        path = Path(path)
        image = load_image(path, max_pixels)
        return self._store(path.read_bytes(), picture_suffix(path), image.shape[1], image.shape[0], path if link else None)

    def add_image_data(self, data: bytes, max_pixels: int = MAX_PIXELS) -> ImageRecord:
        """Store the bytes of a picture's file as they are, under a name without a suffix.

        Raises ImageError if they cannot be decoded or are a picture of more than ``max_pixels`` pixels.
        """
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
        label: str | None = None,
        thought: str = "",
    ) -> None:
        """Write one example.

        Args:
            record: what ``add_image``, ``add_image_file`` or ``add_image_data`` returned.
            phrase: the referring expression.
            masks: N of (H, W) bool, none of them empty; N = 0 says that the phrase has no target. They are encoded one at a time, so a
                generator may make them: hundreds of masks of a large picture take gigabytes.
            split: ``train``, ``val``, ``test`` and the like.
            source: where the example comes from; may be empty.
            boxes: (N, 4) px, x1, y1, x2, y2; the bounding boxes of the masks if None.
            ignored: (H, W) bool, pixels that are left out when a prediction is measured; None if all count.
            origin: the picture's origin, as in the dataset format; may be empty.
            label: the label that a reviewer chose in Label Studio, None if nobody did.
            thought: what a model is to think before it gives the boxes; may be empty.

        Raises:
            DatasetError: ``read_examples`` would refuse the example. It is not written, nor is one whose ``masks`` raise an error of their
                own, which is passed on.
            FolderError: the folder cannot be written.
        """
        encoded = [_encoded(mask, record) for mask in masks]
        boxes_px = np.array([box for box, _ in encoded], np.float32) if boxes is None else np.asarray(boxes, np.float32)
        if boxes_px.shape != (len(encoded), 4) and (encoded or boxes_px.size):
            raise DatasetError(f"boxes are one row of four numbers for each of {len(encoded)} masks, not {boxes_px.shape}")
        instances = [ExampleInstance(box, rle) for box, (_, rle) in zip(boxes_px, encoded, strict=True)]
        ignore = to_rle(ignored) if ignored is not None and ignored.any() else None
        self.add_encoded(record, phrase, instances, split, source, ignore=ignore, origin=origin, label=label, thought=thought)

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
        label: str | None = None,
        thought: str = "",
    ) -> None:
        """Write one example as ``add`` does, of masks that are run lengths already."""
        fields = {
            **asdict(record),
            "phrase": phrase,
            "instances": [{"box": one.box_px.tolist(), "rle": one.rle} for one in instances],
            "split": split,
            "label": label,
            "source": source,
            **({"ignore": ignore} if ignore else {}),
            **({"origin": origin} if origin else {}),
            **({"thought": thought} if thought else {}),
        }
        check_fields(fields, max_pixels=record.width * record.height)
        with self._writing():
            self._opened().write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")

    def split_by(self, split_of: Callable[[str], str]) -> None:
        """Change the split of every example written so far to ``split_of(sha256)``, called with its picture's SHA-256.

        That it returns a valid name of a split is not checked.
        """
        settled = self._temporary.with_suffix(".settled")
        with self._writing():
            self._opened().close()
            with self._temporary.open("rb") as written, settled.open("wb") as file:
                for line in written:
                    fields = json.loads(line)
                    fields["split"] = split_of(fields["sha256"])
                    file.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
            os.replace(settled, self._temporary)
            self._file = self._temporary.open("ab")

    def copy(self, folder: Path, example: Example) -> None:
        """Write an example of the dataset in ``folder``, with its picture's file, which is hard-linked where the disk allows it.

        Raises DatasetError if the picture's file is missing, has changed or cannot be read, and FolderError if the writer's own folder
        cannot be written.
        """
        record = self._copied.get(example.sha256)
        if record is None:
            path = find_image(Path(folder).resolve(), example.image)
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
            record,
            example.phrase,
            example.instances,
            example.split,
            example.source,
            ignore=example.ignore,
            origin=example.origin,
            label=example.label,
            thought=example.thought,
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
        """Write the bytes of an image's file, unless a file of the same length is there under the name that their SHA-256 gives.

        ``source`` is a file with the same bytes, which is hard-linked if possible; None always writes a copy.
        """
        self._opened()
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"{IMAGES}/{sha256[:16]}{suffix}"
        target = self.folder / name
        with self._writing():
            if (not target.is_file() or target.stat().st_size != len(data)) and not (source and _linked(source, target)):
                replace_file(target, data)
        return ImageRecord(name, sha256, width, height)


def _linked(source: Path, target: Path) -> bool:
    """Make ``target`` a hard link to ``source`` and return whether that worked; it fails across disks or where the system forbids it."""
    with suppress(OSError):
        os.link(source.resolve(), target)
        return True
    return False


def _encoded(mask: ArrayLike, record: ImageRecord) -> tuple[NDArray[np.float32], Rle]:
    """Return a mask's box (4,) px, x1, y1, x2, y2, and its run lengths. Raises DatasetError unless the mask has the image's size."""
    array = np.asarray(mask, np.bool_)
    if array.shape != (record.height, record.width):
        raise DatasetError(f"masks are (N, {record.height}, {record.width}) as their image, and one of them is {array.shape}")
    return box_of(array), to_rle(array)
