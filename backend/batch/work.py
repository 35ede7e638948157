"""What is asked of each task, and where the tasks come from: a project of Label Studio, or a folder (:mod:`backend.batch.folder`).

A :class:`Work` can be sent to another machine; the loaders and answerers that it makes must be used where they were made.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from backend.corrections.log_records import Served
from backend.errors import BackendError, LabelStudioError, where
from backend.images.store import ImageStore, LoadedImage, image_store
from backend.label_studio.client import LabelStudio
from backend.label_studio.label_config import LabelConfig, read_label_config
from backend.label_studio.parameters import NO_PARAMETERS, Parameters
from backend.label_studio.push import patiently, tasks_without
from backend.label_studio.region_parts import join_pages, naming_page
from backend.label_studio.wire import Task, is_row_id, read_task
from backend.serving.answerer import Answerer, Question, bulk_question
from backend.serving.edges import Edges
from backend.serving.predictor import Images
from backend.serving.served_records import served_records
from backend.settings import Settings
from backend.support.metrics import Metrics
from sam4mllm.errors import Sam4mllmError
from sam4mllm.pipeline import Pipeline

R = TypeVar("R")

TASKS_A_PAGE = 100
CHECK_SECONDS = 10.0
"""The least seconds between two requests that check whether Label Studio answers, however many images cannot be loaded meanwhile."""
OPENED_MB = 256
"""The most megabytes that a run of ``sam4mllm batch`` keeps of images that the models have taken in; SAM4MLLM_CACHE_MB may set less. It is
enough, because tasks that share an image usually follow each other."""


@dataclass(frozen=True)
class BatchTask:
    """One task: its id in Label Studio, or a picture's number (:mod:`backend.batch.folder`), and the data that its answer depends on."""

    id: int
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Answered:
    """``result`` is what is kept and pushed; ``served`` what the log of corrections has to know of it."""

    result: Any
    served: Sequence[Served] = ()


Load = Callable[[BatchTask], LoadedImage]


class TaskAnswerer(Protocol):
    """Answers tasks by a pipeline; for one thread."""

    def ahead(self, pipeline: Pipeline, some: Sequence[tuple[BatchTask, LoadedImage]]) -> bool:
        """Compute together what the next calls for these tasks need; return False if memory did not suffice, else True.

        An error that concerns one task is raised by that task's own call. Raises DeadlineError, NotReadyError or QueueFullError if a
        server's models had no turn for it.
        """
        ...

    def __call__(self, pipeline: Pipeline, job: BatchTask, image: LoadedImage, seconds: float) -> Answered:
        """Return a task's answer, given its image and the seconds that loading the image took. Raises Sam4mllmError."""
        ...


class ModelsTurn(Protocol):
    """Waits until a piece of work may use the models, calls it, and returns what it returns."""

    def __call__(self, piece: Callable[[], R], /) -> R: ...


class Work(Protocol):
    """What is asked of each task of a run."""

    def key(self, job: BatchTask) -> str:
        """Return a hash of what a task's answer depends on, except the version: the task's data, how it is asked and, for a file in a
        folder, its size and time. The pixels are not read. It is empty if that file cannot be found.
        """
        ...

    def loader(self) -> Load:
        """Return a function that loads a task's image. Several threads may call it; it raises Sam4mllmError."""
        ...

    def answerer(self) -> TaskAnswerer:
        """Return what answers the tasks; call this on the machine that has the models."""
        ...


class TaskSource(Protocol):
    """Where the tasks of a shard come from, in the order of their ids."""

    def jobs(self, version: str) -> Iterator[BatchTask]:
        """Yield the tasks that have no answer of a version yet, as far as the source knows. Raises Sam4mllmError."""
        ...

    def left(self) -> int:
        """Return about how many tasks are still to come."""
        ...

    def check(self) -> bool:
        """Wait while the source does not answer; return whether it was away a moment ago, so that what failed may be tried again.

        Raises LabelStudioError if the source refuses, or does not come back.
        """
        ...


