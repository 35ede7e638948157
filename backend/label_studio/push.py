"""Sends predictions to Label Studio's import, which stores whatever it gets, repeated predictions included.

So Label Studio is asked before an import which tasks have a prediction already, and after it which have repeated ones. Bulk runs send their
predictions this way, and the server sends those that missed a request's deadline.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode

from backend.errors import LabelStudioError
from backend.label_studio.client import LIST_TIMEOUT, LabelStudio

log = logging.getLogger(__name__)

T = TypeVar("T")

TASKS_A_PUSH = 100
BYTES_A_PUSH = 16 * 1024 * 1024
"""The most bytes of predictions in one request: Label Studio holds several copies of a request in memory."""
SETTLE_SECONDS = 5.0
"""Seconds that an import may still run after its sender was killed or gave up. Fifty masks take SQLite well under a second."""
PATIENCE_SECONDS = 300.0
"""How long an unattended run waits for a Label Studio that is restarted or updated."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Pushed:
    """What a push did: ``new`` predictions were stored, ``already`` tasks had a prediction of the version, ``gone`` tasks no longer exist,
    and ``repeated`` predictions were deleted.
    """

    new: int = 0
    already: int = 0
    gone: int = 0
    repeated: int = 0

    def __add__(self, other: Pushed) -> Pushed:
        return Pushed(self.new + other.new, self.already + other.already, self.gone + other.gone, self.repeated + other.repeated)


def push(label_studio: LabelStudio, project: int, version: str, answers: Mapping[int, Answer], in_doubt: bool = False) -> Pushed:
    """Store the predictions in ``answers``, by task, for those tasks that have no prediction of this version.

    ``in_doubt``: an earlier push of the same answers may still run, so this one first waits SETTLE_SECONDS. Raises LabelStudioError. Some
    of the answers may then be stored; calling this again with the same arguments stores the rest.
    """
    if in_doubt:
        time.sleep(SETTLE_SECONDS)
    total = Pushed()
    for numbers in _portions(answers):
        total += _push(label_studio, project, version, {number: answers[number] for number in numbers})
    return total


def _push(label_studio: LabelStudio, project: int, version: str, answers: Mapping[int, Answer]) -> Pushed:
    having = holders(label_studio, project, version, list(answers))
    missing = [number for number in answers if number not in having]
    gone = 0
    if missing:
        try:
            _import(label_studio, project, {number: answers[number] for number in missing})
        except LabelStudioError as error:
            if error.status != 400:
                raise
            # one task that was deleted meanwhile spoils the whole import, so it is tried again with those that are left
            there = existing(label_studio, project, missing)
            gone = len(missing) - len(there)
            if not gone:
                raise
            missing = [number for number in missing if number in there]
            _import(label_studio, project, {number: answers[number] for number in missing})
    return Pushed(len(missing), len(having), gone, drop_repeated(label_studio, project, version, list(answers)))


def _import(label_studio: LabelStudio, project: int, answers: Mapping[int, Answer]) -> None:
    if answers:
        body = [{**answer, "task": number} for number, answer in answers.items()]
        label_studio.request("POST", f"/api/projects/{project:d}/import/predictions", body, LIST_TIMEOUT)


def holders(label_studio: LabelStudio, project: int, version: str, tasks: Sequence[int]) -> set[int]:
    """Those of the tasks that have a prediction of a version. Raises LabelStudioError."""
    return {task["id"] for task in _select(label_studio, project, tasks, _with_version(version, True))}


def existing(label_studio: LabelStudio, project: int, tasks: Sequence[int]) -> set[int]:
    """Those of the tasks that are still in the project. Raises LabelStudioError."""
    return {task["id"] for task in _select(label_studio, project, tasks)}


def drop_repeated(label_studio: LabelStudio, project: int, version: str, tasks: Sequence[int]) -> int:
    """Delete the predictions of a version that two senders at once stored twice for one of the tasks, and return how many were deleted.

    Raises LabelStudioError.
    """
    dropped = 0
    for task in _select(label_studio, project, tasks, _with_version(version, True)):
        versions = str(task.get("predictions_model_versions", "")).split(",")
        if task.get("total_predictions", 0) > len(versions):
            dropped += label_studio.drop_duplicates(task["id"], version)
    return dropped


