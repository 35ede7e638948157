"""From a request's tasks to predictions, one for each task and in order. Knows nothing of HTTP."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backend.cache import ByteCache
from backend.engine import Engine
from backend.errors import BackendError, DeadlineError
from backend.flights import Flights
from backend.images import LoadedImage
from backend.label_config import LabelConfig, read_label_config
from backend.metrics import Metrics
from backend.phrases import MAX_PHRASES, Pointed, Wanted, pointed, typed_text, wanted
from backend.regions import answer_line, to_regions
from backend.settings import Settings
from backend.wire import PredictRequest, Region, Task, prediction, read_task
from sam4mllm.clicks import Clicks
from sam4mllm.errors import Sam4mllmError
from sam4mllm.pipeline import Instance, Opened, Pipeline, Segmentation, check_phrase

log = logging.getLogger(__name__)

NOTHING: list[Any] = []
"""What Label Studio stores nothing for, and asks again."""
WORKERS = 4
"""Tasks of batches that are fetched or worked on at once; the models still take one at a time."""
ANSWER_SECONDS = 600.0
"""How long an answer is kept: long enough for all that a page asks twice, short enough for an image that changes behind its address."""

Prediction = dict[str, Any]
read_config = lru_cache(maxsize=64)(read_label_config)


class Images(Protocol):
    """Where pictures come from."""

    def load(self, reference: object, task_id: int | None) -> LoadedImage:
        """Raises FetchError or ImageError."""
        ...


class Phrases(Protocol):
    """Where typed phrases are kept."""

    def remember(self, project: str, task: int | None, phrase: str) -> None: ...

    def remembered(self, project: str, task: int | None) -> str:
        """The last phrase typed for the task, or with None for any of the project; empty if none."""
        ...


@dataclass(frozen=True)
class Question:
    """What is asked of one task: with the version, all that its answer depends on."""

    task: Task
    config: LabelConfig
    wanted: tuple[Wanted, ...]
    pointed: Pointed
    interactive: bool

    def key(self, version: str, project: str) -> str:
        parts = (version, project, self.task.id, json.dumps(self.task.data, sort_keys=True), self.config, self.wanted, self.pointed)
        return hashlib.sha256(repr((*parts, self.interactive)).encode()).hexdigest()


class Predictor:
    """Answers requests by the engine's pipeline. ``repeated`` is called with (task, version) when a batch gets an answer once more."""

    def __init__(
        self,
        engine: Engine[Pipeline],
        images: Images,
        phrases: Phrases,
        settings: Settings,
        metrics: Metrics,
        repeated: Callable[[int, str], None] = lambda task, version: None,
    ) -> None:
        self.engine = engine
        self._images = images
        self._phrases = phrases
        self._settings = settings
        self._metrics = metrics
        self._repeated = repeated
        cache_bytes = settings.cache_mb * 1024 * 1024
        self._opened: ByteCache[str, Opened] = ByteCache(cache_bytes, lambda opened: opened.scene.nbytes + opened.embedding.nbytes)
        self._flights = Flights(ByteCache(cache_bytes // 4, len, ANSWER_SECONDS))
        self._pool = ThreadPoolExecutor(WORKERS, "batch")

    def predict(self, request: PredictRequest) -> list[bytes]:
        """One JSON text a task, in order: a prediction, or ``[]`` for a task that failed or ran out of time.

        Raises QueueFullError or NotReadyError for the request as a whole.
        """
        deadline = time.monotonic() + self._settings.deadline
        with self.engine.place(request.interactive):
            answers = [self._pool.submit(self._answer, raw, request, deadline) for raw in request.tasks[1:]]
            first = [self._answer(raw, request, deadline) for raw in request.tasks[:1]]
            return first + [answer.result() for answer in answers]

    def _answer(self, raw: object, request: PredictRequest, deadline: float) -> bytes:
        """Whatever is wrong with a task stays with that task."""
        task = raw.get("id") if isinstance(raw, dict) else None
        try:
            if time.monotonic() > deadline:
                raise DeadlineError("there was no time left for this task in this request; it is asked again later")
            question = self._question(read_task(raw), request)
            if not question.wanted and not question.pointed and question.interactive:
                return _dump(prediction([], 0.0, self.version or "none"))
            answer = self._ask(question, request, deadline)
        except Sam4mllmError as error:
            reason = error.reason if isinstance(error, BackendError) else type(error).__name__
            message = str(error)
            log.warning("task %s: %s", task, message)
        except Exception:
            reason, message = "internal", "internal error; see the server's log"
            log.exception("task %s failed", task)
        else:
            return answer
        self._metrics.failed(task, reason, message)
        return self._apology(request, message) if request.interactive else b"[]"

    def _apology(self, request: PredictRequest, message: str) -> bytes:
        """An annotator who waits gets an answer in any case: where the config has a place for it, what went wrong."""
        try:
            regions = answer_line(read_config(request.label_config), message, message)
        except Sam4mllmError:
            regions = []
        return _dump(prediction(regions, 0.0, self.version or "none"))

    @property
    def version(self) -> str:
        """The version that predictions carry; empty while there is no model."""
        return self.engine.model.version(self._settings.strategy) if self.engine.model is not None else ""

    def _question(self, task: Task, request: PredictRequest) -> Question:
        config = read_config(request.label_config)
        context = request.context or ()
        typed, pointing = typed_text(context, config), pointed(context, config)
        project = request.project.split(".")[0]
        if typed:
            typed = check_phrase(typed)
            self._phrases.remember(project, task.id, typed)
        elif pointing:  # a click's context never holds the phrase, and drafts are seconds late
            typed = self._phrases.remembered(project, task.id) or typed_text(task.drafts, config)
        elif request.interactive:  # the annotator took the last prompt back, or accepted its mask
            return Question(task, config, (), pointing, True)
        remembered = self._phrases.remembered(project, None) if self._settings.remember_phrase else ""
        phrases = wanted(task, config, typed, self._settings.phrase_field, remembered)
        if pointing:
            phrases = _spoken_of(phrases, pointing)
        return Question(task, config, tuple(phrases[:MAX_PHRASES]), pointing, request.interactive)

    def _ask(self, question: Question, request: PredictRequest, deadline: float) -> bytes:
        version = self.version or self.engine.run(lambda model: model.version(self._settings.strategy), question.interactive, deadline)
        key = question.key(version, request.project)

        def make() -> bytes:
            began = time.perf_counter()
            image = self._images.load(question.task.data.get(question.config.image_key), question.task.id)
            fetched = time.perf_counter() - began

            def work(pipeline: Pipeline) -> bytes:
                answer = self._segment(pipeline, image, question, key, fetched)
                self._flights.keep(key, answer)
                return answer

            return self.engine.run(work, question.interactive, deadline)

        answer, known = self._flights.answer(key, make, deadline)
        if known and question.task.id is not None and not question.interactive:
            self._repeated(question.task.id, version)
        return answer

    def _segment(self, pipeline: Pipeline, image: LoadedImage, question: Question, key: str, fetched: float) -> bytes:
        """The engine's thread comes here with the models."""
        height, width = image.pixels.shape[:2]
        clicks = question.pointed.clicks(width, height) if question.pointed else None
        began = time.perf_counter()
        opened = self._open(pipeline, image)
        seconds = {"fetch": fetched, "open": time.perf_counter() - began}
        strategy = self._settings.strategy
        found = pipeline.segment(opened, [one.phrase for one in question.wanted], strategy, clicks)
        drawing = time.perf_counter()
        labels = [one.label for one in question.wanted] or [question.pointed.label]
        if clicks is not None and question.pointed.label is not None:
            labels = [question.pointed.label] * len(found)
        regions: list[Region] = []
        kept: list[tuple[Instance, ...]] = [_touched(one, clicks) for one in found]
        for one, label, instances in zip(found, labels, kept, strict=True):
            regions += to_regions(one, question.config, label, key, instances, self._settings.show_prompts)
        if question.interactive:
            regions += answer_line(question.config, _summary(found), key)
        scores = [instance.score for instances in kept for instance in instances] or [one.score for one in found]
        answer = _dump(prediction(regions, min(scores, default=0.0), pipeline.version(strategy)))
        timings = {stage: spent for stage, spent in found[0].timings.items() if stage != "image"} if found else {}
        self._metrics.spent({**seconds, **timings, "regions": time.perf_counter() - drawing})
        self._metrics.served(len(scores) if any(kept) else 0)
        return answer

    def _open(self, pipeline: Pipeline, image: LoadedImage) -> Opened:
        opened = self._opened.get(image.sha256)
        if opened is None:
            opened = pipeline.open(image.pixels)
            self._opened.put(image.sha256, opened)
        return opened


def _spoken_of(phrases: list[Wanted], pointing: Pointed) -> list[Wanted]:
    """The one phrase that a click is about: the only one, or the only one of its label. Otherwise the click stands alone."""
    same = [one for one in phrases if one.label == pointing.label] if len(phrases) > 1 else phrases
    return same if len(same) == 1 else []


def _touched(found: Segmentation, clicks: Clicks | None) -> tuple[Instance, ...]:
    """The instances that the clicks are part of; all if there is no click, or none of them reached an instance."""
    if clicks is None:
        return found.instances
    touched = tuple(instance for instance in found.instances if _has_any(instance, clicks))
    return touched or found.instances


def _has_any(instance: Instance, clicks: Clicks) -> bool:
    point = any(_is_row(one, instance.points_px) for one in clicks.points_px)
    return point or _is_row(instance.box_px, np.concatenate([clicks.boxes_px, clicks.boxes_px[:, [2, 3, 0, 1]]]))


def _is_row(row: NDArray[np.float32], rows: NDArray[np.float32]) -> bool:
    return bool(len(rows)) and bool(np.isclose(rows, row, atol=0.5).all(-1).any())


def _summary(found: Sequence[Segmentation]) -> str:
    """What the annotator reads: an answer without a line would leave the last one's standing."""
    lines = []
    for one in found:
        count = f"{len(one.instances)} found" if one.instances else one.note or "no such object"
        lines.append(f"{one.phrase or 'click'}: {count}")
    return "; ".join(lines)


def _dump(value: Prediction) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
