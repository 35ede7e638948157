"""The class for label-studio-ml's servers, against doubles of both generations' documented base classes."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flask import Flask, jsonify, request

from backend import plugin
from backend.corrections.log import CorrectionLog
from backend.errors import SettingsError, WireError
from backend.learning.runs import Run, Runs
from benchmarks.waiting import wait_for
from tests.backend_fakes import CONFIG, House, house, task

CONTEXT = {"result": [{"type": "textarea", "from_name": "prompt", "value": {"text": ["the dog"]}}]}


class OldBase:
    """1.0.9: made once a setup, ``fit`` in another process."""

    TRAIN_EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "PROJECT_UPDATED")

    def __init__(self, label_config: str | None = None, train_output: object = None, **_: Any) -> None:
        self.label_config = label_config


class NewBase:
    """2.x: made once a request."""

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id, self.label_config = project_id, label_config
        self.kept: dict[str, str] = {}
        self.setup()

    def setup(self) -> None: ...

    def set(self, key: str, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError("the cache holds texts")
        self.kept[key] = value

    def set_extra_params(self, params: Any) -> None:
        self.set("extra_params", params)

    def get(self, key: str) -> str:
        return self.kept[key]

    def has(self, key: str) -> bool:
        return key in self.kept


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path))
    made = house(tmp_path)
    monkeypatch.setattr(plugin, "_service", lambda: made.service)
    yield made
    made.service.close(5.0)


def install(base: type, monkeypatch: pytest.MonkeyPatch, app: Flask | None = None) -> Any:
    package, module = ModuleType("label_studio_ml"), ModuleType("label_studio_ml.model")
    module.LabelStudioMLBase = base  # type: ignore[attr-defined]
    api = ModuleType("label_studio_ml.api")
    if app is not None:
        api._server = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "label_studio_ml.api", api)
    monkeypatch.setitem(sys.modules, "label_studio_ml", package)
    monkeypatch.setitem(sys.modules, "label_studio_ml.model", module)
    monkeypatch.delitem(plugin.__dict__, "Sam4mllmBackend", raising=False)
    made = plugin.Sam4mllmBackend
    monkeypatch.delitem(plugin.__dict__, "Sam4mllmBackend")
    return made


def test_new_generation(where: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = install(NewBase, monkeypatch)(project_id="1", label_config=CONFIG)
    assert backend.kept == {"model_version": where.service.version}
    [answer, failed] = backend.predict([task(description="the dog"), {}])
    assert (answer["model_version"], failed) == (where.service.version, [])
    assert backend.predict([task()], context=CONTEXT)[0]["result"]
    backend.fit("ANNOTATION_CREATED", {"annotation": {"id": 1}}, extra=1)
    [event] = CorrectionLog(tmp_path / "corrections.sqlite").events()
    assert event.body == {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}}


@pytest.mark.parametrize("project", ["1", "1.1795396682"])
def test_a_phrase_that_was_typed_under_either_server_is_known_to_the_other(
    where: House, monkeypatch: pytest.MonkeyPatch, project: str
) -> None:
    install(NewBase, monkeypatch)(project_id=project, label_config=CONFIG).predict([task()], context=CONTEXT)
    assert where.service.corrections.task_phrase(1, 1) == "the dog"


def test_a_batch_comes_with_an_empty_context(where: House, monkeypatch: pytest.MonkeyPatch) -> None:
    [answer] = install(NewBase, monkeypatch)(project_id="1", label_config=CONFIG).predict([task(description="the dog")], context={})
    assert answer["result"]


@pytest.mark.parametrize(("tasks", "project"), [([], "one"), ([], "1.2.3"), ({}, "1"), (None, "1")])
def test_a_body_that_is_not_label_studios_is_refused_in_one_line(
    where: House, monkeypatch: pytest.MonkeyPatch, tasks: Any, project: str
) -> None:
    with pytest.raises(WireError):
        install(NewBase, monkeypatch)(project_id=project, label_config=CONFIG).predict(tasks)


def test_a_remark_is_no_phrase(where: House, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.replace('<TextArea name="prompt"', '<TextArea name="comment" toName="image"/><TextArea name="prompt"')
    remark = {"type": "textarea", "from_name": "comment", "value": {"text": ["the dog"]}}
    for base in (NewBase, OldBase):
        backend = install(base, monkeypatch)(label_config=config)
        assert backend.predict([task()], context={"result": [remark]})[0]["result"] == []
        assert backend.predict([task()], context={"result": [*CONTEXT["result"], remark]})[0]["result"]


def test_old_generation(where: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = install(OldBase, monkeypatch)(label_config=CONFIG, hostname="", access_token="")
    [answer] = backend.predict([task(description="the dog")], login=None, password=None, context=None)
    assert answer["result"]
    assert "model_version" not in answer
    assert backend.predict([task()], context=CONTEXT)[0]["result"]
    job = tmp_path / "123"
    job.mkdir()
    (job / "event.json").write_text("{}", encoding="utf-8")
    assert backend.fit((), event="ANNOTATION_UPDATED", data={"annotation": {"id": 2}}, job_id="123", workdir=str(job)) is None
    [event] = CorrectionLog(tmp_path / "corrections.sqlite").events()
    assert event.action == "ANNOTATION_UPDATED"
    assert not job.exists()


def ended(home: Path) -> list[Run]:
    """The runs of a home, once one is there and none goes on."""

    def over() -> list[Run]:
        runs = Runs(home).all()
        return runs if all(run.over for run in runs) else []

    return wait_for("the end of a run", over, 15, 0.02)


def test_start_training_in_the_process_with_the_models(where: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = install(NewBase, monkeypatch)(project_id="1", label_config=CONFIG)
    backend.fit("START_TRAINING", {"project": {"id": 1}})
    [run] = ended(tmp_path)
    assert (run.reason, run.state) == ("Label Studio's Start Training", "postponed")
    assert b'sam4mllm_events_total{action="START_TRAINING"} 1.0' in where.service.metrics.text()


def test_start_training_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path))
    monkeypatch.setattr(plugin, "_service", lambda: pytest.fail("a process of its own has no models"))
    backend = install(OldBase, monkeypatch)(label_config=CONFIG)
    assert "START_TRAINING" in backend.TRAIN_EVENTS
    assert "PROJECT_UPDATED" in backend.TRAIN_EVENTS
    for _ in range(2):
        backend.fit((), event="START_TRAINING", data={"project": {"id": 1}}, job_id="1")
    server = house(tmp_path)
    try:
        assert [one.state for one in ended(tmp_path)] == ["postponed"]
    finally:
        server.service.close(5.0)


@pytest.mark.parametrize("base", [OldBase, NewBase])
@pytest.mark.parametrize(
    ("event", "data"),
    [
        pytest.param("ANNOTATION_CREATED", [{"id": 1}], id="a list"),
        pytest.param("ANNOTATION_CREATED", "text", id="text"),
        pytest.param("ANNOTATION_CREATED", {"annotation": {1, 2}}, id="no JSON"),
        pytest.param(3, {}, id="no name"),
    ],
)
def test_what_is_no_event_is_a_line_in_the_log(
    where: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, base: type, event: object, data: object
) -> None:
    backend = install(base, monkeypatch)(label_config=CONFIG)
    backend.fit((), event=event, data=data)
    if isinstance(event, str):
        backend.fit(event, data)
    lines = [record.getMessage() for record in caplog.records if record.name == "backend.plugin"]
    assert len(lines) == 1 + isinstance(event, str)
    assert not any("\n" in line for line in lines)
    assert where.service.corrections.events() == []


def test_an_event_that_the_disk_refuses_is_a_line_in_the_log(
    where: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(where.service.corrections, "_take", full)
    install(NewBase, monkeypatch)(label_config=CONFIG).fit("START_TRAINING", {})
    assert "an event could not be kept: " in caplog.text
    assert "the disk is full; free space in" in caplog.text


def their_server() -> Flask:
    """label-studio-ml's application, as far as our class meets it."""
    app = Flask("label_studio_ml")
    app.add_url_rule("/health", "health", lambda: jsonify(status="UP"))
    for path in ("/setup", "/predict", "/webhook", "/versions"):
        app.add_url_rule(path, path, lambda: jsonify(request.json), methods=["POST"])
    return app