def tasks_without(label_studio: LabelStudio, project: int, version: str, after: int, size: int) -> tuple[list[dict[str, Any]], int]:
    """Return the next tasks without a prediction of a version, at most ``size``, and how many such tasks there are in all.

    Only tasks with ids greater than ``after`` are returned and counted. They come in order of their ids, each with ``id`` and ``data``. As
    paging goes by id, no task is missed because others are added or deleted meanwhile. Raises LabelStudioError.
    """
    later = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": after}
    query = {"filters": {"conjunction": "and", "items": [later, _with_version(version, False)]}, "ordering": ["tasks:id"]}
    return _page(label_studio, project, query, size, "id,data")


def patiently(call: Callable[[], T], seconds: float = PATIENCE_SECONDS, stop: threading.Event | None = None) -> T:
    """Return what ``call`` returns. After a LabelStudioError that may pass (``passing``) it is called again, after FIRST_WAIT seconds, then
    twice as many, up to LONGEST_WAIT.

    If ``stop`` is set, or if the next call would begin later than ``seconds`` after the start, the last LabelStudioError is raised. Any
    other error is raised at once.
    """
    end, wait = time.monotonic() + seconds, FIRST_WAIT
    stop = stop or threading.Event()
    while True:
        try:
            return call()
        except LabelStudioError as error:
            if not error.passing or time.monotonic() + wait > end:
                raise
            log.warning("%s; trying again in %.0f s", error, wait)
            if stop.wait(wait):
                raise
            wait = min(2 * wait, LONGEST_WAIT)


def _with_version(version: str, having: bool) -> dict[str, Any]:
    # the filter compares parts of texts; as a version ends with a hash, no version is a part of another
    operator = "contains" if having else "not_contains"
    return {"filter": "filter:tasks:predictions_model_versions", "operator": operator, "type": "List", "value": [version]}


def _select(label_studio: LabelStudio, project: int, tasks: Sequence[int], *filters: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the tasks that pass the filters."""
    if not tasks:
        return []
    query: dict[str, Any] = {"selectedItems": {"all": False, "included": list(tasks)}}
    if filters:
        query["filters"] = {"conjunction": "and", "items": list(filters)}
    return _page(label_studio, project, query, len(tasks), "id,total_predictions,predictions_model_versions")[0]


def _page(label_studio: LabelStudio, project: int, query: dict[str, Any], size: int, fields: str) -> tuple[list[dict[str, Any]], int]:
    words = {"project": project, "page": 1, "page_size": size, "resolve_uri": "false", "include": fields}
    path = f"/api/tasks/?{urlencode({**words, 'query': json.dumps(query, separators=(',', ':'))})}"
    found = label_studio.request("GET", path, timeout=LIST_TIMEOUT)
    tasks, total = (found.get("tasks"), found.get("total")) if isinstance(found, dict) else (None, None)
    if not isinstance(total, int) or not isinstance(tasks, list) or not all(isinstance(one, dict) and _has_id(one) for one in tasks):
        raise LabelStudioError("what answers at /api/tasks/ is not Label Studio's API; check LABEL_STUDIO_URL")
    return tasks, total


def _has_id(task: Mapping[str, Any]) -> bool:
    return isinstance(task.get("id"), int)


def _portions(answers: Mapping[int, Answer]) -> Iterator[list[int]]:
    """Yield the ids of the tasks for each request: at most TASKS_A_PUSH, and BYTES_A_PUSH of predictions unless a single one is larger."""
    some: list[int] = []
    size = 0
    for number, answer in answers.items():
        weight = len(json.dumps(answer))
        if some and (len(some) == TASKS_A_PUSH or size + weight > BYTES_A_PUSH):
            yield some
            some, size = [], 0
        some.append(number)
        size += weight
    if some:
        yield some
