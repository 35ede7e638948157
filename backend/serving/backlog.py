"""Tasks that a batch request had no time for: they are predicted after its answer, and the predictions are pushed to Label Studio.

Label Studio does not ask for them again by itself. The queue is in memory only: after a restart, a user has to retrieve predictions in
Label Studio again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from backend.errors import BackendError, DeadlineError, NotReadyError, QueueFullError, where
from backend.label_studio.client import LabelStudio
from backend.label_studio.push import patiently, push
from backend.label_studio.wire import MAX_TASKS, PredictRequest, row_id
from sam4mllm.errors import Sam4mllmError

log = logging.getLogger(__name__)

PUSHED_TOGETHER = 20
SENT_SECONDS = 600.0
"""Seconds for which a pushed task is remembered. A request that began before the push may still answer the same task after it (Label Studio
waits 100 s for an answer); the task then has two predictions.
"""
PAUSE_SECONDS = 5.0
"""Seconds to wait before a task is tried again for which the engine was busy, paused or not ready, or had not enough time."""

Predict = Callable[[object, PredictRequest], bytes]
Key = tuple[int, int]
"""The id of a project and the id of a task, as in Label Studio's database."""


@dataclass
class Backlog:
    """A queue of tasks with a thread of its own, which predicts one task at a time.

    ``predict`` is :meth:`backend.serving.predictor.Predictor.predict_late`. Once MAX_TASKS wait, further tasks are not taken.
    """

    predict: Predict
    label_studio: LabelStudio
    _tasks: dict[Key, tuple[object, PredictRequest]] = field(default_factory=dict)
    _ready: dict[Key, dict[str, Any]] = field(default_factory=dict)
    _sent: dict[Key, float] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def add(self, raw: object, request: PredictRequest) -> None:
        """Put a task into the queue and return at once. A task that is already in it is replaced.

        A task without an id is ignored, and so are all tasks of a request without a project, while the queue is full, or after ``close``.
        """
        key = _key(raw, request)
        with self._changed:
            if key is None or self._stop.is_set() or len(self._tasks) >= MAX_TASKS:
                return
            self._tasks[key] = (raw, request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="late", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def withdraw(self, raw: object, request: PredictRequest) -> int | None:
        """Forget a task, and its prediction if that is not pushed yet, because another request answered the task in time.

        Return the task's id if a prediction of it was pushed in the last SENT_SECONDS: Label Studio may then store that prediction and the
        request's answer. Otherwise return None.
        """
        key = _key(raw, request)
        with self._changed:
            if key is None:
                return None
            self._tasks.pop(key, None)
            self._ready.pop(key, None)
            return key[1] if time.monotonic() < self._sent.get(key, -SENT_SECONDS) + SENT_SECONDS else None

    @property
    def waiting(self) -> int:
        """How many tasks have no prediction yet, the one that is being predicted included."""
        return len(self._tasks)

    def close(self) -> None:
        """Empty the queue, begin no other task, and return at once. The result of the task that is being predicted is dropped."""
        with self._changed:
            self._stop.set()
            self._tasks.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or self._stop.is_set())
                found = next(iter(self._tasks.items()), None)
            if found is None:
                return
            key, (raw, request) = found
            answer = self._answer(key[1], raw, request)
            with self._changed:
                if self._tasks.pop(key, None) is not None and answer is not None:  # if it is gone, it was withdrawn or the queue closed
                    self._ready[key] = answer
                due = len(self._ready) if not self._tasks or len(self._ready) >= PUSHED_TOGETHER else 0
            if due:
                self._push_ready()

    def _push_ready(self) -> None:
        with self._changed:
            ready, self._ready = self._ready, {}
            now = time.monotonic()
            self._sent = {key: when for key, when in self._sent.items() if now < when + SENT_SECONDS} | dict.fromkeys(ready, now)
        for project in sorted({key[0] for key in ready}):
            self._push(project, {task: answer for (of, task), answer in ready.items() if of == project})

    def _answer(self, task: int, raw: object, request: PredictRequest) -> dict[str, Any] | None:
        while not self._stop.is_set():
            try:
                answer = json.loads(self.predict(raw, request))
                return answer if isinstance(answer, dict) else None
            except (QueueFullError, DeadlineError, NotReadyError) as error:
                log.debug("task %d has to wait: %s", task, error)
                self._stop.wait(PAUSE_SECONDS)
            except Sam4mllmError as error:
                log.warning("task %d: %s", task, error)
                return None
            except Exception as error:
                log.error("task %d failed: %s", task, where(error))
                return None
        return None

    def _push(self, project: int, answers: dict[int, dict[str, Any]]) -> None:
        versions = {str(answer["model_version"]) for answer in answers.values()}  # two, if another version was promoted meanwhile
        for version in sorted(versions):
            some = {task: answer for task, answer in answers.items() if answer["model_version"] == version}
            began = time.monotonic()
            try:
                done = patiently(lambda some=some, version=version: push(self.label_studio, project, version, some), stop=self._stop)  # type: ignore[misc]
            except BackendError as error:
                log.warning("%d late predictions of project %d were not pushed: %s", len(some), project, error)
                continue
            log.info("project %d: %d late predictions pushed in %.1f s", project, done.new, time.monotonic() - began)


def _key(raw: object, request: PredictRequest) -> Key | None:
    task = row_id(raw.get("id")) if isinstance(raw, dict) else None
    return None if task is None or request.project is None else (request.project, task)
