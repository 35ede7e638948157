"""A dataset or a folder of pictures as the tasks of a bulk run; the answers are examples in the dataset format."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.batch.work import Answered, BatchTask, Load, Shard, TaskAnswerer, bulk_answerer, digest
from backend.errors import BatchError
from backend.images.decoding import shared_decoder
from backend.images.store import LoadedImage
from backend.label_studio.parameters import NO_PARAMETERS
from backend.serving.answerer import Answerer
from backend.settings import Settings
from sam4mllm.data.example_fields import is_thought
from sam4mllm.data.examples import EXAMPLES
from sam4mllm.data.read_dataset import each_example
from sam4mllm.images import image_sha256, picture_suffix
from sam4mllm.masks import box_of
from sam4mllm.pipeline import Pipeline
from sam4mllm.run_lengths import to_rle
from sam4mllm.values import Segmentation, check_phrase


@dataclass(frozen=True)
class FolderWork:
    """The :class:`~backend.batch.work.Work` on a folder, in which a task is a picture.

    A task's answer is a list of examples in the dataset format, one for each phrase, with ``score``, ``note`` and ``version``.
    """

    settings: Settings
    folder: Path

    def key(self, job: BatchTask) -> str:
        try:
            state = os.stat(self.folder / job.data["image"])
        except OSError:
            return ""
        return digest(job, state.st_size, state.st_mtime_ns)

    def loader(self) -> Load:
        def load(job: BatchTask) -> LoadedImage:
            path = self.folder / job.data["image"]
            sha256 = image_sha256(path)  # raises ImageError if the file cannot be read
            return LoadedImage(shared_decoder(self.settings.max_pixels, self.settings.decode_seconds).decode(path.read_bytes()), sha256)

        return load

    def answerer(self) -> TaskAnswerer:
        return _FolderAnswer(bulk_answerer(self.settings))


@dataclass(frozen=True)
class _FolderAnswer:
    answerer: Answerer

    def ahead(self, pipeline: Pipeline, some: Sequence[tuple[BatchTask, LoadedImage]]) -> bool:
        return self.answerer.find_ahead(pipeline, [(image, _phrases(job), NO_PARAMETERS) for job, image in some])

    def __call__(self, pipeline: Pipeline, job: BatchTask, image: LoadedImage, seconds: float) -> Answered:
        found, _ = self.answerer.find(pipeline, image, _phrases(job))
        return Answered([_example(job, image, one, answer) for one, answer in zip(job.data["phrases"], found, strict=True)])


def _phrases(job: BatchTask) -> list[str]:
    return [one["phrase"] for one in job.data["phrases"]]


def _example(job: BatchTask, image: LoadedImage, asked: Mapping[str, str], found: Segmentation) -> dict[str, Any]:
    height, width = image.pixels.shape[:2]
    instances = [
        {"box": box_of(instance.mask).tolist(), "rle": to_rle(instance.mask), "score": instance.score} for instance in found.instances
    ]
    where = {"image": job.data["image"], "sha256": image.sha256, "width": width, "height": height}
    what = {"phrase": found.phrase, "instances": instances, "split": asked["split"], "label": None, "source": f"sam4mllm:{found.version}"}
    thought = {"thought": found.thought} if found.thought and not found.note and is_thought(found.thought) else {}
    return {**where, **what, **thought, "score": found.score, "note": found.note, "version": found.version}


@dataclass
class FolderSource:
    """The tasks of a shard. They are the pictures of a dataset, each with its own phrases, or, if ``phrases`` are given, all pictures in a
    folder and its subfolders, each with these phrases instead.
    """

    folder: Path
    shard: Shard
    phrases: Sequence[str] = ()
    _jobs: list[BatchTask] = field(default_factory=list)
    _given: int = 0

    def __post_init__(self) -> None:
        """List the tasks of the shard.

        Raises BatchError if the folder has no picture, or is no dataset though no ``phrases`` are given; DatasetError if it is an invalid
        dataset; PhraseError if one of ``phrases`` cannot be asked.
        """
        if self.phrases:
            asked = [{"phrase": check_phrase(phrase), "split": "predicted"} for phrase in self.phrases]
            pictures = {str(path.relative_to(self.folder)): asked for path in _pictures(self.folder)}
        elif (self.folder / EXAMPLES).is_file():
            pictures = {}
            for example in each_example(self.folder):
                phrases = pictures.setdefault(example.image, [])
                if example.phrase not in [one["phrase"] for one in phrases]:
                    phrases.append({"phrase": example.phrase, "split": example.split})
        else:
            raise BatchError(f"{self.folder} is no dataset: it has no {EXAMPLES}; say what to find in its pictures by --phrase")
        if not pictures:
            raise BatchError(f"{self.folder} has no picture")
        jobs = [BatchTask(_number(name), {"image": name, "phrases": phrases}) for name, phrases in pictures.items()]
        self._jobs = sorted((job for job in jobs if self.shard.has(job.id)), key=lambda job: job.id)

    def jobs(self, version: str) -> Iterator[BatchTask]:
        del version  # the shard's own files say which tasks have an answer of this version
        for job in self._jobs:
            self._given += 1
            yield job

    def left(self) -> int:
        return len(self._jobs) - self._given

    def check(self) -> bool:
        return False  # a folder does not go away


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if picture_suffix(path) and path.is_file())


def _number(name: str) -> int:
    """Return a number of 60 bits, a hash of a picture's path in the folder, so that the picture keeps it whatever others are added."""
    return int(hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:15], 16)
