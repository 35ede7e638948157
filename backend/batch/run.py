"""The run of a shard: from tasks to results on disk and in Label Studio.

One thread lists pages of tasks, some load images, the caller's thread has them answered and stores the results, and another pushes
finished parts, all at the same time. On a Ray cluster, the cluster loads and answers.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from backend.batch.steps import Stages
from backend.batch.store import Store, read_part
from backend.batch.work import BatchTask, TaskResult, TaskSource, Work
from backend.corrections.log_records import Served
from backend.errors import FetchError
from backend.label_studio.client import LabelStudio
from backend.label_studio.push import TASKS_A_PUSH, Pushed, drop_repeated, patiently, push

log = logging.getLogger(__name__)

LISTED_AHEAD = 1000
"""The most tasks that are listed ahead of their use. The data of each may hold a whole picture, so more could fill the memory."""


class ServedLog(Protocol):
    """The log that notes which predictions were served."""

    def serve(self, records: Sequence[Served]) -> None: ...


@dataclass
class Tally:
    """What a run did.

    ``kept`` tasks have a result of an earlier run that still holds, ``given`` were taken up, and ``done`` of these have a result.
    ``failed`` counts tasks by the message of their failure, and ``first`` has the id of the first task with each message. ``pushed`` is set
    at the end. ``began`` (when the first task was taken up) and ``ended`` are times of the monotonic clock.
    """

    kept: int = 0
    done: int = 0
    given: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    pushed: Pushed = field(default_factory=Pushed)
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    first_task: float = 0.0
    """Seconds since 1970 when the first task was taken up; 0 if there was none."""
    stopped: bool = False
    models: float = 0.0
    """Seconds that answering took in this process for the tasks in ``done``, with waits for the models' turn; 0 on a Ray cluster."""

    @property
    def rate(self) -> float:
        """Tasks a second that got a result or failed, since the first one was taken up."""
        return (self.done + sum(self.failed.values())) / max((self.ended or time.monotonic()) - self.began, 1e-9)

    @property
    def in_flight(self) -> int:
        """Tasks that were taken up and have no outcome yet."""
        return max(0, self.given - self.done - sum(self.failed.values()))

    def fail(self, task: int, message: str) -> None:
        self.failed[message] += 1
        self.first.setdefault(message, task)


class Sink(Protocol):
    """Where the finished parts of a store go."""

    def put(self, part: Path) -> None:
        """Take a part to be pushed later; return at once."""
        ...

    def check(self) -> None:
        """Raise the error with which a push has failed, if one has."""
        ...

    def close(self) -> Pushed:
        """Wait until all parts are pushed, and return what was pushed. Raises the error with which a push has failed, if one has."""
        ...

    def abandon(self) -> None:
        """Return once the part that is being pushed is done or has failed; the other parts stay unpushed."""
        ...


class Nowhere:
    """The sink of results that stay files: nothing is pushed."""

    def put(self, part: Path) -> None:
        """Do nothing: the part stays where it is."""

    def check(self) -> None:
        """Do nothing: nothing can fail."""

    def close(self) -> Pushed:
        return Pushed()

    def abandon(self) -> None:
        """Do nothing: nothing is being pushed."""


class Pusher:
    """Pushes parts into a project, in a thread of its own that starts at once. Parts that an earlier run left unpushed come first.

    The first error that does not go away when the push is tried again ends the thread; ``check`` and ``close`` raise it. ``beside``: a
    server may give the tasks predictions of the same version meanwhile, so repeated predictions are looked for once more at the end, in
    all tasks that were pushed; otherwise only in those whose push had been begun before.
    """

    def __init__(
        self, label_studio: LabelStudio, project: int, version: str, store: Store, stop: threading.Event, *, beside: bool = False
    ) -> None:
        self._label_studio, self._project, self._version, self._store, self._stop = label_studio, project, version, store, stop
        self._parts: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._beside = beside
        self._doubtful: list[int] = []
        self._abandoned = False
        self._pushed = Pushed()
        self._thread = threading.Thread(target=self._work, name="pusher", daemon=True)
        for part in list(store.waiting):
            self._parts.put(part)
        self._thread.start()

    def put(self, part: Path) -> None:
        self._parts.put(part)

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> Pushed:
        self._parts.put(None)
        self._thread.join()
        self.check()
        return self._pushed

    def abandon(self) -> None:
        self._abandoned = True
        self._stop.set()
        self._parts.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            while (part := self._parts.get()) is not None and not self._abandoned:
                self._push(part)
            for first in range(0, len(self._doubtful), TASKS_A_PUSH):  # by now, an import that a killed run began is over
                some = self._doubtful[first : first + TASKS_A_PUSH]
                again = partial(drop_repeated, self._label_studio, self._project, self._version, some)
                self._pushed += Pushed(repeated=patiently(again, stop=self._stop))
        except BaseException as error:
            self._error = error

    def _push(self, part: Path) -> None:
        answers = {row["task"]: row["result"] for row in read_part(part) or ()}
        doubts = [self._store.begin_push(part)]

        def attempt() -> Pushed:
            in_doubt = doubts.pop() if doubts else True
            self._doubtful += answers if in_doubt or self._beside else []
            return push(self._label_studio, self._project, self._version, answers, in_doubt)

        self._pushed += patiently(attempt, stop=self._stop)
        self._store.end_push(part)


