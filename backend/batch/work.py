"""What is asked of each task, and where the tasks come from: a project of Label Studio, a dataset, or a folder of pictures.

A :class:`Work` can be sent to another machine; the workers that it makes stay where they were made.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from backend.corrections.log_records import Served
from backend.errors import BackendError, BatchError, LabelStudioError, where
from backend.images.decoding import shared_decoder
from backend.images.store import ImageStore, LoadedImage, image_store
from backend.label_studio.client import LabelStudio
from backend.label_studio.label_config import read_label_config
from backend.label_studio.parameters import NO_PARAMETERS, Parameters
from backend.label_studio.push import patiently, tasks_without
from backend.label_studio.region_parts import join_pages, naming_page
from backend.label_studio.wire import Task, is_row_id, read_task
from backend.serving.answerer import Answerer, bulk_question
from backend.serving.edges import Edges
from backend.serving.predictor import Images
from backend.serving.served_records import ServedAnswer, served_records
from backend.settings import Settings
from backend.support.metrics import Metrics
from sam4mllm.data.example_fields import is_thought
from sam4mllm.data.examples import EXAMPLES
from sam4mllm.data.read_dataset import each_example
from sam4mllm.errors import Sam4mllmError
from sam4mllm.images import image_sha256, picture_suffix
from sam4mllm.masks import box_of
from sam4mllm.pipeline import Pipeline
from sam4mllm.run_lengths import to_rle
from sam4mllm.values import Segmentation, check_phrase

TASKS_A_PAGE = 100
CHECK_SECONDS = 10.0
"""Between two looks whether Label Studio is there, however many images cannot be had."""
OPENED_MB = 256
"""Most memory for images that are taken in: tasks that share one usually follow each other."""


@dataclass(frozen=True)
class BatchTask:
    """One task: its number, and the data that its answer depends on."""

    id: int
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Answered:
    """``result`` is what is kept and pushed; ``served`` what the log of corrections has to know of it."""

    result: Any
    served: Sequence[Served] = ()


Load = Callable[[BatchTask], LoadedImage]
Answer = Callable[[Pipeline, BatchTask, LoadedImage, float], Answered]
Piece = Callable[[], tuple[bytes, list[ServedAnswer]]]
Turn = Callable[[Piece], tuple[bytes, list[ServedAnswer]]]


class Work(Protocol):
    """What is asked of each task."""

    def key(self, job: BatchTask) -> str:
        """Of all that shapes an answer but the version."""
        ...

    def loader(self) -> Load:
        """Gets a task's image; for several threads. It raises Sam4mllmError."""
        ...

    def answerer(self) -> Answer:
        """Answers a task by a pipeline, given its image and the seconds that it took; for one thread. It raises Sam4mllmError."""
        ...


class TaskSource(Protocol):
    """The tasks of a shard, by number."""

    def jobs(self, version: str) -> Iterator[BatchTask]:
        """Those that have no answer of a version yet, as far as the source knows. Raises Sam4mllmError."""
        ...

    def left(self) -> int:
        """About how many are still to come."""
        ...

    def check(self) -> bool:
        """Whether the source was away a moment ago, so that what failed may be tried again; waits while it is.

        Raises LabelStudioError if there is no more to be had from it.
        """
        ...


@dataclass(frozen=True)
class Shard:
    """Number ``index`` of ``count``, from 1. A task is of the same one for ever, whatever tasks are added or deleted."""

    index: int = 1
    count: int = 1

    def has(self, number: int) -> bool:
        return number % self.count == self.index % self.count

    @property
    def name(self) -> str:
        return f"shard-{self.index}-of-{self.count}"


# -- a project -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProjectWork:
    """Predictions as the server makes them: the same regions with the same ids."""

    settings: Settings
    project: int
    label_config: str
    parameters: Parameters = NO_PARAMETERS
    """The project's, as they were at the start: what changes meanwhile is for the next run."""

    def key(self, job: BatchTask) -> str:
        told = [told] if (told := self.parameters.to_json()) else []
        return _digest(self.project, self.label_config, self.settings.phrase_field, job, *told)

    def loader(self) -> Load:
        return self.load_from(self._store())

    def load_from(self, store: Images) -> Load:
        """Loads by a store that exists already."""
        config = read_label_config(self.label_config, self.settings.prompt_control)
        return lambda job: store.load(config.pictures(job.data)[0], job.id, math.inf)

    def answerer(self) -> Answer:
        return self.answer_by(_answerer(self.settings), self._store(), lambda piece: piece())

    def answer_by(self, answerer: Answerer, store: Images, turn: Turn) -> Answer:
        """Answers by what exists already; ``turn`` calls a piece of work of the models, a page's, when it is its turn."""
        config = self.parameters.apply(read_label_config(self.label_config, self.settings.prompt_control))

        def answer(pipeline: Pipeline, job: BatchTask, image: LoadedImage, seconds: float) -> Answered:
            task: Task = read_task({"id": job.id, "data": job.data})
            version = pipeline.version
            answers: list[tuple[int, bytes]] = []
            served: list[Served] = []
            for question in bulk_question(task, config, self.settings.phrase_field, self.parameters).each_page():
                page = question.page or 0
                with naming_page(question.page):
                    # decoded, a picture takes megabytes: further pages are had one at a time
                    shown = store.load(question.image, job.id, math.inf) if page else image
                    key = question.key(version, self.project)
                    text, drawn = turn(partial(answerer.answer, pipeline, shown, question, key, seconds, self.project))
                answers.append((page, text))
                served += served_records(drawn, shown, self.project, job.id, version, False, page)
            return Answered(json.loads(join_pages(answers, config) if config.paged else answers[0][1]), served)

        return answer

    def _store(self) -> ImageStore:
        token = self.settings.label_studio_api_key.get_secret_value()
        return image_store(self.settings, LabelStudio(self.settings.label_studio_url, token))