@dataclass(frozen=True)
class Shard:
    """Shard ``index`` of ``count`` shards, counted from 1.

    A task's id alone decides its shard, so a task stays in the same one, whatever tasks are added or deleted.
    """

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
    """The work on a project of Label Studio: predictions as the server makes them for a batch, the same regions with the same ids."""

    settings: Settings
    project: int
    label_config: str
    parameters: Parameters = NO_PARAMETERS
    """The project's extra parameters as they were when the run started; a change during the run only affects the next one."""

    def key(self, job: BatchTask) -> str:
        told = [told] if (told := self.parameters.to_json()) else []
        return digest(self.project, self.label_config, self.settings.phrase_field, job, *told)

    def loader(self) -> Load:
        return self.load_from(self._store())

    def load_from(self, store: Images) -> Load:
        """Return a function that loads a task's (first) image from an image store that exists already."""
        config = read_label_config(self.label_config, self.settings.prompt_control)
        return lambda job: store.load(config.pictures(job.data)[0], job.id, math.inf)

    def answerer(self) -> TaskAnswerer:
        return self.answer_by(bulk_answerer(self.settings), self._store(), at_once)

    def answer_by(self, answerer: Answerer, store: Images, turn: ModelsTurn) -> TaskAnswerer:
        """Return what answers tasks by an answerer and an image store that exist already; each use of the models goes through ``turn``."""
        return _ProjectAnswer(
            self, answerer, store, turn, self.parameters.apply(read_label_config(self.label_config, self.settings.prompt_control))
        )

    def _store(self) -> ImageStore:
        token = self.settings.label_studio_api_key.get_secret_value()
        return image_store(self.settings, LabelStudio(self.settings.label_studio_url, token))


@dataclass(frozen=True)
class _ProjectAnswer:
    work: ProjectWork
    answerer: Answerer
    store: Images
    turn: ModelsTurn
    config: LabelConfig

    def ahead(self, pipeline: Pipeline, some: Sequence[tuple[BatchTask, LoadedImage]]) -> bool:
        asked = []
        for job, image in some:
            with suppress(Sam4mllmError):  # the task's own call raises the error
                phrases = [one.phrase for one in self._questions(job)[0].wanted]
                asked.append((image, phrases, self.work.parameters))
        return self.turn(partial(self.answerer.find_ahead, pipeline, asked))

    def __call__(self, pipeline: Pipeline, job: BatchTask, image: LoadedImage, seconds: float) -> Answered:
        project, version = self.work.project, pipeline.version
        answers: list[tuple[int, bytes]] = []
        served: list[Served] = []
        for question in self._questions(job):
            page = question.page or 0
            with naming_page(question.page):
                # decoded, a picture takes megabytes: further pages are had one at a time
                shown = self.store.load(question.image, job.id, math.inf) if page else image
                key = question.key(version, project)
                findings = self.turn(partial(self.answerer.look, pipeline, shown, question))
                text, drawn = self.answerer.write(findings, question, key, seconds, project)
            answers.append((page, text))
            served += served_records(drawn, shown, project, job.id, version, False, page)
        return Answered(json.loads(join_pages(answers, self.config) if self.config.paged else answers[0][1]), served)

    def _questions(self, job: BatchTask) -> tuple[Question, ...]:
        """Return a question for each page of a task. Raises TaskError or PhraseError."""
        task: Task = read_task({"id": job.id, "data": job.data})
        return bulk_question(task, self.config, self.work.settings.phrase_field, self.work.parameters).each_page()


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


def at_once(piece: Callable[[], R], /) -> R:
    """Call a piece of work at once, and return what it returns: the :class:`ModelsTurn` for models that nobody else uses."""
    return piece()


def bulk_answerer(settings: Settings) -> Answerer:
    return Answerer(settings.model_copy(update={"cache_mb": min(settings.cache_mb, OPENED_MB)}), Metrics(), Edges(settings.home))


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_plain(part) for part in parts], sort_keys=True).encode()).hexdigest()


def _plain(part: object) -> object:
    return [part.id, part.data] if isinstance(part, BatchTask) else part


# -- one task ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskResult:
    """What became of a task.

    ``answered`` is the answer, and ``seconds`` is how long answering took, with any wait for the models' turn. If ``answered`` is None,
    ``message`` is a line that says why, and ``reason`` a short word for the kind of failure.
    """

    job: BatchTask
    answered: Answered | None = None
    reason: str = ""
    message: str = ""
    seconds: float = 0.0


def failed(job: BatchTask, error: Exception) -> TaskResult:
    """Return the result of a task that failed with this error; the run goes on with the other tasks."""
    if isinstance(error, Sam4mllmError):
        return TaskResult(job, None, error.reason if isinstance(error, BackendError) else type(error).__name__, str(error))
    return TaskResult(job, None, "internal", f"internal error ({where(error)})")
