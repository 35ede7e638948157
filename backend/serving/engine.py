"""The engine: one thread owns the models and does all work on them. Annotators go before batches, and the number of requests is limited."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from backend.errors import DeadlineError, NotReadyError, QueueFullError, where
from sam4mllm.errors import Sam4mllmError

log = logging.getLogger(__name__)

M = TypeVar("M")
R = TypeVar("R")
State = Literal["loading", "ready", "paused", "failed", "draining"]

ANNOTATOR, BATCH = 0, 1
"""Ranks of work. An annotator waits in the editor for the answer, so the work of annotators goes before that of batches."""
BUSY = "requests did not come to an end, so the models cannot pause"


@dataclass(order=True)
class _Job:
    """A piece of work in the queue, ordered by ``rank`` (ANNOTATOR or BATCH), then by ``sequence``.

    ``deadline`` is a time of the monotonic clock. ``work`` is None once nobody waits for it.
    """

    rank: int
    sequence: int
    deadline: float = field(compare=False)
    work: Callable[[Any], Any] | None = field(compare=False)
    answer: Future[Any] = field(compare=False)


class Engine(Generic[M]):
    """Loads a model in its own thread and runs work on it, one piece at a time.

    A request first takes a place (:meth:`place`): at most ``places`` interactive requests and as many batch requests may hold one at a
    time. Its pieces of work are then queued by :meth:`run`, which waits no longer than the deadline. Work that is past its deadline when
    its turn comes is not begun.
    """

    def __init__(self, load: Callable[[], M], places: int, let_go: Callable[[], None] = lambda: None) -> None:
        """``load`` makes the model, on the engine's thread. ``let_go`` is called there when the engine pauses, to free what earlier work
        left in the memory of the models' device.
        """
        self._load = load
        self._free = {True: places, False: places}
        self._all_places = 2 * places
        self._jobs: list[_Job] = []
        self._sequence = itertools.count()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._ended = False
        self.state: State = "loading"
        self.failure = ""
        self._pause = ""
        self.model: M | None = None
        self._let_go = let_go
        self._at: _Job | None = None

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._thread.start()

    @contextmanager
    def place(self, interactive: bool) -> Iterator[None]:
        """Hold a place for one request. Raises QueueFullError if none is free, NotReadyError while the engine pauses or drains.

        While the model loads, and after that has failed, places are given all the same; :meth:`run` then waits or raises.
        """
        with self._changed:
            if self.state == "draining":
                raise NotReadyError("the server is shutting down; ask again in a minute")
            if self._pause:
                raise NotReadyError(self._pause)
            if self._free[interactive] == 0:
                raise QueueFullError("too many requests are waiting; ask again in a few seconds")
            self._free[interactive] -= 1
        try:
            yield
        finally:
            with self._changed:
                self._free[interactive] += 1
                self._changed.notify_all()

    def run(self, work: Callable[[M], R], interactive: bool, deadline: float) -> R:
        """Return what ``work`` returns when it is called with the model on the engine's thread; its errors are raised here.

        While the model loads, this waits. Raises DeadlineError if the deadline passes first (work that has begun goes on, and its result is
        dropped), and NotReadyError if the model could not be loaded or the engine has ended.
        """
        context = copy_context()  # so that log lines of the engine's thread have the request's id
        job = _Job(ANNOTATOR if interactive else BATCH, next(self._sequence), deadline, lambda model: context.run(work, model), Future())
        with self._changed:
            if self.failure:
                raise NotReadyError(self.failure)
            if self._ended:
                raise NotReadyError("the server is shutting down; ask again in a minute")
            heapq.heappush(self._jobs, job)
            self._changed.notify_all()
        try:
            result: R = job.answer.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            if job.answer.done():
                raise  # the work itself raised it
            if job.answer.cancel():
                job.work = None  # this frees the image that the work holds; the job is dropped when its turn comes
            raise DeadlineError("there was no time left for this task in this request; it is asked again later") from error
        return result

    def give_way(self) -> None:
        """Do the work that annotators wait for by now, and return to the batch's work, which calls this between two of its steps.

        It is called on the engine's thread, and does nothing during an annotator's work.
        """
        batch = self._at
        if batch is None or batch.rank == ANNOTATOR:
            return
        try:
            while (job := self._next_annotators()) is not None:
                self._at = job
                _perform(job, self.model)
        finally:
            self._at = batch

    def _next_annotators(self) -> _Job | None:
        with self._changed:
            return heapq.heappop(self._jobs) if self._jobs and self._jobs[0].rank == ANNOTATOR else None

    @property
    def waiting(self) -> int:
        """How many pieces of work in the queue a caller still waits for."""
        with self._changed:
            return sum(job.work is not None for job in self._jobs)

    @property
    def taken(self) -> dict[str, int]:
        """How many requests of each kind hold a place."""
        with self._changed:
            return {
                kind: self._all_places // 2 - self._free[interactive] for kind, interactive in (("interactive", True), ("batch", False))
            }

    def pause(self, message: str, seconds: float) -> None:
        """Refuse new requests with ``message``, wait until those that hold a place are answered, and then call ``let_go``.

        No request uses the models until :meth:`resume`. Raises DeadlineError if this, with the loading of the models, takes longer than
        ``seconds``; NotReadyError if they could not be loaded or the engine has ended; and what ``let_go`` raises. After an error the
        engine goes on as before.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            self._pause = message
            if not self._changed.wait_for(lambda: sum(self._free.values()) == self._all_places, seconds):
                self._pause = ""
                raise DeadlineError(BUSY)
            if self.state == "ready":
                self.state = "paused"
        try:
            self.run(lambda _: self._let_go(), False, deadline)  # after abandoned work, which may still use memory
        except BaseException as error:
            self.resume()
            if isinstance(error, DeadlineError):
                raise DeadlineError(BUSY) from error
            raise

    def resume(self) -> None:
        """Give places again."""
        with self._changed:
            self._pause = ""
            if self.state == "paused":
                self.state = "ready"

    def drain(self) -> None:
        """From now on no request gets a place; those that have one are still served."""
        with self._changed:
            self.state = "draining"
            self._changed.notify_all()

    def close(self, seconds: float) -> bool:
        """Drain, and wait up to ``seconds`` for the requests that hold a place to be served and for the thread to end.

        Return whether it has ended. It has not if it still loads the models, for instance.
        """
        self.drain()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        try:
            self.model = self._load()
        except BaseException as error:
            self._fail(error)
            return
        with self._changed:
            if self.state == "loading":
                self.state = "ready"
        while (job := self._next()) is not None:
            self._at = job
            _perform(job, self.model)

    def _fail(self, error: BaseException) -> None:
        known = isinstance(error, Sam4mllmError)
        log.error("the models could not be loaded: %s", error if known else where(error))
        with self._changed:
            self.state = "draining" if self.state == "draining" else "failed"
            self.failure = f"the models could not be loaded: {error}" if known else "the models could not be loaded; see the server's log"
            for job in self._jobs:
                if job.answer.set_running_or_notify_cancel():
                    job.answer.set_exception(NotReadyError(self.failure))
            self._jobs.clear()

    def _next(self) -> _Job | None:
        """Wait for a job, and return the first one in order; None once the engine drains, every request has left and no job is queued."""
        with self._changed:
            while not self._jobs:
                if self.state == "draining" and sum(self._free.values()) == self._all_places:
                    self._ended = True
                    return None
                self._changed.wait()
            return heapq.heappop(self._jobs)


def _perform(job: _Job, model: Any) -> None:
    work = job.work
    if work is None or time.monotonic() > job.deadline or not job.answer.set_running_or_notify_cancel():
        return
    try:
        result = work(model)
    except BaseException as error:
        job.answer.set_exception(error)
    else:
        job.answer.set_result(result)
