"""Bulk runs that the status page starts on the server's own models."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from backend.batch import shards
from backend.batch.on_server import INTERRUPTED, BulkRun
from backend.label_studio import push
from backend.label_studio.wire import PredictRequest
from backend.service import Service
from backend.web.app import create_app
from benchmarks.waiting import wait_for
from sam4mllm.pipeline import Pipeline
from tests.backend_fakes import CONFIG, FakeImages, House, house, task
from tests.bulk_fakes import PROJECT, BulkServer
from tests.review_fakes import typed
from tests.test_status import BASE_URL, Forms, press

PROJECTS_PAGE = {"label_studio_url": "http://ls:8080", "label_studio_api_key": "a-token"}


class Gate:
    """Images that come one by one, as the test lets them through."""

    def __init__(self) -> None:
        self.images = FakeImages()
        self.passes = threading.Semaphore(0)
        self.asked = threading.Event()

    def load(self, reference: object, task_id: int | None, seconds: float = 0.0) -> Any:
        self.asked.set()
        self.passes.acquire()
        return self.images.load(reference, task_id, seconds)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> BulkServer:
    made = BulkServer.of(6)
    monkeypatch.setattr(shards, "LabelStudio", lambda url, token: made.client(token))
    monkeypatch.setattr(push, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("backend.batch.on_server.PAUSE_SECONDS", 0.01)
    return made


@pytest.fixture
def gate(place: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    monkeypatch.setattr(place.service.bulk, "_images", made)
    yield made
    made.passes.release(100)


@pytest.fixture
def place(tmp_path: Path, server: BulkServer) -> Iterator[House]:
    made = house(tmp_path, **PROJECTS_PAGE)
    yield made
    made.service.close(5)


@pytest.fixture
def client(place: House) -> FlaskClient:
    return create_app(place.service).test_client()


def start(client: FlaskClient, project: str = str(PROJECT)) -> Any:
    """The page's form, with a project's number typed in."""
    fields = next(fields for address, fields in Forms(text(client)).found if address == "/actions/predict-all")
    return client.post("/actions/predict-all", data={**fields, "subject": project}, base_url=BASE_URL)


def ended(service: Service) -> BulkRun:
    wait_for("the end of the run", lambda: service.bulk.runs[0].state not in ("running", "stopping"), 30, 0.005)
    return service.bulk.runs[0]


def text(client: FlaskClient) -> str:
    return client.get("/", base_url=BASE_URL).text


def test_every_task_gets_a_prediction_of_what_serves(place: House, client: FlaskClient, server: BulkServer) -> None:
    assert start(client).location == "/?done=predict-all"
    run = ended(place.service)
    assert (run.state, run.done, run.failed, run.of) == ("finished", 6, 0, 6)
    assert run.message == "6 predictions pushed"
    assert server.having(place.service.version) == dict.fromkeys(range(1, 7), 1)
    assert [one.phrase for one in place.service.corrections.served(PROJECT, 4)] == ["the left cup"]
    assert "6 of 6 tasks" in text(client)
    assert json.loads(client.get("/api", base_url=BASE_URL).text)["bulk"][0]["state"] == "finished"
    start(client)
    run = ended(place.service)
    assert (run.state, run.message) == ("finished", "every task had its prediction")
    assert server.having() == dict.fromkeys(range(1, 7), 1)
    server.predictions.clear()
    start(client)
    run = ended(place.service)
    assert (run.done, run.of, run.message) == (6, 6, "6 predictions pushed")


def test_stopped_in_the_middle_it_goes_on(place: House, client: FlaskClient, server: BulkServer, gate: Gate) -> None:
    start(client)
    gate.passes.release(2)
    wait_for("two tasks", lambda: place.service.bulk.runs[0].done == 2, 30, 0.005)
    assert "Stop the run of project 3" in text(client)
    assert press(client, "stop-bulk").location == "/?done=stop-bulk"
    assert place.service.bulk.runs[0].state == "stopping"
    gate.passes.release(100)
    run = ended(place.service)
    assert run.state == "stopped"
    assert run.message.endswith("start it again to go on")
    done = set(server.having())
    assert 2 <= len(done) < 6
    start(client)
    assert ended(place.service).done == 6
    assert server.having() == dict.fromkeys(range(1, 7), 1)


def test_one_at_a_time(place: House, client: FlaskClient, gate: Gate) -> None:
    start(client)
    for project in ("3", "4"):
        answer = start(client, project)
        assert (answer.status_code, "project 3 is being worked on" in answer.text) == (400, True)
    gate.passes.release(100)
    assert ended(place.service).state == "finished"
    answer = client.get("/", base_url=BASE_URL)
    assert 'action="/actions/stop-bulk"' not in answer.text


@pytest.mark.parametrize("project", ["", "-1", "seven", "7; DROP", "9" * 19, "٣"])
def test_what_is_no_projects_number(client: FlaskClient, place: House, project: str) -> None:
    answer = start(client, project)
    assert (answer.status_code, "a project is given by its number" in answer.text) == (400, True)
    assert place.service.bulk.runs == []


def test_no_such_project_is_one_line(place: House, client: FlaskClient) -> None:
    start(client, "77")
    run = ended(place.service)
    assert (run.state, "Not found" in run.message) == ("failed", True)
    assert press(client, "predict-all", "77").status_code == 303
    ended(place.service)


def test_tasks_without_an_answer_are_shown(place: House, client: FlaskClient, server: BulkServer) -> None:
    server.tasks[2]["image"] = "dead"
    start(client)
    run = ended(place.service)
    assert (run.state, run.done, run.failed) == ("finished", 5, 1)
    assert "no answer for 1: " in run.message
    [failure] = place.service.metrics.recent
    assert (failure.project, failure.task) == (PROJECT, "2")
    server.tasks[2]["image"] = "/data/upload/2-100x80.png"
    assert press(client, "predict-all", str(PROJECT)).status_code == 303
    assert ended(place.service).failed == 0
    assert place.service.metrics.recent == []


def test_a_training_has_the_models_between_two_tasks(
    place: House, client: FlaskClient, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(client)
    gate.passes.release(1)
    wait_for("a task", lambda: place.service.bulk.runs[0].done == 1, 30, 0.005)
    engine = place.service.engine
    asked, ask = list[str](), engine.place

    def counted(interactive: bool) -> AbstractContextManager[None]:
        asked.append(engine.state)
        return ask(interactive)

    monkeypatch.setattr(engine, "place", counted)
    engine.pause("a training has the models", 10)
    gate.passes.release(100)
    wait_for("two refusals", lambda: asked.count("paused") >= 2, 30, 0.005)
    assert place.service.bulk.runs[0].done == 1
    place.service.engine.resume()
    assert ended(place.service).done == 6


def test_stopped_while_it_waits_for_the_models(place: House, client: FlaskClient, server: BulkServer, gate: Gate) -> None:
    start(client)
    assert gate.asked.wait(10)
    place.service.engine.pause("a training has the models", 10)
    gate.passes.release(100)
    press(client, "stop-bulk")
    run = ended(place.service)
    assert (run.state, run.failed, run.message) == ("stopped", 0, "nothing was pushed; start it again to go on")
    assert server.predictions == []
    assert place.service.metrics.recent == []
    place.service.engine.resume()


def test_annotators_go_first(place: House, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of the run waits for the models, then an annotator comes."""
    engine, order = place.service.engine, list[str]()
    find = place.service.predictor.answerer.find

    def noting(pipeline: Any, image: Any, phrases: list[str], *others: Any) -> Any:
        order.append(phrases[0])
        return find(pipeline, image, phrases, *others)

    monkeypatch.setattr(place.service.predictor.answerer, "find", noting)
    hold, request = threading.Event(), PredictRequest([task(9)], PROJECT, CONFIG, context=(typed("the dog"),))
    with ThreadPoolExecutor(2) as pool:
        pool.submit(engine.run, lambda _: hold.wait(30), True, time.monotonic() + 30)
        start(client)
        wait_for("a task of the run", lambda: engine.waiting == 1, 30, 0.005)
        answer = pool.submit(place.service.predictor.predict, request)
        wait_for("the annotator", lambda: engine.waiting == 2, 30, 0.005)
        hold.set()
        assert json.loads(answer.result()[0])["result"]
    ended(place.service)
    assert order == ["the dog", *["the left cup"] * 6]


