"""Bulk runs on the server's own models, between its requests: the status page starts and stops them.

Results lie where ``sam4mllm batch`` keeps them, so that either goes on with what the other began.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from backend.batch.run import Pusher, ServedLog, Tally, run
from backend.batch.shards import TASKS_A_PART, WHOLE, open_project, results_of
from backend.batch.steps import Stages, local_stages
from backend.batch.store import opened
from backend.batch.work import BatchTask, Load, ProjectSource, ProjectWork, TaskAnswerer, TaskResult
from backend.errors import BatchError, DeadlineError, LabelStudioError, NotReadyError, QueueFullError, where
from backend.serving.answerer import Answerer
from backend.serving.engine import Engine
from backend.serving.leases import Lease, Leases
from backend.serving.predictor import Images
from backend.settings import Settings
from backend.support.metrics import Metrics
from sam4mllm.durable import replace_file
from sam4mllm.errors import Sam4mllmError
from sam4mllm.pipeline import Pipeline

log = logging.getLogger(__name__)

R = TypeVar("R")

STATES_FILE = "runs.json"
PAUSE_SECONDS = 2.0
"""How long a piece of work waits before it asks a busy or paused engine for a place again."""
STEP_SECONDS = 0.25
"""Seconds of the models that the pictures of one step may take together. An annotator's work can only begin between two uses of a model,
and one use for many pictures takes longer."""
TURN_SECONDS = 86_400.0
"""Seconds after which a piece of work that still waits for the models is queued anew. They are many, because annotators go first, however
many they are."""
RUNNING = ("running", "stopping")
FUTURE = 1e11
"""Seconds since 1970 after which a time in the file of runs counts as damaged."""
KEPT = 10
"""How many projects' last runs, the newest ones, are kept when a run starts; the one that starts is kept besides."""
INTERRUPTED = "the server ended in the middle of it; nothing is lost, start it again to go on"


@dataclass(frozen=True)
class BulkRun:
    """The last run of a project.

    ``state`` is running, stopping, finished, stopped or failed; ``done`` tasks have a result, those of former runs included,
    ``failed`` tasks got none, and ``of`` is the number of all tasks that are known of. ``rate`` is in tasks a second, ``message`` is a line
    for a person, and ``when`` is the time of the last change, in seconds since 1970. ``project`` is the project's id, and ``version`` that
    of the predictions, empty until the run knows it.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    project: int
    state: str
    version: str = ""
    done: int = 0
    failed: int = 0
    of: int = 0
    rate: float = 0.0
    message: str = ""
    when: float = field(default_factory=time.time)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run ends at its present rate; None while the rate is not known."""
        return (self.of - self.done - self.failed) / self.rate if self.rate else None


_RUNS = TypeAdapter(list[BulkRun])


