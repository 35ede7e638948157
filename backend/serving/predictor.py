"""From a request's tasks to predictions, one for each task and in order. Knows nothing of HTTP."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

from backend.corrections.log_faults import LogError
from backend.corrections.log_file import SOON
from backend.corrections.log_records import Served
from backend.errors import BackendError, ConfigError, DeadlineError, where
from backend.images.store import LoadedImage
from backend.label_studio.label_config import LabelConfig, read_label_config
from backend.label_studio.parameters import NO_PARAMETERS, Parameters
from backend.label_studio.phrases import Pointed, Wanted, pointed, split_phrases, typed_phrases, wanted
from backend.label_studio.region_parts import join_labels, join_pages, naming_page, on_page, page_of
from backend.label_studio.wire import PredictRequest, Region, Task, prediction, read_task
from backend.label_studio.write_regions import answer_line
from backend.serving.answerer import Answerer, Findings, Question, dump
from backend.serving.deadlines import LEFT_OUT, NO_TIME, TOO_LATE, in_time, wait_until
from backend.serving.engine import Engine
from backend.serving.leases import Lease, Leases
from backend.serving.noting import noting, recalled
from backend.serving.pointing import OnScreen, on_screen, selected_regions, touched_phrase
from backend.serving.served_records import ServedAnswer, served_records
from backend.serving.single_flight import SingleFlight
from backend.serving.writer import AnswerWriter
from backend.settings import Settings
from backend.support.byte_cache import ByteCache
from backend.support.metrics import Metrics
from backend.support.places import place_of
from sam4mllm.errors import Sam4mllmError
from sam4mllm.images import image_sha256

log = logging.getLogger(__name__)

WORKERS = 4
"""Threads for the tasks of batches. A request's first task is answered on the request's own thread; the models take one task at a time."""
DECODED_AT_ONCE = 4
"""Decoded images that may wait for the models, of annotators and of batches each: at the largest size 150 MB apiece."""
ANSWER_SECONDS = 600.0
"""The most seconds for which an answer is cached: Label Studio's page asks for some twice, and an image may change at its address."""

read_config = lru_cache(maxsize=64)(read_label_config)


class Images(Protocol):
    """Where pictures come from."""

    def load(self, reference: object, task_id: int | None, seconds: float) -> LoadedImage:
        """Return the picture that a task's data refers to, within ``seconds``. Raises FetchError, ImageError or DeadlineError."""
        ...

    def read(self, reference: object, task_id: int | None) -> bytes:
        """Return the bytes of the picture's file, not decoded. Raises FetchError."""
        ...


class TaskLog(Protocol):
    """The log: it keeps typed phrases by task, what was served, and which tasks were withheld (shown without a prediction on purpose)."""

    def remember(self, project: int | None, task: int, phrase: str) -> None: ...
    def task_phrase(self, project: int | None, task: int) -> str: ...
    def serve(self, records: Sequence[Served]) -> None: ...
    def served(self, project: int, task: int, wait: float) -> list[Served]: ...
    def withhold(self, project: int, task: int) -> None: ...
    def withheld(self, project: int, task: int) -> bool: ...
    def note_config(self, project: int, label_config: str) -> None: ...


class LateQueue(Protocol):
    """Tasks that are worked on after their request's answer."""

    def add(self, raw: object, request: PredictRequest) -> None: ...
    def withdraw(self, raw: object, request: PredictRequest) -> int | None:
        """Drop a task that another request has answered in time. Return the task's id if a prediction of it was pushed shortly before, so
        that Label Studio may have two predictions of it; else None.
        """
        ...


class _Project(NamedTuple):
    """A project as it is when a request arrives. A change of its config or parameters during the request holds from the next request on."""

    number: int | None
    config: LabelConfig
    parameters: Parameters

    def for_task(self, task: Task) -> _Project:
        """Return the project with the labels that the task's data adds to its config. Raises TaskError if they are too many."""
        return self._replace(config=self.config.for_task(task.data))


