"""A shard's run: from the tasks to results on disk and in Label Studio, with three things under way at once.

One thread asks for pages of tasks, some get images, this one holds the models, and one pushes what is finished.
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
"""Tasks that are listed ahead; their data may hold a picture each."""


class ServedLog(Protocol):
    """Where it is written down what was served."""

    def serve(self, records: Sequence[Served]) -> None: ...


@dataclass
class Tally:
    """What a run did.

    ``kept`` tasks were found done, ``given`` were taken up, ``failed`` has reasons with how many tasks each, ``first`` a task of each.
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
    """Seconds in which the models were at work here."""

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return (self.done + sum(self.failed.values())) / max((self.ended or time.monotonic()) - self.began, 1e-9)

    @property
    def in_flight(self) -> int:
        """Tasks that were taken up and have no outcome yet."""
        return max(0, self.given - self.done - sum(self.failed.values()))

    def fail(self, task: int, message: str) -> None:
        self.failed[message] += 1
        self.first.setdefault(message, task)


class Sink(Protocol):
    """Where finished parts go."""

    def put(self, part: Path) -> None:
        """Take a part."""
        ...

    def check(self) -> None:
        """Raises what a part came to."""
        ...

    def close(self) -> Pushed:
        """Wait for all parts. Raises Sam4mllmError."""
        ...

    def abandon(self) -> None:
        """Begin no other part."""
        ...


class Nowhere:
    """For results that stay files."""

    def put(self, part: Path) -> None:
        """It is where it belongs."""

    def check(self) -> None:
        """Nothing can fail."""

    def close(self) -> Pushed:
        return Pushed()

    def abandon(self) -> None:
        """Nothing is under way."""


class Pusher:
    """Pushes parts into a project, in a thread of its own; the first error that does not pass ends it.

    ``beside``: others give the project predictions of the version meanwhile, so that at the end all tasks are looked at once more.
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
            for first in range(0, len(self._doubtful), TASKS_A_PUSH):  # long enough ago for an import of a killed run to be over
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
    """Answer what the store does not hold yet. ``show`` is told how it goes and how many tasks are to come.

    When ``stop`` is set the run ends after the task that it is at. Raises Sam4mllmError where it cannot go on; results are kept.
    """
    tally = Tally(kept=len(store.done))

    def wanted(job: BatchTask) -> bool:
        if job.id not in store.done:
            return True
        again = job.id in store.settled or store.done[job.id] != work.key(job)  # what was pushed was deleted in Label Studio
        tally.kept -= again
        return again

    feed = Feed(source, version, wanted)
    try:
        with closing(feed), closing(stages(_timed(feed.jobs(), tally))) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                if stop.is_set() and outcome.answered is None:  # perhaps because of the end
                    tally.stopped = True
                    break
                _keep(outcome, work, store, sink, notes, tally)
                if outcome.reason == FetchError.reason:
                    source.check()  # a key that was revoked would fail all others, one by one
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
        notes.serve(answered.served)  # before it can be corrected
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
        """The wanted tasks. Raises what the source raises, in its place."""
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
