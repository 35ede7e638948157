"""Reviews as a dataset to learn from, split by the content of their images.

An image belongs to the holdout or to training by the hash of its file, for ever: no later run trains on what an earlier one was judged by,
and the same picture uploaded twice cannot be on both sides.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from backend.corrections.reviews import Review
from sam4mllm.data.examples import ImageRecord
from sam4mllm.data.write_dataset import ExampleWriter, FolderError
from sam4mllm.errors import Sam4mllmError
from sam4mllm.images import image_sha256
from sam4mllm.run_lengths import from_rle

log = logging.getLogger(__name__)

TRAIN, HOLDOUT = "train", "holdout"
HOLDOUT_PERCENT = 20


class Files(Protocol):
    """Where the files of pictures come from."""

    def read(self, reference: object, task_id: int | None) -> bytes: ...


@dataclass
class Snapshot:
    """What was written: examples by split, and why others were not."""

    counts: dict[str, int] = field(default_factory=lambda: {TRAIN: 0, HOLDOUT: 0})
    refused: list[tuple[int, str]] = field(default_factory=list)
    """(annotation, reason)"""


def split_of(image_sha256: str) -> str:
    """The side of an image, by the SHA-256 of its file."""
    bucket = int(hashlib.sha256(image_sha256.encode()).hexdigest(), 16) % 100
    return HOLDOUT if bucket < HOLDOUT_PERCENT else TRAIN


def write_snapshot(reviews: Sequence[Review], files: Files, folder: Path, check: Callable[[], None] = lambda: None) -> Snapshot:
    """Write the reviews that make an example, all or nothing: ``check`` is called before each and may raise.

    One whose image cannot be had, or that the dataset's format does not allow, is refused alone.

    Raises DatasetError if the folder cannot be written.
    """
    snapshot = Snapshot()
    with ExampleWriter(folder) as writer:
        for review in reviews:
            check()
            try:
                split = _write(review, files, writer)
            except FolderError:
                raise
            except Sam4mllmError as error:
                snapshot.refused.append((review.annotation, str(error)))
            else:
                snapshot.counts[split] += 1
    return snapshot


def _write(review: Review, files: Files, writer: ExampleWriter) -> str:
    """The side that the review is written to. Raises Sam4mllmError: why it is refused, or FolderError."""
    data = files.read(review.image, review.task)
    record = writer.add_image_data(data)
    _check_size(review, record)
    split = split_of(image_sha256(data))
    # one at a time: decoded, each is as large as the image
    masks = (from_rle(rle, record.height, record.width) for rle in review.instances)
    source = f"label-studio:{review.project}:{review.task}:{review.annotation}:{review.outcome}"
    writer.add(record, review.phrase, masks, split, source, label=review.label or None)
    return split


def _check_size(review: Review, record: ImageRecord) -> None:
    if review.instances and (review.width, review.height) != (record.width, record.height):
        raise Sam4mllmError(f"its mask is {review.width} x {review.height} pixels, its image {record.width} x {record.height}")
