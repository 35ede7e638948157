"""Pushes without duplicates: what is there already, what is gone, what two gave at once, and what may pass."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import httpx
import pytest

from backend.errors import LabelStudioError
from backend.label_studio import push as pushing
from backend.label_studio.push import Pushed, patiently, push, tasks_without
from tests.bulk_fakes import PROJECT, VERSION, BulkServer

IMPORT = f"POST /api/projects/{PROJECT}/import/predictions"


def answers(*tasks: int) -> dict[int, dict[str, Any]]:
    return {number: {"result": [], "score": 0.5, "model_version": VERSION} for number in tasks}


def test_a_push_twice_is_a_push_once() -> None:
    server = BulkServer.of(5)
    assert push(server.client(), PROJECT, VERSION, answers(1, 2, 3)) == Pushed(new=3)
    assert push(server.client(), PROJECT, VERSION, answers(1, 2, 3, 4)) == Pushed(new=1, already=3)
    assert server.having(VERSION) == {1: 1, 2: 1, 3: 1, 4: 1}


def test_another_version_is_no_duplicate() -> None:
    server = BulkServer.of(2)
    push(server.client(), PROJECT, "fake-0-00000000", answers(1))
    server.predictions[0]["model_version"] = "fake-0-00000000"
    assert push(server.client(), PROJECT, VERSION, answers(1)) == Pushed(new=1)
    assert server.having() == {1: 2}


def test_a_task_that_was_deleted_spoils_no_other() -> None:
    server = BulkServer.of(3)
    del server.tasks[2]
    assert push(server.client(), PROJECT, VERSION, answers(1, 2, 3)) == Pushed(new=2, gone=1)
    assert server.having(VERSION) == {1: 1, 3: 1}


def test_a_refusal_for_another_reason_is_told() -> None:
    server = BulkServer.of(1)
    server.fail = lambda line, request: httpx.Response(400, json={"detail": "odd"}) if line == IMPORT else None
    with pytest.raises(LabelStudioError, match="odd"):
        push(server.client(), PROJECT, VERSION, answers(1))


def test_what_another_gave_at_once_is_deleted() -> None:
    server = BulkServer.of(2)

    def meanwhile(line: str) -> None:
        if line == IMPORT and len(server.predictions) == 2:
            server.predictions.append({"id": 99, "task": 1, **answers(1)[1]})

    server.after = meanwhile
    assert push(server.client(), PROJECT, VERSION, answers(1, 2)) == Pushed(new=2, repeated=1)
    assert server.having(VERSION) == {1: 1, 2: 1}


def test_a_big_push_is_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "TASKS_A_PUSH", 2)
    server = BulkServer.of(5)
    assert push(server.client(), PROJECT, VERSION, answers(1, 2, 3, 4, 5)) == Pushed(new=5)
    assert server.asked[IMPORT] == 3


def test_an_import_that_stored_and_broke_off_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "FIRST_WAIT", 0.0)
    server = BulkServer.of(2)
    broken = iter([True])

    def fail(line: str, request: httpx.Request) -> httpx.Response | None:
        if line == IMPORT and next(broken, False):
            server._answer(line, request)
            raise httpx.ReadTimeout("slow")
        return None

    server.fail = fail
    assert patiently(lambda: push(server.client(), PROJECT, VERSION, answers(1, 2))) == Pushed(already=2)
    assert server.having(VERSION) == {1: 1, 2: 1}


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (503, 3), (401, 1), (404, 1)])
def test_only_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch, status: int, tries: int) -> None:
    monkeypatch.setattr(pushing, "FIRST_WAIT", 0.001)
    server = BulkServer.of(1)
    server.fail = lambda line, request: httpx.Response(status) if server.asked[line] < 3 else None
    with pytest.raises(LabelStudioError) if tries == 1 else nullcontext():
        patiently(lambda: server.client().project(PROJECT))
    assert server.asked[f"GET /api/projects/{PROJECT}/"] == tries


def test_who_is_asked_to_stop_waits_no_longer() -> None:
    server = BulkServer.of(1)
    server.fail = lambda line, request: httpx.Response(503)
    stop = threading.Event()
    stop.set()
    with pytest.raises(LabelStudioError, match="503"):
        patiently(lambda: server.client().project(PROJECT), stop=stop)
    assert sum(server.asked.values()) == 1


def test_tasks_come_by_number_whatever_goes_meanwhile() -> None:
    server = BulkServer.of(6)
    push(server.client(), PROJECT, VERSION, answers(2))
    page, total = tasks_without(server.client(), PROJECT, VERSION, -1, 2)
    assert ([one["id"] for one in page], total) == ([1, 3], 5)
    del server.tasks[1]
    page, total = tasks_without(server.client(), PROJECT, VERSION, 3, 2)
    assert ([one["id"] for one in page], total) == ([4, 5], 3)


@pytest.mark.parametrize("answer", [[], {"tasks": 1, "total": 1}, {"tasks": [{}], "total": 1}, {"tasks": []}], ids=str)
def test_what_is_no_label_studio_is_told(answer: object) -> None:
    server = BulkServer.of(1)
    server.fail = lambda line, request: httpx.Response(200, json=answer)
    with pytest.raises(LabelStudioError, match="not Label Studio"):
        tasks_without(server.client(), PROJECT, VERSION, -1, 2)
