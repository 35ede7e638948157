"""What a batch request has no time for: answered afterwards, pushed once, and forgotten where another request was quicker."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from backend.errors import QueueFullError, TaskError
from backend.label_studio.wire import PredictRequest
from backend.serving import backlog as module
from backend.serving.backlog import Backlog
from benchmarks.waiting import wait_for
from tests.backend_fakes import CONFIG, House, house, task
from tests.bulk_fakes import PROJECT, VERSION, BulkServer

REQUEST = PredictRequest([], PROJECT, CONFIG)


@pytest.fixture
def late_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[House, BulkServer]]:
    server = BulkServer.of(5, description="the dog")
    monkeypatch.setattr("backend.service.LabelStudio", lambda url, token: server.client())
    where = house(tmp_path, deadline=0.3, label_studio_url="http://ls:8080", label_studio_api_key=SecretStr("a" * 40))
    yield where, server
    where.service.close(5.0)


def ask(where: House, *numbers: int) -> list[Any]:
    request = PredictRequest([task(number, description="the dog") for number in numbers], PROJECT, CONFIG)
    return [json.loads(answer) for answer in where.service.predictor.predict(request)]


def test_what_misses_the_deadline_is_pushed(late_house: tuple[House, BulkServer]) -> None:
    where, server = late_house
    encode, slow = where.segmenter.encode, threading.Event()

    def wait(image: Any) -> Any:
        slow.wait(5)
        return encode(image)

    where.segmenter.encode = wait  # type: ignore[method-assign]
    assert ask(where, 1, 2, 3) == [[], [], []]
    assert server.having() == {}
    slow.set()
    wait_for("the predictions", lambda: len(server.predictions) == 3, 10, 0.005)
    assert server.having(where.service.version) == {1: 1, 2: 1, 3: 1}
    assert all(one["result"] for one in server.predictions)
    assert [one.task for one in where.service.corrections.served(PROJECT, 1)] == [1]


def test_what_is_in_time_is_not_pushed(late_house: tuple[House, BulkServer]) -> None:
    where, server = late_house
    assert all(one["result"] for one in ask(where, 1, 2))
    assert where.service.backlog is not None
    assert where.service.backlog.waiting == 0
    assert not server.asked


def test_another_request_takes_a_task_back() -> None:
    server, go = BulkServer.of(3), threading.Event()

    def predict(raw: Any, request: PredictRequest) -> bytes:
        go.wait(5)
        return json.dumps({"result": [], "score": 0.5, "model_version": VERSION}).encode()

    backlog = Backlog(predict, server.client())
    for number in (1, 2, 3):
        backlog.add(task(number), REQUEST)
    assert backlog.withdraw(task(1), REQUEST) is None  # it is being worked on
    assert backlog.withdraw(task(3), REQUEST) is None
    go.set()
    wait_for("the predictions", lambda: len(server.predictions) == 1, 10, 0.005)
    assert server.having() == {2: 1}
    assert backlog.withdraw(task(2), REQUEST) == 2  # the request that answered it did not know of the push
    assert backlog.withdraw(task(1), REQUEST) is None
    backlog.close()


def test_a_busy_engine_is_asked_again_and_a_bad_task_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.001)
    server = BulkServer.of(3)
    asked: list[int] = []

    def predict(raw: Any, request: PredictRequest) -> bytes:
        asked.append(raw["id"])
        if raw["id"] == 1:
            raise TaskError("the task has no data")
        if asked.count(2) < 3:
            raise QueueFullError("too many")
        return json.dumps({"result": [], "score": 0.5, "model_version": VERSION}).encode()

    backlog = Backlog(predict, server.client())
    for number in (1, 2):
        backlog.add(task(number), REQUEST)
    wait_for("the predictions", lambda: len(server.predictions) == 1, 10, 0.005)
    assert asked == [1, 2, 2, 2]
    assert server.having() == {2: 1}
    backlog.close()


@pytest.mark.parametrize(("raw", "project"), [({}, 3), ({"id": "1"}, 3), (7, 3), ({"id": 1}, None)], ids=str)
def test_what_has_no_number_cannot_be_pushed(raw: object, project: int | None) -> None:
    backlog = Backlog(lambda raw, request: b"[]", BulkServer.of(1).client())
    backlog.add(raw, PredictRequest([], project, CONFIG))
    assert backlog.waiting == 0
    assert backlog.withdraw(raw, PredictRequest([], project, CONFIG)) is None
