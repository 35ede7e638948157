"""Reviews as a dataset to learn from, split by the content of their images (:mod:`backend.learning.holdout`)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from backend.corrections.reviews import Review, in_order
from backend.learning.holdout import Holdout, is_held_out
from sam4mllm.data.examples import ImageRecord
from sam4mllm.data.write_dataset import ExampleWriter, FolderError
from sam4mllm.errors import Sam4mllmError
from sam4mllm.run_lengths import from_rle

log = logging.getLogger(__name__)

TRAIN, HOLDOUT = "train", "holdout"
ACCEPTED, UNASSISTED = "accepted", "unassisted"
"""Last part of an example's source, which says how it came about: the served mask was kept, or the mask was drawn with no prediction in
sight.
"""


MAX_PICTURES = 5_000
"""Most pictures that a run learns from or is judged by, those corrected last. If there were more, a run would see each once or not at all,
and copying them would take longer than the training.
"""


class Files(Protocol):
    """Where the files of pictures come from."""

    def read(self, reference: object, task_id: int | None) -> bytes: ...


@dataclass
class Snapshot:
    """What was written: examples by split, and why other reviews were not."""

    counts: dict[str, int] = field(default_factory=lambda: {TRAIN: 0, HOLDOUT: 0})
    refused: list[tuple[int, str]] = field(default_factory=list)
    """(annotation, reason)"""


def newest(reviews: Iterable[Review], pictures: int = MAX_PICTURES) -> list[Review]:
    """Return all reviews of the pictures that were corrected last, of at most so many ``pictures``."""
    found: defaultdict[tuple[int, str], list[Review]] = defaultdict(list)
    for review in reviews:
        found[review.project, review.image].append(review)
    by_time = sorted(found.values(), key=lambda some: max(map(in_order, some)), reverse=True)
    return [review for some in by_time[:pictures] for review in some]


def write_snapshot(
    reviews: Iterable[Review], files: Files, folder: Path, holdout: Holdout, check: Callable[[], None] = lambda: None
) -> Snapshot:
    """Write the reviews as a dataset, and lower the holdout's threshold as far as their pictures require.

    ``check`` is called before each review. An error that it raises ends the writing and is raised here: the dataset is written whole or
    not at all. A review is refused, and the others are written, if its image cannot be had, its masks have another size than the image, or
    the dataset's format does not allow it.

    Raises DatasetError if the folder cannot be written or holds a dataset already, LearningError if the threshold cannot be read, and
    OSError if the threshold cannot be written.
    """
    snapshot = Snapshot()
    written: list[str] = []
    with ExampleWriter(folder) as writer:
        for review in reviews:
            check()
            try:
                written.append(_write(review, files, writer))
            except FolderError:
                raise
            except Sam4mllmError as error:
                snapshot.refused.append((review.annotation, str(error)))
        at = holdout.lower(written)
        sides = {name: HOLDOUT if is_held_out(name, at) else TRAIN for name in written}
        writer.split_by(sides.__getitem__)
    for name in written:
        snapshot.counts[sides[name]] += 1
    return snapshot


def _write(review: Review, files: Files, writer: ExampleWriter) -> str:
    """Write one review, and return the SHA-256 of its picture.

    Raises FolderError if the folder cannot be written, and any other Sam4mllmError if the review is refused.
    """
    record = writer.add_image_data(files.read(review.image, review.task))
    _check_size(review, record)
    # one at a time: decoded, each is as large as the image
    masks = (from_rle(rle, record.height, record.width) for rle in review.instances)
    how = UNASSISTED if review.unassisted and review.outcome == "drawn" else review.outcome
    source = f"label-studio:{review.project}:{review.task}:{review.annotation}:{how}"
    writer.add(record, review.phrase, masks, TRAIN, source, label=review.label or None)
    return record.sha256


def how_made(source: str) -> str:
    """Return how the example of a review came about, by its source: ACCEPTED, UNASSISTED or another outcome. Empty for other examples."""
    return _part(source, 4)


def project_of(source: str) -> str:
    """The project of an example's review; empty if it is of none."""
    return _part(source, 1)


def _part(source: str, at: int) -> str:
    parts = source.split(":")
    return parts[at] if parts[0] == "label-studio" and len(parts) > at else ""


def _check_size(review: Review, record: ImageRecord) -> None:
    if review.instances and (review.width, review.height) != (record.width, record.height):
        raise Sam4mllmError(f"its mask is {review.width} x {review.height} pixels, its image {record.width} x {record.height}")
