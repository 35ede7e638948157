"""The steps of a bulk run on the models of this process.

Images are fetched and decoded ahead. A step answers several of them together, so that their questions share forward passes of the MLLM.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from backend.batch.work import BatchTask, TaskAnswerer, TaskResult, TaskSource, Work, failed
from backend.errors import DeadlineError, FetchError, LabelStudioError, NotReadyError, QueueFullError
from backend.images.store import LoadedImage
from sam4mllm.errors import EngineAwayError
from sam4mllm.pipeline import Pipeline

log = logging.getLogger(__name__)

LOADERS = 4
"""Images that are fetched and decoded at a time."""
IMAGES_A_STEP = 8
"""Most images of a step. A pass of few tokens costs a GPU what reading the weights costs, however many images share it."""
PIXELS_A_STEP = 40_000_000
"""Most pixels of a step's images together, because all their masks stay in memory until the step is over; a single image may have more."""

AWAY_SECONDS, AWAY_PAUSE = 1800.0, 2.0
"""Seconds that a task waits for a vLLM server that does not answer, and between two tries. The wait is long, because after a restart the
server loads the weights again."""

Stages = Callable[[Iterator[BatchTask]], Iterator[TaskResult]]
"""Takes tasks and yields the result of each, in any order."""


@dataclass
class Pace:
    """How many images a step takes: at most ``most``, and as many as the models can answer in ``seconds`` at the pace of the last step."""

    seconds: float = math.inf
    most: int = IMAGES_A_STEP
    _an_image: float = math.nan

    @property
    def images(self) -> int:
        """The number of images of the next step; 1 while it is not known how long an image takes, unless ``seconds`` is infinite."""
        if math.isinf(self.seconds):
            return self.most
        return 1 if math.isnan(self._an_image) else max(1, min(self.most, int(self.seconds / max(self._an_image, 1e-9))))

    def took(self, images: int, seconds: float) -> None:
        """Note that a step of ``images`` images took ``seconds``."""
        self._an_image = seconds / images


@dataclass(frozen=True)
class Loaded:
    """A task with its loaded ``image`` and the ``seconds`` that loading took, or, if loading failed, with the task's ``outcome``."""

    job: BatchTask
    image: LoadedImage | None = None
    seconds: float = 0.0
    outcome: TaskResult | None = None

    @property
    def pixels(self) -> int:
        return 0 if self.image is None else self.image.pixels.shape[0] * self.image.pixels.shape[1]


def local_stages(
    pipeline: Pipeline, work: Work, source: TaskSource, step_seconds: float = math.inf, stop: threading.Event | None = None
) -> Stages:
    """Return stages that load images ahead in threads of their own, and call the work's answerer in the caller's thread.

    A step keeps the models busy for at most about ``step_seconds``, or takes one image. An image that cannot be fetched is tried once more
    if ``source`` was away. Once ``stop`` is set, a vLLM server that does not answer is no longer waited for. A LabelStudioError, which
    concerns all tasks, is raised by the stages; another error with one task's image or answer becomes the result of that task.
    """
    load, answer = work.loader(), work.answerer()

    def loaded(job: BatchTask) -> tuple[LoadedImage, float]:
        began = time.perf_counter()
        try:
            image = load(job)
        except FetchError:
            if not source.check():
                raise
            image = load(job)
        return image, time.perf_counter() - began

    def stages(jobs: Iterator[BatchTask]) -> Iterator[TaskResult]:
        pool = ThreadPoolExecutor(LOADERS, "load")
        pending: dict[Future[tuple[LoadedImage, float]], BatchTask] = {}
        pace = Pace(step_seconds)
        try:
            while True:
                while len(pending) < max(LOADERS, pace.images) and (job := next(jobs, None)) is not None:
                    pending[pool.submit(loaded, job)] = job
                if not pending:
                    return
                wait(pending, return_when=FIRST_COMPLETED)
                yield from answer_step(pipeline, _take_step(pending, pace), answer, pace, stop or threading.Event())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return stages


def _take_step(pending: dict[Future[tuple[LoadedImage, float]], BatchTask], pace: Pace) -> list[Loaded]:
    """Remove from ``pending`` as many loaded images as a step takes, in their order, and return them.

    Images that are still being loaded are not waited for, so that the models do not stand idle.
    """
    there = [_result_of(job, future) for future, job in pending.items() if future.done()]
    step = next(split(there, pace))
    taken = {one.job.id for one in step}
    for future in [future for future, job in pending.items() if job.id in taken]:
        del pending[future]
    return step


def split(there: Sequence[Loaded], pace: Pace) -> Iterator[list[Loaded]]:
    """Yield the loaded tasks in steps, each of at least one task and of as many as the pace and PIXELS_A_STEP allow.

    Without tasks, one empty step is yielded.
    """
    step: list[Loaded] = []
    for one in there:
        if step and (len(step) >= pace.images or sum(other.pixels for other in step) + one.pixels > PIXELS_A_STEP):
            yield step
            step = []
        step.append(one)
    yield step


def _result_of(job: BatchTask, future: Future[tuple[LoadedImage, float]]) -> Loaded:
    try:
        return Loaded(job, *future.result())
    except LabelStudioError:
        raise  # ``source.check`` raised it: it concerns all tasks
    except Exception as error:
        return Loaded(job, outcome=failed(job, error))


def answer_step(
    pipeline: Pipeline, step: list[Loaded], answer: TaskAnswerer, pace: Pace, stop: threading.Event | None = None
) -> Iterator[TaskResult]:
    """Yield the result of each task of a step, in order. The models first answer what they can for all tasks together, and then each task
    is answered by itself.

    If memory does not suffice for all together, each later step takes one image (``pace.most``). The pace is told how long the step took.
    Once ``stop`` is set, a vLLM server that does not answer is no longer waited for. Raises LabelStudioError, which concerns all tasks;
    another error with one task's answer becomes the result of that task.
    """
    began = time.perf_counter()
    there = [(one.job, one.image) for one in step if one.image is not None]
    if len(there) > 1 and not _find_ahead(pipeline, there, answer):
        pace.most = 1
    shared = (time.perf_counter() - began) / max(1, len(there))
    spent = 0.0
    for one in step:
        outcome = _outcome(pipeline, one, answer, stop or threading.Event())
        spent += outcome.seconds
        yield replace(outcome, seconds=outcome.seconds + shared) if outcome.answered is not None else outcome
    if there:
        pace.took(len(there), spent + shared * len(there))


def _find_ahead(pipeline: Pipeline, there: list[tuple[BatchTask, LoadedImage]], answer: TaskAnswerer) -> bool:
    try:
        return answer.ahead(pipeline, there)
    except (DeadlineError, NotReadyError, QueueFullError):
        return True  # the models had no turn for it; each task's own call tells why


def _outcome(pipeline: Pipeline, loaded: Loaded, answer: TaskAnswerer, stop: threading.Event) -> TaskResult:
    if loaded.image is None:
        assert loaded.outcome is not None
        return loaded.outcome
    patience = time.monotonic() + AWAY_SECONDS
    while True:
        began = time.perf_counter()
        try:
            answered = answer(pipeline, loaded.job, loaded.image, loaded.seconds)
            return TaskResult(loaded.job, answered, seconds=time.perf_counter() - began)
        except LabelStudioError:
            raise
        except EngineAwayError as error:
            log.warning("task %s waits: %s", loaded.job.id, error)
            if time.monotonic() > patience or stop.wait(AWAY_PAUSE):
                return failed(loaded.job, error)
        except Exception as error:
            return failed(loaded.job, error)