RIGHT, WRONG = ("sam4mllm", "open"), ("sam4mllm", "guess")


@pytest.mark.parametrize("base", [OldBase, NewBase])
@pytest.mark.parametrize(
    ("path", "auth", "secret", "status"),
    [
        pytest.param("/predict", None, None, 401, id="predict by a stranger"),
        pytest.param("/predict", WRONG, None, 401, id="predict with a wrong password"),
        pytest.param("/predict", RIGHT, None, 200, id="predict"),
        pytest.param("/predict", None, "hook", 401, id="predict with the webhook's secret"),
        pytest.param("/setup", None, None, 401, id="setup by a stranger"),
        pytest.param("/setup", RIGHT, None, 200, id="setup"),
        pytest.param("/versions", None, None, 401, id="versions by a stranger"),
        pytest.param("/webhook", None, None, 401, id="event by a stranger"),
        pytest.param("/webhook", None, "guess", 401, id="event with a wrong secret"),
        pytest.param("/webhook", None, "hook", 200, id="event"),
        pytest.param("/webhook", RIGHT, None, 200, id="Start Training comes with the password"),
    ],
)
def test_secrets_are_asked_for_on_their_server(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: type,
    path: str,
    auth: tuple[str, str] | None,
    secret: str | None,
    status: int,
) -> None:
    for name, value in (("HOME", str(tmp_path)), ("AUTH_PASSWORD", "open"), ("WEBHOOK_SECRET", "hook")):
        monkeypatch.setenv(f"SAM4MLLM_{name}", value)
    app = their_server()
    install(base, monkeypatch, app)
    client = app.test_client()
    headers = {"X-Webhook-Secret": secret} if secret else {}
    assert client.post(path, json={}, auth=auth, headers=headers).status_code == status
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("variable", ["SAM4MLLM_AUTH_PASSWORD", "SAM4MLLM_WEBHOOK_SECRET"])
def test_one_secret_alone_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path))
    monkeypatch.setenv(variable, "known")
    app = their_server()
    install(NewBase, monkeypatch, app)
    assert app.test_client().post("/webhook", json={}).status_code == 401
    assert app.test_client().post("/predict", json={}).status_code == (401 if "AUTH" in variable else 200)


@pytest.mark.parametrize("variable", ["SAM4MLLM_AUTH_PASSWORD", "SAM4MLLM_WEBHOOK_SECRET"])
def test_a_server_that_cannot_ask_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path))
    monkeypatch.setenv(variable, "known")
    with pytest.raises(SettingsError, match="run `sam4mllm serve`"):
        install(NewBase, monkeypatch)
    begun = their_server()
    begun.test_client().get("/health")
    with pytest.raises(SettingsError, match="run `sam4mllm serve`"):
        install(NewBase, monkeypatch, begun)


@pytest.mark.parametrize("params", [{"threshold": 0.5}, '{"threshold": 0.5}', [1], None])
def test_extra_parameters_are_kept_as_text(where: House, monkeypatch: pytest.MonkeyPatch, params: object) -> None:
    backend = install(NewBase, monkeypatch)(project_id="1", label_config=CONFIG)
    backend.set_extra_params(params)
    assert json.loads(backend.kept["extra_params"]) == (json.loads(params) if isinstance(params, str) else params)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        plugin.Nothing  # noqa: B018
