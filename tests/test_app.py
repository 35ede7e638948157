"""The routes, with recorded and with hostile requests."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from backend.service import build
from backend.web.app import create_app
from tests.backend_fakes import CONFIG, FakeImages, House, house, settings, task
from tests.test_wire import RECORDED, requests

SECRET = "a secret that nobody may read"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Callable[..., tuple[House, FlaskClient]]]:
    opened: list[House] = []

    def make(**given: Any) -> tuple[House, FlaskClient]:
        opened.append(house(tmp_path, **given))
        return opened[-1], create_app(opened[-1].service).test_client()

    yield make
    for one in opened:
        one.service.close(5.0)


def predict(client: FlaskClient, *tasks: object) -> Any:
    return client.post("/predict", json={"tasks": list(tasks), "project": "3.1", "label_config": CONFIG})


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_requests_are_answered(home: Callable[..., tuple[House, FlaskClient]], path: Path) -> None:
    where, client = home()
    recorded = requests(path)
    for request in recorded:
        headers = {name: value for name, value in request["headers"].items() if name in ("Authorization", "Content-Type")}
        body = json.dumps(request["body"]).encode() if request["body"] is not None else b""
        answer = client.open(request["path"], method=request["method"], data=body, headers=headers)
        assert answer.status_code in (200, 201)
        said = answer.get_json()
        if request["path"] == "/setup":
            assert said == {"model_version": where.service.version}
        if request["path"] == "/predict":
            assert len(said["results"]) == len(request["body"]["tasks"])
            interactive = request["body"]["params"]["context"] is not None
            assert all(isinstance(one, dict) if interactive else one == [] for one in said["results"])
    stored = [event.body for event in where.service.corrections.events()]
    assert stored == [request["body"] for request in recorded if request["path"] == "/webhook"]


def test_a_batch_is_answered_over_http(home: Callable[..., tuple[House, FlaskClient]]) -> None:
    _, client = home()
    answer = predict(client, task(1, description="the dog"), task(2, description="the moon"), {})
    assert [len(one["result"]) if one else one for one in answer.get_json()["results"]] == [1, 0, []]


def test_health_and_setup_answer_while_the_model_is_blocked(home: Callable[..., tuple[House, FlaskClient]]) -> None:
    where, client = home()
    begun, go = threading.Event(), threading.Event()

    def block(_: object) -> None:
        begun.set()
        go.wait(60)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(where.service.engine.run, block, False, time.monotonic() + 60)
        begun.wait(5)
        for method, path, limit in (("GET", "/health", 0.2), ("POST", "/setup", 1.0), ("GET", "/metrics", 1.0), ("GET", "/", 1.0)):
            began = time.monotonic()
            body = {"project": "1.1", "schema": CONFIG} if path == "/setup" else None
            assert client.open(path, method=method, json=body).status_code == 200
            assert time.monotonic() - began < limit
        go.set()


def test_a_full_house_is_503_with_retry_after(home: Callable[..., tuple[House, FlaskClient]]) -> None:
    where, client = home(queue=3)
    where.images.delay = 0.3
    app = client.application
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: predict(app.test_client(), task(number, description="the dog")), range(8)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 5
    assert all(int(answer.headers["Retry-After"]) > 0 and "waiting" in answer.get_json()["error"] for answer in refused)


def test_before_the_first_load_setup_is_503_and_later_starts_know_the_version(tmp_path: Path) -> None:
    def never(_: object) -> Any:
        time.sleep(60)

    fresh = create_app(build(settings(tmp_path / "new"), never, FakeImages())).test_client()
    body = {"project": "1.1", "schema": CONFIG}
    answer = fresh.post("/setup", json=body)
    assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
    assert fresh.get("/ready").status_code == 503
    assert fresh.get("/health").get_json()["state"] == "loading"
    before = house(tmp_path / "old")
    before.service.close(5.0)
    again = create_app(build(settings(tmp_path / "old"), never, FakeImages())).test_client()
    assert again.post("/setup", json=body).get_json() == {"model_version": before.service.version}
    assert again.get("/ready").status_code == 503


def test_the_password_guards_all_but_health_and_webhook(home: Callable[..., tuple[House, FlaskClient]]) -> None:
    _, client = home(auth_password="pässword", webhook_secret=SECRET)
    good = {"Authorization": "Basic " + b64encode("sam4mllm:pässword".encode()).decode()}
    wrong = {"Authorization": "Basic " + b64encode(b"sam4mllm:password").decode()}
    routes = {str(rule): rule for rule in client.application.url_map.iter_rules() if not rule.rule.startswith("/static")}
    for path, rule in routes.items():
        method = sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})[0]
        filled = path.replace("<secret>", "x").replace("<run>", "1").replace("<version>", "v")
        if path == "/health":
            assert client.open(filled, method=method).status_code == 200
        else:
            for headers in ({}, wrong, {"Authorization": "Basic \xff"}, {"Authorization": "Bearer x"}):
                assert client.open(filled, method=method, headers=headers).status_code == 401, path
    assert client.get("/metrics", headers=good).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        pytest.param("/webhook", {}, 401, id="none"),
        pytest.param("/webhook", {"X-Webhook-Secret": "wrong"}, 401, id="wrong"),
        pytest.param("/webhook", {"X-Webhook-Secret": SECRET}, 201, id="header"),
        pytest.param("/webhook/wrong", {}, 401, id="wrong path"),
        pytest.param("/webhook", {"Authorization": "Basic c2FtNG1sbG06cGFzcw=="}, 201, id="the password, as START_TRAINING has it"),
        pytest.param(f"/webhook/{SECRET}", {}, 201, id="path"),
    ],
)
def test_the_webhooks_secret(home: Callable[..., tuple[House, FlaskClient]], path: str, headers: dict[str, str], status: int) -> None:
    where, client = home(webhook_secret=SECRET, auth_password="pass")
    assert client.post(path, json={"action": "ANNOTATION_CREATED"}, headers=headers).status_code == status
    assert len(where.service.corrections.events()) == (status == 201)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        pytest.param("POST", "/predict", b"{", 400, id="no JSON"),
        pytest.param("POST", "/predict", b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400, id="deep JSON"),
        pytest.param("POST", "/predict", b"{}", 400, id="no tasks"),
        pytest.param("POST", "/setup", b'{"schema": "<View/>"}', 400, id="config without an image"),
        pytest.param("POST", "/webhook", b"[]", 400, id="webhook no object"),
        pytest.param("GET", "/../../etc/passwd", b"", 404, id="path traversal"),
        pytest.param("GET", "/static/../app.py", b"", 404, id="static traversal"),
        pytest.param("GET", "/predict", b"", 405, id="wrong method"),
        pytest.param("DELETE", "/api/runs/run-000009", b"", 404, id="no such run"),
        pytest.param("DELETE", "/api/runs/..%2f..%2fx", b"", 404, id="a run that is a path"),
        pytest.param("GET", "/api/runs/run-000009/report", b"", 404, id="no such report"),
        pytest.param("POST", "/api/versions/demo-9-0123abcd/promote", b"", 503, id="promotion without adapters"),
    ],
)
def test_bad_requests_are_one_line(
    home: Callable[..., tuple[House, FlaskClient]], method: str, path: str, body: bytes, status: int
) -> None:
    _, client = home()
    answer = client.open(path, method=method, data=body, content_type="application/json")
    assert answer.status_code == status
    assert "\n" not in answer.get_json()["error"]


def test_what_a_strangers_page_can_send_is_refused(home: Callable[..., tuple[House, FlaskClient]]) -> None:
    where, client = home()
    assert client.post("/webhook", data=b"{}", content_type="text/plain").status_code == 400
    assert client.post("/webhook", json={}, headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/health", headers={"Host": "[::1"}).status_code in (400, 403)
    assert where.service.corrections.events() == []


def test_odd_events_are_stored_and_counted_under_few_names(home: Callable[..., tuple[House, FlaskClient]]) -> None:
    where, client = home()
    odd = [{"action": "\ud800"}, {"project": {"id": 10**23}}, {"project": {"id": True}}, *({"action": f"A{number}"} for number in range(9))]
    assert [client.post("/webhook", json=body).status_code for body in odd] == [201] * len(odd)
    assert [event.body for event in where.service.corrections.events()] == odd
    assert client.get("/metrics").text.count("sam4mllm_events_total{") == 1


def test_a_wrong_method_says_which_are_right(home: Callable[..., tuple[House, FlaskClient]]) -> None:
    _, client = home()
    assert "POST" in client.get("/predict").headers["Allow"]


def test_an_error_of_ours_shows_no_traceback_and_no_secret(
    home: Callable[..., tuple[House, FlaskClient]], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, client = home(auth_password="")

    def broken(_: object) -> int:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(where.service.corrections, "store", broken)
    answer = client.post("/webhook", json={})
    assert answer.status_code == 500
    assert SECRET not in answer.text
    assert "Traceback" not in answer.text


def test_settings_are_logged_without_their_secrets(home: Callable[..., tuple[House, FlaskClient]]) -> None:
    where, _ = home(auth_password=SECRET, webhook_secret=SECRET)
    assert not any(SECRET in line for line in [*where.service.settings.lines(), repr(where.service.settings)])


def test_the_status_page_escapes_what_is_foreign(home: Callable[..., tuple[House, FlaskClient]]) -> None:
    _, client = home()
    predict(client, {"id": "<script>alert(1)</script>", "data": {"image": "dead"}}, {"id": "\ud800", "data": {"image": "dead"}})
    page = client.get("/")
    assert page.status_code == 200
    assert "&lt;script&gt;" in page.text
    assert "<script>" not in page.text


def test_thousands_of_predictions_leave_memory_flat(home: Callable[..., tuple[House, FlaskClient]]) -> None:
    where, client = home(cache_mb=1)
    batch = 100

    def run(batches: range) -> int:
        for number in batches:
            tasks = [task(number * batch + index, description="the dog") for index in range(batch)]
            assert all(predict(client, *tasks).get_json()["results"])
        where.grounder.asked.clear()
        where.segmenter.prompts.clear()
        gc.collect()
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    early = run(range(10))
    late = run(range(10, 40))
    assert late - early < 7_500_000