def test_it_ends_where_another_version_serves(place: House, client: FlaskClient, server: BulkServer, gate: Gate) -> None:
    start(client)
    gate.passes.release(1)
    wait_for("a task", lambda: place.service.bulk.runs[0].done == 1, 30, 0.005)
    leases, former = place.service.engine.model, place.service.version
    assert leases is not None
    leases.seat(Pipeline(place.grounder, place.segmenter, slug="other"))
    gate.passes.release(100)
    run = ended(place.service)
    assert (run.state, run.version) == ("stopped", former)
    assert run.message.endswith(f"; {leases.current.version} serves by now, start it again for predictions of that version")
    assert len(server.predictions) < 6
    start(client)
    assert ended(place.service).done == 6
    assert server.having(leases.current.version) == dict.fromkeys(range(1, 7), 1)


def test_label_studio_is_away_when_it_is_stopped(place: House, client: FlaskClient, server: BulkServer) -> None:
    server.fail = lambda line, request: httpx.Response(503) if line == "GET /api/tasks/" else None
    start(client)
    wait_for("a look at the tasks", lambda: server.asked["GET /api/tasks/"] > 0, 30, 0.005)
    press(client, "stop-bulk")
    assert ended(place.service).state == "stopped"


def test_what_label_studio_answered_meanwhile_is_not_there_twice(place: House, client: FlaskClient, server: BulkServer) -> None:
    def answered(line: str) -> None:
        if "import" in line and len(server.predictions) == 6:
            server.predictions.append({**server.predictions[2], "id": 99})

    server.after = answered
    start(client)
    assert ended(place.service).state == "finished"
    assert server.having() == dict.fromkeys(range(1, 7), 1)