@dataclass
class ProjectSource:
    """A project's tasks, page by page; once ``stop`` is set it waits for Label Studio no more."""

    label_studio: LabelStudio
    project: int
    shard: Shard
    stop: threading.Event = field(default_factory=threading.Event)
    _unseen: int = 0
    _checked: float = float("-inf")
    _back: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def jobs(self, version: str) -> Iterator[BatchTask]:
        after = -1
        while True:
            listing = partial(tasks_without, self.label_studio, self.project, version, after, TASKS_A_PAGE)
            page, total = patiently(listing, stop=self.stop)
            if not page:
                self._unseen = 0
                return
            own = [BatchTask(task["id"], _data(task)) for task in page if is_row_id(task["id"]) and self.shard.has(task["id"])]
            self._unseen = max(0, total - len(page)) // self.shard.count + len(own)
            for job in own:
                self._unseen -= 1
                yield job
            after = page[-1]["id"]

    def left(self) -> int:
        return self._unseen

    def check(self) -> bool:
        with self._lock:
            if time.monotonic() > self._checked + CHECK_SECONDS:
                try:
                    self.label_studio.project(self.project)
                except LabelStudioError as error:
                    if not error.passing:
                        raise
                    patiently(lambda: self.label_studio.project(self.project), stop=self.stop)
                    self._back = time.monotonic()
                self._checked = time.monotonic()
            return time.monotonic() < self._back + 2 * CHECK_SECONDS


def _data(task: Mapping[str, Any]) -> Mapping[str, Any]:
    data = task.get("data")
    return data if isinstance(data, dict) else {}


# -- a folder ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderWork:
    """Examples in the dataset format, with ``score`` and ``version``: one for each phrase of a picture."""

    settings: Settings
    folder: Path

    def key(self, job: BatchTask) -> str:
        try:
            state = os.stat(self.folder / job.data["image"])
        except OSError:
            return ""
        return _digest(job, state.st_size, state.st_mtime_ns)

    def loader(self) -> Load:
        def load(job: BatchTask) -> LoadedImage:
            path = self.folder / job.data["image"]
            sha256 = image_sha256(path)  # refuses what is no file
            return LoadedImage(shared_decoder(self.settings.max_pixels, self.settings.decode_seconds).decode(path.read_bytes()), sha256)

        return load

    def answerer(self) -> Answer:
        answerer = _answerer(self.settings)

        def answer(pipeline: Pipeline, job: BatchTask, image: LoadedImage, seconds: float) -> Answered:
            phrases = job.data["phrases"]
            found, _ = answerer.find(pipeline, image, [one["phrase"] for one in phrases], None)
            return Answered([_example(job, image, one, answer) for one, answer in zip(phrases, found, strict=True)])

        return answer


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
    """The pictures of a dataset, each with its phrases, or of any folder, each with the same ones."""

    folder: Path
    shard: Shard
    phrases: Sequence[str] = ()
    _jobs: list[BatchTask] = field(default_factory=list)
    _given: int = 0

    def __post_init__(self) -> None:
        """Raises BatchError, DatasetError or PhraseError where there is nothing to ask."""
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
        del version  # what is done is in the shard's own files
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
    """A number that a picture has for ever, of 60 bits."""
    return int(hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:15], 16)


def _answerer(settings: Settings) -> Answerer:
    return Answerer(settings.model_copy(update={"cache_mb": min(settings.cache_mb, OPENED_MB)}), Metrics(), Edges(settings.home))


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_plain(part) for part in parts], sort_keys=True).encode()).hexdigest()


def _plain(part: object) -> object:
    return [part.id, part.data] if isinstance(part, BatchTask) else part


# -- one task ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskResult:
    """What became of a task: an answer and the ``seconds`` that the models took for it, or why there is none, with a short word for the
    kind of reason.
    """

    job: BatchTask
    answered: Answered | None = None
    reason: str = ""
    message: str = ""
    seconds: float = 0.0


def failed(job: BatchTask, error: Exception) -> TaskResult:
    """An error that stays with its task."""
    if isinstance(error, Sam4mllmError):
        return TaskResult(job, None, error.reason if isinstance(error, BackendError) else type(error).__name__, str(error))
    return TaskResult(job, None, "internal", f"internal error ({where(error)})")