def run(
    source: TaskSource,
    version: str,
    work: Work,
    stages: Stages,
    store: Store,
    sink: Sink,
    *,
    notes: ServedLog | None,
    show: Callable[[Tally, int], None],
    stop: threading.Event,
) -> Tally:
    """Answer the tasks that need it, store the results, hand finished parts to ``sink``, wait until it has pushed them, and return what was
    done.

    A task needs it if the store has no result of it, if its key has changed since, or if an earlier run pushed its result but the source
    lists it again. A task that fails is counted and logged, and the run goes on. ``show`` is called after each task with the tally and
    about how many tasks are left. ``notes`` None records nothing of what was served. Once ``stop`` is set, the run ends after its present
    task. Raises Sam4mllmError if it cannot go on; the results so far are kept.
    """
    tally = Tally(kept=len(store.done))

    def wanted(job: BatchTask) -> bool:
        if job.id not in store.done:
            return True
        # the source lists a settled task again only if its prediction was deleted in Label Studio; another key: the question has changed
        again = job.id in store.settled or store.done[job.id] != work.key(job)
        tally.kept -= again
        return again

    feed = Feed(source, version, wanted)
    try:
        with closing(feed), closing(stages(_timed(feed.jobs(), tally))) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                if stop.is_set() and outcome.answered is None:  # perhaps it failed only because of the stop
                    tally.stopped = True
                    break
                _keep(outcome, work, store, sink, notes, tally)
                if outcome.reason == FetchError.reason:
                    source.check()  # if the API key was revoked, all other tasks would fail, one by one
                sink.check()
                show(tally, feed.left() + tally.in_flight)
                if stop.is_set():
                    tally.stopped = True
                    break
        part = store.close_part()
        if part is not None:
            sink.put(part)
        tally.ended = time.monotonic()
        tally.pushed = sink.close()
    except BaseException:
        sink.abandon()
        raise
    return tally


def _keep(outcome: TaskResult, work: Work, store: Store, sink: Sink, notes: ServedLog | None, tally: Tally) -> None:
    job, answered = outcome.job, outcome.answered
    if answered is None:
        log.warning("task %s: %s", job.id, outcome.message)
        tally.fail(job.id, outcome.message)
        return
    if notes is not None:
        notes.serve(answered.served)  # before it is pushed, and so before a reviewer can correct it
    part = store.add(job.id, work.key(job), answered.result)
    tally.done += 1
    tally.models += outcome.seconds
    if part is not None:
        sink.put(part)


def _timed(jobs: Iterator[BatchTask], tally: Tally) -> Iterator[BatchTask]:
    for job in jobs:
        tally.given += 1
        if not tally.first_task:
            tally.first_task, tally.began = time.time(), time.monotonic()
        yield job


class Feed:
    """Tasks that a thread lists ahead of their use."""

    def __init__(self, source: TaskSource, version: str, wanted: Callable[[BatchTask], bool]) -> None:
        self._source, self._version, self._wanted = source, version, wanted
        self._queue: queue.Queue[BatchTask | BaseException | None] = queue.Queue(LISTED_AHEAD)
        self._closed = self._ended = False
        self._thread = threading.Thread(target=self._list, name="feed", daemon=True)
        self._thread.start()

    def jobs(self) -> Iterator[BatchTask]:
        """Yield the wanted tasks. An error of the source is raised here, after the tasks that were listed before it."""
        while (found := self._queue.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found

    def left(self) -> int:
        """About how many are still to come."""
        return max(0, self._queue.qsize() - self._ended) + self._source.left()

    def close(self) -> None:
        """List no more; does not wait for a page that is being asked for."""
        self._closed = True
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return

    def _list(self) -> None:
        try:
            for job in self._source.jobs(self._version):
                if self._wanted(job):
                    self._put(job)
                if self._closed:
                    return
            self._ended = True  # the queue's last entry is no task
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, found: BatchTask | BaseException | None) -> None:
        while not self._closed:
            with suppress(queue.Full):
                self._queue.put(found, timeout=0.5)
                return