class BulkRuns:
    """Runs one bulk run at a time, in a thread of its own. A file keeps the last runs over restarts, one of each project; KEPT limits
    their number.
    """

    def __init__(
        self, settings: Settings, engine: Engine[Leases], answerer: Answerer, images: Images, notes: ServedLog, metrics: Metrics
    ) -> None:
        self._settings, self._engine, self._answerer, self._images = settings, engine, answerer, images
        self._notes, self._metrics = notes, metrics
        self._path = settings.home / "batch" / STATES_FILE
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._runs = _read(self._path)

    @property
    def runs(self) -> list[BulkRun]:
        """The last run of each project, the newest first."""
        with self._lock:
            return sorted(self._runs.values(), key=lambda one: one.when, reverse=True)

    def start(self, project: int) -> None:
        """Start a run that gives every task of a project a prediction of the version that serves, if it has none; return at once.

        Raises NotReadyError while the models are loading, if they could not be loaded, and after ``interrupt``; BatchError while a run of
        any project goes on. What fails later is told by the ``state`` and the ``message`` of the run.
        """
        with self._lock:
            if self._ended or self._engine.model is None:
                raise NotReadyError(self._engine.failure or "there are no models to ask yet; press again when the page says ready")
            busy = next((one.project for one in self._runs.values() if one.state in RUNNING), None)
            if busy is not None:
                raise BatchError(f"project {busy} is being worked on; stop that run first, or wait for its end")
            self._stop = threading.Event()
            tried = [one for one in self._runs.values() if one.version]  # what never began need not be remembered
            self._runs = {one.project: one for one in sorted(tried, key=lambda one: one.when)[-KEPT:]}
            self._runs[project] = BulkRun(project, "running", message="looking for the tasks that have no prediction yet")
            self._thread = threading.Thread(target=self._work, args=(project, self._stop), name="bulk", daemon=True)
            self._write()
            self._thread.start()

    def stop(self, project: int) -> None:
        """Let a run end after its present task, and return at once. What it found is kept, and is pushed by this run or, if Label Studio
        does not answer now, by the next. Raises BatchError if no run of the project goes on.
        """
        with self._lock:
            if (found := self._runs.get(project)) is None or found.state not in RUNNING:
                raise BatchError(f"no run of project {project} is going on")
            self._stop.set()
            self._runs[project] = replace(found, state="stopping")

    def interrupt(self) -> None:
        """Stop what goes on, and begin nothing more: the server ends."""
        with self._lock:
            self._ended = True
            self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait at most ``seconds`` for the end of the last run."""
        if self._thread is not None:
            self._thread.join(seconds)

    # -- the run ---------------------------------------------------------------------------------------------------------------------------

    def _work(self, project: int, stop: threading.Event) -> None:
        try:
            tally, overtaken = self._run(project, stop)
            state = "stopped" if tally.stopped else "finished"
            self._tell(project, state=state, message=_result(tally) + overtaken, **_counts(tally, tally.in_flight))
        except Sam4mllmError as error:
            log.warning("bulk run of project %d: %s", project, error)
            waited = stop.is_set() and isinstance(error, LabelStudioError) and error.passing
            self._tell(project, state="stopped" if waited else "failed", message=str(error))
        except Exception as error:
            log.error("bulk run of project %d: %s", project, where(error))
            self._tell(project, state="failed", message="internal error; the server's log says where")
        with self._lock:
            self._write()

    def _run(self, project: int, stop: threading.Event) -> tuple[Tally, str]:
        """Do the run. Return what was done, and a text to add to the message if another version serves by now, else an empty one."""
        source, work, label_studio = open_project(self._settings, project)
        source.stop = stop
        with closing(label_studio), Lease(self._engine, False, time.monotonic() + TURN_SECONDS) as lease:
            pipeline = lease.pipeline()
            version = pipeline.version
            self._tell(project, version=version)
            with opened(results_of(self._settings, project) / version / WHOLE.name, TASKS_A_PART) as store:
                tally = run(
                    source,
                    version,
                    work,
                    self._stages(pipeline, work, source, stop),
                    store,
                    Pusher(label_studio, project, version, store, stop, beside=True),
                    notes=self._notes,
                    show=lambda tally, left: self._tell(project, message="", **_counts(tally, left)),
                    stop=stop,
                )
        return tally, "" if self._serves(version) else f"; {self._serving} serves by now, start it again for predictions of that version"

    @property
    def _serving(self) -> str:
        return self._engine.model.current.version if self._engine.model is not None else ""

    def _serves(self, version: str) -> bool:
        return self._serving in ("", version)

    def _stages(self, pipeline: Pipeline, work: ProjectWork, source: ProjectSource, stop: threading.Event) -> Stages:
        inner = local_stages(pipeline, _Queued(work, self._engine, self._answerer, self._images, stop), source, STEP_SECONDS, stop)

        def stages(jobs: Iterator[BatchTask]) -> Iterator[TaskResult]:
            with closing(inner(jobs)) as outcomes:  # type: ignore[type-var]
                for outcome in outcomes:
                    if outcome.answered is None and not stop.is_set():
                        self._metrics.failed(outcome.job.id, outcome.reason, outcome.message, work.project)
                    elif outcome.answered is not None:
                        self._metrics.mended(outcome.job.id, work.project)
                    yield outcome
                    if not self._serves(pipeline.version):  # nobody wants more predictions of a version that does not serve
                        stop.set()

        return stages

    # -- what is told ----------------------------------------------------------------------------------------------------------------------

    def _tell(self, project: int, **changes: Any) -> None:
        with self._lock:
            self._runs[project] = replace(self._runs[project], when=time.time(), **changes)

    def _write(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps([asdict(one) for one in self._runs.values()]).encode())
        except OSError as error:
            log.warning("%s cannot be written (%s); after a restart the page does not know of bulk runs", self._path, error.strerror)


@dataclass(frozen=True)
class _Queued:
    """A project's work, which uses the models on the engine's thread. Each use takes a batch place of the engine and waits for its turn.

    If the engine is full, busy or paused, this is tried again until ``stop`` is set; then its QueueFullError, NotReadyError or
    DeadlineError is raised.
    """

    work: ProjectWork
    engine: Engine[Leases]
    shared: Answerer
    images: Images
    stop: threading.Event

    def key(self, job: BatchTask) -> str:
        return self.work.key(job)

    def loader(self) -> Load:
        return self.work.load_from(self.images)

    def answerer(self) -> TaskAnswerer:
        return self.work.answer_by(self.shared, self.images, self._in_turn)

    def _in_turn(self, piece: Callable[[], R], /) -> R:
        while True:
            try:
                with self.engine.place(interactive=False):
                    return self.engine.run(lambda _: piece(), False, time.monotonic() + TURN_SECONDS)
            except (QueueFullError, NotReadyError, DeadlineError):
                if self.stop.wait(PAUSE_SECONDS):
                    raise


def _counts(tally: Tally, left: int) -> dict[str, Any]:
    done, failed = tally.kept + tally.done, sum(tally.failed.values())
    return {"done": done, "failed": failed, "of": done + failed + left, "rate": tally.rate}


def _result(tally: Tally) -> str:
    """Return a line for a person on what a run did that came to its end or was stopped."""
    nothing = "nothing was pushed" if tally.stopped or tally.failed else "every task had its prediction"
    said = [f"{tally.pushed.new:,} predictions pushed" if tally.pushed.new else nothing]
    said += [f"no answer for {count:,}: {text} (first: task {tally.first[text]})" for text, count in tally.failed.most_common(1)]
    return "; ".join([*said, "start it again to go on"] if tally.stopped else said)


def _read(path: Path) -> dict[int, BulkRun]:
    """Return the runs in the file, by project; none if there is no such file or it is damaged.

    A run that was going on when the file was written counts as stopped. One whose time is not between 0 and FUTURE is left out.
    """
    try:
        runs = [one for one in _RUNS.validate_json(path.read_bytes(), strict=True) if 0 <= one.when < FUTURE]
    except (OSError, ValidationError):
        return {}
    ended = [replace(one, state="stopped", message=INTERRUPTED) if one.state in RUNNING else one for one in runs]
    return {one.project: one for one in ended}