class Predictor:
    """Answers requests by the engine's pipeline.

    ``shared`` is called with (task, version) when a task's prediction may have gone to Label Studio twice; ``backlog`` takes what a batch
    has no time for; ``parameters`` returns a project's extra parameters.
    """

    def __init__(
        self,
        engine: Engine[Leases],
        answerer: Answerer,
        images: Images,
        notes: TaskLog,
        settings: Settings,
        metrics: Metrics,
        shared: Callable[[int, str], None] = lambda task, version: None,
        backlog: LateQueue | None = None,
        *,
        parameters: Callable[[int | None], Parameters] = lambda project: NO_PARAMETERS,
    ) -> None:
        self.engine = engine
        self._images = images
        self._notes = notes
        self._settings = settings
        self._metrics = metrics
        self._shared = shared
        self._backlog = backlog
        self._parameters = parameters
        cache_bytes = settings.cache_mb * 1024 * 1024
        self.answerer = answerer
        self.answers: ByteCache[str, bytes] = ByteCache(cache_bytes // 4, len, ANSWER_SECONDS)
        """Predictions as JSON texts, by :meth:`Question.key`."""
        self._single_flight = SingleFlight(self.answers)
        self._pool = ThreadPoolExecutor(WORKERS, "batch")
        self._writer = AnswerWriter()
        self._decoding = {interactive: threading.BoundedSemaphore(DECODED_AT_ONCE) for interactive in (True, False)}

    @property
    def version(self) -> str:
        """The version that predictions carry; empty while there is no model."""
        return self.engine.model.current.version if self.engine.model is not None else ""

    def predict(self, request: PredictRequest) -> list[bytes]:
        """Return one JSON text for each task, in order: a prediction, or ``[]`` for a task that failed, ran out of time or was withheld.

        The task of an interactive request gets a prediction even if it failed: an empty one, which says what went wrong if the config has a
        control for answers. The config is noted in the log, and a batch's tasks that ran out of time go to the backlog. While the models
        load, tasks wait until the deadline; if the models could not be loaded, each task fails. Raises QueueFullError if no place is free,
        and NotReadyError while the engine pauses or drains; then no task is answered.
        """
        deadline = time.monotonic() + self._settings.deadline
        with self.engine.place(request.interactive), Lease(self.engine, request.interactive, deadline) as lease:
            try:
                project: _Project | ConfigError = self._project(request)
                self.note_config(request.project, request.label_config)
            except ConfigError as error:
                project = error
            # this thread answers the first task itself, so a request of one task (a click, an opened task) never waits for the pool
            others = [
                self._pool.submit(copy_context().run, self._answer, raw, request, project, lease, deadline) for raw in request.tasks[1:]
            ]
            first = [self._answer(raw, request, project, lease, deadline) for raw in request.tasks[:1]]
            answers = first + [in_time(answer, deadline) for answer in others]
        if self._backlog is not None and not request.interactive:
            for raw, answer in zip(request.tasks, answers, strict=True):
                if answer is TOO_LATE:
                    self._backlog.add(raw, request)
                elif answer != LEFT_OUT and (task := self._backlog.withdraw(raw, request)) is not None:
                    self._shared(task, self.version)
        return answers

    def predict_late(self, raw: object, request: PredictRequest) -> bytes:
        """Return the JSON text of the prediction of a task that a batch had no time for; from the cache if it was made meanwhile.

        Raises Sam4mllmError. After QueueFullError, NotReadyError or DeadlineError the same call may succeed later.
        """
        deadline = time.monotonic() + self._settings.deadline
        with self.engine.place(False), Lease(self.engine, False, deadline) as lease:
            task = read_task(raw)
            answer = self._ask_pages(self._questions(task, self._project(request), request), request, lease, deadline)
        self._metrics.mended(str(task.id), request.project)
        return answer

    def note_config(self, project: int | None, label_config: str) -> None:
        """Note in the log which config a project has now, so that corrections made under it can be read after it was edited.
        A note that cannot be written is only reported in the server's log.
        """
        if project is not None:
            with noting("the labelling config"):
                self._notes.note_config(project, label_config)

    def _project(self, request: PredictRequest) -> _Project:
        config = read_config(request.label_config, self._settings.prompt_control)
        parameters = self._parameters(request.project)
        return _Project(request.project, parameters.apply(config), parameters)

    def close(self) -> None:
        """Begin no more tasks, and wait until what the models found is written."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._writer.close()

    def _answer(self, raw: object, request: PredictRequest, project: _Project | ConfigError, lease: Lease, deadline: float) -> bytes:
        """Return the answer to one task. An error is logged and counted for this task, and never raised."""
        number = raw.get("id") if isinstance(raw, dict) else None
        name = str(number) if isinstance(number, int) else ascii(number)[:40]
        late = False
        try:
            if time.monotonic() > deadline:
                raise DeadlineError(NO_TIME)
            if isinstance(project, ConfigError):
                raise project
            questions = self._questions(read_task(raw), project, request)
            if questions and self._withheld(questions[0], request):
                return LEFT_OUT
            if not questions:
                return dump(prediction([], 0.0, lease.version()))
            answer = self._ask_pages(questions, request, lease, deadline)
            if not request.interactive:
                self._metrics.mended(name, request.project)
            return answer
        except DeadlineError as error:
            late, reason, message = True, error.reason, str(error)
            log.warning("task %s: %s", name, message)
        except Sam4mllmError as error:
            reason, message = error.reason if isinstance(error, BackendError) else type(error).__name__, str(error)
            log.warning("task %s: %s", name, message)
        except Exception as error:
            reason, message = "internal", "internal error; see the server's log"
            log.error("task %s failed: %s", name, where(error))
            log.debug("the traceback", exc_info=True)
        self._metrics.failed(name, reason, message, request.project)
        return self._apology(project, message, lease) if request.interactive else TOO_LATE if late else LEFT_OUT

    def _apology(self, project: _Project | ConfigError, message: str, lease: Lease) -> bytes:
        """Return an empty prediction for an annotator who waits; it says what went wrong if the config has a control for answers."""
        regions = answer_line(project.config, message, message) if isinstance(project, _Project) else []
        return dump(prediction(regions, 0.0, lease.version()))

    def _questions(self, task: Task, project: _Project, request: PredictRequest) -> list[Question]:
        """Return a question for each page (picture of the task) that is asked about, for a task of one picture one question.

        The list is empty if an annotator's request holds neither a phrase nor a click: the annotator took the last prompt back, or accepted
        its mask. Raises TaskError or PhraseError if the task or a phrase cannot be used.
        """
        project = project.for_task(task)
        config = project.config
        context = join_labels(request.context or (), config)
        question = self._question(task, project, context, request.interactive)
        if not question.wanted and not question.pointed:
            return []
        pages = question.each_page()
        if not question.pointed or not config.paged:
            return list(pages)
        # clicks ask only about the pages that they are on, even where a phrase is typed as well
        found = [replace(one, pointed=pointed(on_page(context, one.page or 0), config)) for one in pages]
        return [one for one in found if one.pointed]

    def _question(self, task: Task, project: _Project, context: Sequence[Region], interactive: bool) -> Question:
        """Return what is asked of a task, not yet split by page, and note in the log what was typed. If nothing is asked, the question has
        neither phrases nor clicks.
        """
        config = project.config
        typed, pointing = typed_phrases(context, config), pointed(context, config)
        if typed:
            if task.id is not None:
                with noting(f"the phrase that was typed for task {task.id}"):
                    self._notes.remember(project.number, task.id, "; ".join(typed))
            if pointing and len(typed) > 1:  # the clicks are about one of the phrases
                return self._pointed(task, project, pointing, context)
        elif pointing:
            return self._pointed(task, project, pointing, context)
        elif interactive:
            return Question(task, config, (), pointing, True)
        asked = tuple(self._wanted(task, project, typed))
        shown = self._on_screen(task, asked, project.number) if typed else {}
        seen = tuple(one for some in shown.values() for one in some)
        return Question(task, config, asked, pointing, interactive, project.parameters, seen=seen)

    def _pointed(self, task: Task, project: _Project, pointing: Pointed, context: Sequence[Region]) -> Question:
        config, phrases = project.config, self._spoken_of(task, project)
        seen, selected = self._on_screen(task, phrases, project.number), selected_regions(context, config)
        if config.paged:
            pages = {page_of(region) for region in context}
            seen = {phrase: tuple(one for one in some if one.page in pages) for phrase, some in seen.items()}
        about = phrases
        if len(phrases) > 1:
            phrase = touched_phrase(pointing, seen, selected)
            about = [one for one in phrases if (one.phrase == phrase if phrase else one.label == pointing.label)]
        if len(about) != 1:
            return Question(task, config, (), pointing, True)
        shown = seen.get(about[0].phrase, ())
        return Question(task, config, tuple(about), pointing, True, project.parameters, seen=shown, selected=selected)

    def _on_screen(self, task: Task, phrases: Sequence[Wanted], project: int | None) -> dict[str, tuple[OnScreen, ...]]:
        """Return the instances that an annotator may see, by phrase. There are none if the task or the project has no id, or if the log
        cannot be read: a click is then answered without them.
        """
        if task.id is None or project is None:
            return {}
        try:
            records = self._notes.served(project, task.id, SOON)
        except LogError as error:
            log.error("what was served for task %s could not be read: %s", task.id, error)
            return {}
        return {one.phrase: on_screen(records, one.phrase, task.present) for one in phrases}

    def _withheld(self, question: Question, request: PredictRequest) -> bool:
        """Whether an opened task gets no prediction, so that its annotator draws without our help.

        A share of the pictures is withheld, always the same ones, to measure what predictions are worth: those with the lowest places
        (:func:`place_of`), which are held out first, too. Requests of several tasks and questions of an annotator are never withheld, nor
        is a task for which that cannot be noted. Raises TaskError or FetchError if the picture cannot be had.
        """
        project, number, share = request.project, question.task.id, self._settings.unassisted_share
        if not share or question.interactive or number is None or len(request.tasks) > 1 or project is None:
            return False
        with noting(f"that task {number} is drawn without our help"):
            if self._notes.withheld(project, number):  # once noted, it stays withheld, also if the disk is full now
                return True
            drawn = place_of(image_sha256(self._images.read(question.image, number))) < share
            if drawn:
                self._notes.withhold(project, number)
            return drawn
        return False

    def _wanted(self, task: Task, project: _Project, typed: Sequence[str]) -> list[Wanted]:
        return wanted(task, project.config, typed, project.parameters.phrase_field(self._settings.phrase_field))

    def _spoken_of(self, task: Task, project: _Project) -> list[Wanted]:
        """Return the phrases that a click may be about; none if they cannot be used.

        They are those that were typed last for the task, by the log, for a click's request does not hold them. If the log has none, they
        are those in the annotator's drafts, which Label Studio saves some seconds late, and else those of the task's data or the labels.
        """
        number = task.id
        noted = "" if number is None else recalled(lambda: self._notes.task_phrase(project.number, number))
        try:
            return self._wanted(task, project, split_phrases(noted) or typed_phrases(task.drafts, project.config))
        except Sam4mllmError:
            return []

    def _ask_pages(self, questions: Sequence[Question], request: PredictRequest, lease: Lease, deadline: float) -> bytes:
        """Return one prediction for all pages. Each page is cached by itself, so that after a deadline the next request does the rest."""
        answers = []
        for question in questions:
            with naming_page(question.page):
                answers.append((question.page or 0, self._ask(question, request, lease, deadline)))
        return join_pages(answers, questions[0].config) if questions[0].config.paged else answers[0][1]

    def _ask(self, question: Question, request: PredictRequest, lease: Lease, deadline: float) -> bytes:
        pipeline = lease.pipeline()
        version = pipeline.version
        key = question.key(version, request.project)

        def make() -> bytes:
            with self._one_of_few(question.interactive, deadline):
                began = time.perf_counter()
                image = self._images.load(question.image, question.task.id, deadline - time.monotonic())
                fetched = time.perf_counter() - began

                def write(findings: Findings) -> bytes:
                    answer, drawn = self.answerer.write(findings, question, key, fetched, request.project)
                    # recorded here and before it is cached: if this request has timed out, a later one gets the answer from the cache,
                    # and nothing would record it then
                    self._record(drawn, image, question, request.project, version)
                    self._single_flight.keep(key, answer)
                    return answer

                def work(_: Leases) -> Future[bytes] | bytes:
                    # if a request timed out and is repeated, the answer to the first one may have been found while this one waited
                    late = self._writer.coming(key) or self.answers.get(key, again=True)
                    if late is not None:
                        return late
                    return self._writer.begin(key, question.interactive, partial(write, self.answerer.look(pipeline, image, question)))

                written = self.engine.run(work, question.interactive, deadline)
                return written if isinstance(written, bytes) else wait_until(written, deadline)

        answer, shared = self._single_flight.answer(key, make, deadline)
        if shared and question.task.id is not None and not question.interactive:
            self._shared(question.task.id, version)
        return answer

    @contextmanager
    def _one_of_few(self, interactive: bool, deadline: float) -> Iterator[None]:
        if not self._decoding[interactive].acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise DeadlineError(NO_TIME)
        try:
            yield
        finally:
            self._decoding[interactive].release()

    def _record(self, drawn: Sequence[ServedAnswer], image: LoadedImage, question: Question, project: int | None, version: str) -> None:
        """Note in the log what was drawn, on the writer's thread, once for each answer."""
        if question.task.id is None or project is None:
            return
        with noting(f"what was served for task {question.task.id}"):
            records = served_records(drawn, image, project, question.task.id, version, question.interactive, question.page or 0)
            self._notes.serve(records)