def test_label_studio_refuses_in_the_middle(place: House, client: FlaskClient, server: BulkServer) -> None:
    server.fail = lambda line, request: httpx.Response(403, json={"detail": "revoked"}) if "import" in line else None
    start(client)
    run = ended(place.service)
    assert (run.state, "revoked" in run.message) == ("failed", True)
    server.fail = lambda line, request: None
    start(client)
    assert ended(place.service).state == "finished"
    assert server.having() == dict.fromkeys(range(1, 7), 1)


def test_the_servers_end_is_told_at_the_next_start(tmp_path: Path, place: House, server: BulkServer, gate: Gate) -> None:
    place.service.bulk.start(PROJECT)
    wait_for("the version", lambda: gate.asked.is_set() and place.service.bulk.runs[0].version != "", 30, 0.005)
    gate.passes.release(100)
    place.service.close(5)
    [row] = json.loads((tmp_path / "batch" / "runs.json").read_bytes())
    (tmp_path / "batch" / "runs.json").write_text(json.dumps([row | {"state": "running"}]))
    second = house(tmp_path, **PROJECTS_PAGE)
    try:
        [run] = second.service.bulk.runs
        assert (run.state, run.message) == ("stopped", INTERRUPTED)
        second.service.bulk.start(PROJECT)
        assert ended(second.service).done == 6
    finally:
        second.service.close(5)
    assert server.having() == dict.fromkeys(range(1, 7), 1)


GOOD = asdict(BulkRun(PROJECT, "finished", when=1.0))


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"{",
        b"[1]",
        b"[" * 100_000,
        b'{"project": 1}',
        b"\xff",
        *(json.dumps([GOOD | change]).encode() for change in ({"project": [1]}, {"when": None}, {"when": 1e300}, {"of": "x"}, {"more": 1})),
    ],
)
def test_what_is_no_list_of_runs_counts_as_none(tmp_path: Path, server: BulkServer, kept: bytes) -> None:
    (tmp_path / "batch").mkdir()
    (tmp_path / "batch" / "runs.json").write_bytes(kept)
    made = house(tmp_path, **PROJECTS_PAGE)
    try:
        assert made.service.bulk.runs == []
    finally:
        made.service.close(5)


def test_what_never_began_is_not_remembered(place: House, client: FlaskClient) -> None:
    for project in ("77", "78", "79"):
        start(client, project)
        ended(place.service)
    assert [run.project for run in place.service.bulk.runs] == [79]


def test_there_are_no_models_yet(place: House, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.service.engine, "model", None)
    answer = start(client)
    assert (answer.status_code, "press again when the page says ready" in answer.text) == (503, True)


def test_without_a_key_the_page_says_what_to_set(tmp_path: Path) -> None:
    made = house(tmp_path)
    try:
        shown = text(create_app(made.service).test_client())
    finally:
        made.service.close(5)
    assert "Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY" in shown
    assert "/actions/predict-all" not in shown
