"""The doctor's checks of a project: entries, webhooks, config, phrases, parameters and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from backend.errors import DeadlineError
from backend.finding import Finding, as_finding
from backend.label_studio.backend_entry import (
    Entry,
    Hook,
    pick_entry,
    pick_hook,
)
from backend.label_studio.client import LabelStudio
from backend.label_studio.events import WEBHOOK_EVENTS
from backend.label_studio.label_config import read_label_config
from backend.label_studio.parameters import read_parameters
from backend.setup.doctor import examine
from backend.setup.machine_checks import (
    Server,
)
from backend.setup.machine_notes import tell_score, tell_strategy
from backend.setup.project_checks import (
    Link,
    check_config,
    check_entry,
    check_extra_parameters,
    check_gate,
    check_hook,
    check_images,
    check_phrases,
    hook_path,
)
from backend.setup.project_notes import tell_typing
from sam4mllm.adapters.registry import Registry
from sam4mllm.errors import ImageError
from tests.adapter_files import ORIGIN, adapter
from tests.backend_fakes import CONFIG, FakeImages, settings
from tests.test_confidence import TYPICAL
from tests.test_doctor import REFUSED, URL, only

BLOCKED = "URL resolves to a reserved network address (block: 172.16.0.0/12)"


def entry(**given: Any) -> Entry:
    kept = {"id": 3, "url": URL, "title": "SAM4MLLM", "state": "CO", "error": "", "interactive": True}
    return Entry(**{**kept, "user": "", "has_password": False, "version": "demo-0-aaaaaaaa", **given})


def hook(**given: Any) -> Hook:
    kept = {"id": 5, "url": f"{URL}/webhook", "active": True, "payload": True, "everything": False, "actions": frozenset(WEBHOOK_EVENTS)}
    return Hook(**{**kept, "headers": {}, **given})


def link(own: Entry | None, *hooks: Hook, others: tuple[Entry, ...] = ()) -> Link:
    return Link(7, own, others, hooks)


def studio(answer: Callable[[httpx.Request], httpx.Response]) -> LabelStudio:
    return LabelStudio("http://ls:8080", "a" * 40, transport=httpx.MockTransport(answer))


def test_which_entry_and_which_webhook_are_ours() -> None:
    others = [entry(id=1, url="http://other:9090", title="YOLO", version="y")]
    assert pick_entry(others, URL, ["v"]) is None
    assert pick_entry([*others, entry(id=2, title="v", url="http://old.b:1", version="v")], URL, ["v"]) is not None
    named, same = entry(id=2, url="http://old.b:1", version=""), entry(id=3, title="x", url=URL + "/")
    assert pick_entry([named, same], URL, []) is same
    assert pick_entry([*others, named], URL, []) is named
    off, on = hook(active=False), hook(id=6, url=f"{URL}/webhook/secret")
    assert pick_hook([off, on], URL) is on
    assert pick_hook([hook(url="http://old.b:1/webhook")], URL) is None
    assert hook_path(link(entry(), on)) == ({}, "/webhook/secret")
    assert hook_path(link(entry())) is hook_path(link(None)) is None


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        pytest.param(None, "project 7 does not have this server as a backend", id="no entry"),
        pytest.param(entry(state="DI"), "Connection refused", id="disconnected"),
        pytest.param(entry(state="ER", error="401 Client Error: Unauthorized"), "password", id="refused"),
        pytest.param(entry(version="demo-0-bbbbbbbb"), "leads to another server: it serves demo-0-bbbbbbbb", id="another server"),
        pytest.param(entry(), None, id="healthy"),
    ],
)
def test_entries(own: Entry | None, problem: str | None, tmp_path: Path) -> None:
    client = studio(lambda _: httpx.Response(500, json={"error": REFUSED}))
    found = check_entry(client, link(own), settings(tmp_path), Server("ready", version="demo-0-aaaaaaaa"))
    assert (found == []) if problem is None else problem in only(found).problem


def test_entries_need_the_password_and_to_be_the_first(tmp_path: Path) -> None:
    client, guarded, server = studio(lambda _: httpx.Response(500)), settings(tmp_path, auth_password="p"), Server("ready")
    assert "lacks its user name" in only(check_entry(client, link(entry()), guarded, server)).problem
    right = entry(user="sam4mllm", has_password=True)
    assert check_entry(client, link(right), guarded, server) == []
    first = entry(id=1, url="http://other:1", title="YOLO")
    assert "asks only the first" in only(check_entry(client, link(entry(), others=(first,)), settings(tmp_path), server)).problem
    quiet = link(entry(interactive=False), others=(entry(id=9, interactive=False),))
    assert check_entry(client, quiet, settings(tmp_path), server) == []


@pytest.mark.parametrize(
    ("hooks", "refuses", "problem"),
    [
        pytest.param([], False, "has no webhook to http://sam4mllm.internal:9090/webhook", id="none"),
        pytest.param([hook(active=False)], False, "switched off", id="off"),
        pytest.param([hook()], True, "comes without this server's secret (header X-Webhook-Secret)", id="no header"),
        pytest.param([hook(payload=False)], False, "no payload", id="no payload"),
        pytest.param([hook(actions=frozenset(WEBHOOK_EVENTS[1:]))], False, "lacks the events ANNOTATION_CREATED", id="an event"),
        pytest.param([hook(actions=frozenset(), everything=True)], False, None, id="all events"),
        pytest.param([hook()], False, None, id="healthy"),
    ],
)
def test_webhooks(hooks: list[Hook], refuses: bool, problem: str | None) -> None:
    found = check_hook(link(entry(), *hooks), refuses)
    assert (found == []) if problem is None else problem in only(found).problem


def test_a_webhook_that_cannot_be_made_says_why() -> None:
    assert "without a dot" in only(check_hook(link(entry(url="http://backend:9090")), False)).problem
    assert check_hook(link(None), False) == []


@pytest.mark.parametrize(
    ("backends", "hooks", "cure"),
    [
        pytest.param(BLOCKED, BLOCKED, "USE_DEFAULT_BANNED_SUBNETS=false", id="both"),
        pytest.param("", BLOCKED, "SSRF_PROTECTION_ENABLED=false", id="webhooks alone"),
        pytest.param("", "", None, id="open"),
    ],
)
def test_the_gate_is_seen_without_anything_being_made(backends: str, hooks: str, cure: str | None) -> None:
    sent: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        said = backends if request.url.path == "/api/ml/" else hooks
        return httpx.Response(403, json={"detail": said}) if said else httpx.Response(400, json={"detail": "Validation error"})

    found = check_gate(studio(answer), 7, URL)
    assert (found == []) if cure is None else cure in only(found).cure
    assert "project" not in sent[0]
    assert sent[1]["actions"] == ["NONE"]


def test_a_text_area_for_remarks_is_no_prompt() -> None:
    remarks = CONFIG.replace('name="prompt"', 'name="comment"')
    found = only(check_config(remarks, True, "prompt")[1])
    assert "no TextArea called 'prompt'" in found.problem
    assert "'comment' is not read" in found.problem
    assert "SAM4MLLM_PROMPT_CONTROL" in found.cure
    assert check_config(remarks, True, "comment")[1] == []
    assert check_config(remarks, False, "prompt")[1] == []
    assert tell_typing(read_label_config(remarks), "prompt") == []


def test_configs() -> None:
    assert check_config(CONFIG, True, "prompt")[1] == []
    assert only(check_config("<View/>", True, "prompt")[1]).cure == "add one"
    silent = '<View><Image name="i" value="$i"/><BrushLabels name="m" toName="i"><Label value="Cup"/></BrushLabels></View>'
    assert check_config(silent, True, "prompt")[1] == []
    assert "cannot type descriptions here" in tell_typing(read_label_config(silent), "prompt")[0]
    assert tell_typing(read_label_config(CONFIG), "prompt") == []


@pytest.mark.parametrize(
    ("labels", "data", "problem"),
    [
        pytest.param('<Label value="Cup"/><Label value="Dog"/>', {"description": "the left cup"}, None, id="names that are words"),
        pytest.param('<Label value="cls_03"/><Label value="Dog"/>', {}, "the label 'cls_03' has no phrase", id="a code"),
        pytest.param('<Label value="7"/><Label value="A"/>', {}, "the labels '7', 'A' have no phrase", id="two codes"),
        pytest.param('<Label value="cls_03" alias="c3, paper cup"/><Label value="Dog"/>', {}, None, id="a code with an alias"),
        pytest.param('<Label value="c3"/><Label value="Dog"/>', {"description": {"c3": "the cup"}}, None, id="a code that tasks explain"),
        pytest.param('<Label value="A"/>', {"description": "the left cup"}, None, id="a single label takes every phrase"),
        pytest.param(
            '<Label value="Cup"/><Label value="Dog"/>', {"description": "the cat"}, "'the cat' of task 3 fits no label", id="homeless"
        ),
        pytest.param('<Label value="Cup"/><Label value="Dog"/>', {"description": True}, "task 3: a task's phrase is a text", id="no text"),
    ],
)
def test_phrases(labels: str, data: dict[str, Any], problem: str | None) -> None:
    xml = f'<View><Image name="i" value="$i"/><BrushLabels name="m" toName="i">{labels}</BrushLabels></View>'
    found = check_phrases(read_label_config(xml), [{"id": 3, "data": {"i": "x", **data}}], "description")
    assert (found == []) if problem is None else problem in only(found).problem


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        pytest.param(None, None, id="none"),
        pytest.param({"prompts": {"Cup": "the coffee cup"}, "strategy": "box"}, None, id="right"),
        pytest.param({"prompts": {"Cap": "the cap"}}, "the label 'Cap' of prompts is not in the labelling config", id="unknown label"),
        pytest.param({"threshold": "0.4"}, "threshold must be a number from 0 to 1", id="wrong type"),
        pytest.param({"threshold": 4}, "from 0 to 1, not 4", id="out of range"),
        pytest.param({"strategy": "choose"}, "needs a segmenter that takes phrases", id="not possible"),
        pytest.param({"threshold": 0.4}, "pqpp does not look at it", id="without effect"),
    ],
)
def test_a_projects_extra_parameters(given: Any, problem: str | None, tmp_path: Path) -> None:
    parameters, found = check_extra_parameters(link(entry(parameters=given)), read_label_config(CONFIG), settings(tmp_path))
    if problem is None:
        assert (parameters, found) == (read_parameters(given), [])
    else:
        assert problem in only(found).problem
        assert "sam4mllm connect 7 --parameters" in found[0].cure


def test_a_label_with_a_prompt_is_not_mute() -> None:
    config = read_label_config(CONFIG.replace('"Cup"', '"c1"'))
    given = {"image": "/a.png"}
    assert "the label 'c1' has" in only(check_phrases(config, [{"id": 1, "data": given}], "description")).problem
    assert check_phrases(config, [{"id": 1, "data": given}], "description", read_parameters({"prompts": {"c1": "the cup"}})) == []


def test_a_picture_of_each_place_is_fetched_once() -> None:
    store = FakeImages()
    references = [
        "/data/upload/1/a-4x4.png",
        "/data/upload/1/b-4x4.png",
        "http://h/c-4x4.png",
        "s3://bucket/d-4x4.png",
        "http://dead/e.png",
        None,
    ]
    tasks = [{"id": number, "data": {"image": reference}} for number, reference in enumerate(references)]
    found = check_images(read_label_config(CONFIG), tasks, store)  # type: ignore[arg-type]
    assert [finding.problem.partition(":")[0] for finding in found] == ["task 4", "task 5"]
    assert store.loads == 4


def test_a_picture_that_takes_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> None:
        raise DeadlineError("it is not decoded yet; ask again")

    store = FakeImages()
    monkeypatch.setattr(store, "load", slow)
    tasks = [{"id": 7, "data": {"image": "/data/upload/1/a-4x4.png"}}]
    assert only(check_images(read_label_config(CONFIG), tasks, store)).problem == "task 7: it is not decoded yet"  # type: ignore[arg-type]


def test_errors_become_problem_and_cure() -> None:
    assert as_finding("x", ImageError("it is broken; save it again"), "y") == Finding("x", "it is broken", "save it again")
    assert as_finding("x", ImageError("it is broken"), "y").line == "x: it is broken; y"


@pytest.mark.parametrize(
    ("given", "checks"),
    [
        pytest.param({}, ["Label Studio"], id="no address"),
        pytest.param({"label_studio_url": "http://127.0.0.1:9"}, ["token"], id="no token"),
        pytest.param({"label_studio_url": "http://127.0.0.1:9", "key": "a" * 40}, ["Label Studio"], id="nobody there"),
        pytest.param({"label_studio_url": "http://127.0.0.1:9", "key": "two words"}, ["token"], id="no token at all"),
    ],
)
def test_what_cannot_be_looked_at_is_left_out(
    given: dict[str, Any], checks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.setup.doctor.ask_server", lambda *_: Server("ready"))
    monkeypatch.setattr("backend.setup.doctor.check_disk", lambda _: [])
    key = given.pop("key", "")
    report = examine(settings(tmp_path, **given).model_copy(update={"label_studio_api_key": SecretStr(key)}), 1)
    assert [finding.check for finding in report.findings] == checks
    assert report.notes == [tell_strategy(settings(tmp_path)), tell_score(tmp_path)]


@pytest.mark.parametrize(
    ("given", "champion", "told"),
    [
        pytest.param({}, False, "strategy pqpp", id="the demo"),
        pytest.param({"model": "some/model"}, False, "strategy box: without an adapter", id="another model"),
        pytest.param({"model": "some/model"}, True, "strategy pqpp", id="with an adapter"),
        pytest.param(
            {"model": "some/model", "strategy": "pqpp"}, False, "strategy pqpp, though without an adapter", id="points all the same"
        ),
        pytest.param({"strategy": "ppg"}, False, "strategy ppg", id="as it is set"),
    ],
)
def test_the_strategy_is_told(given: dict[str, Any], champion: bool, told: str, tmp_path: Path) -> None:
    if champion:
        registry = Registry(tmp_path)
        registry.promote(registry.add(adapter(0.5), **ORIGIN).version)
    assert tell_strategy(settings(tmp_path, **given)).startswith(told)


def test_a_damaged_registry_is_another_checks_finding(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "champion").write_text("../../nonsense\n")
    assert tell_strategy(settings(tmp_path, model="some/model")).startswith("strategy box")


def test_what_scores_mean_is_told(tmp_path: Path) -> None:
    assert tell_score(tmp_path) == "score not calibrated: it orders, and is no probability, until 50 masks are reviewed"
    (tmp_path / "score.json").write_text("{")
    assert tell_score(tmp_path).startswith("score not calibrated")
    (tmp_path / "score.json").write_text(TYPICAL.to_json())
    assert tell_score(tmp_path) == "score calibrated on 200 reviewed masks"
