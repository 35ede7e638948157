"""What a run's folder may hold: whatever it is, it is told in one line, nobody takes it up, and every page is served."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import LearningError
from backend.learning.job import TrainingJob
from backend.learning.run_folder import RunFolder, ShownPair, parse_changes, parse_progress
from backend.learning.runs import Run, Runs, parse_run
from backend.service import version_file
from backend.web.app import create_app
from tests.learning_fakes import School, school
from tests.test_wire import JSON

GOOD: dict[str, Any] = {"id": "run-000001", "state": "kept", "reason": "test", "created": 1000.0, "ended": 1001.0}
PAGES = ("/", "/metrics", "/api", "/api/runs", "/health", "/ready", "/versions")
BAD = {
    "an unknown state": {"state": "dreaming"},
    "a state that is a list": {"state": ["training"]},
    "created as text": {"created": "yesterday"},
    "created beyond all time": {"created": 1e300},
    "created as an endless number": {"created": 10**400},
    "ended as a list": {"ended": [1]},
    "counts as a list": {"counts": [1, 2]},
    "counts of text": {"counts": {"train": "many", "holdout": 1}},
    "counts that lack one": {"counts": {"train": 1}},
    "a message that is a number": {"message": 5},
    "a decision that is text": {"decision": "keep"},
    "attempts as text": {"attempts": "three"},
    "another run's": {"id": "run-000009"},
    "a position that is an object": {"position": {}},
}

F2D9577: dict[str, str] = {
    "run.json": '{"id": "run-000001", "state": "training", "reason": "Label Studio\'s Start Training", "created": 1700000000.5,'
    ' "ended": null, "message": "", "champion": "demo-1-0f3a9c12", "challenger": "", "counts": {"train": 48, "holdout": 12, "refused": 1},'
    ' "decision": null, "attempts": 1}',
    "job.json": '{"model": "demo", "segmenter": "demo", "device": null, "strategy": "pqpp", "joint": false, "dataset": "/h/data",'
    ' "replay": null, "golden": null, "home": "/h", "champion": null, "champion_version": "demo-0-base", "plan": {"steps": 300},'
    ' "threads": 2}',
    "progress.json": '{"stage": "comparing", "done": 3, "of": 12}',
    "curve.jsonl": "[1, 2.5]\n[2, 2.25]\n",
    "evaluation.json": '{"pairs": [{"label": "Cup", "champion": 0.5, "challenger": 0.75, "phrase": "the cup", "image": "images/a.png"}],'
    ' "golden_champion": 0.8, "golden_challenger": 0.8, "pictures": [0]}',
    "pictures/0-before.png": "before",
    "pictures/0-after.png": "after",
    "report.html": "page",
}
"""What release f2d9577 wrote into a run's folder."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[School]:
    (tmp_path / "runs" / "run-000001").mkdir(parents=True)
    made = school(tmp_path)
    yield made
    made.service.close(5)


@pytest.fixture
def client(place: School) -> FlaskClient:
    return create_app(place.service).test_client()


def write(place: School, text: str, name: str = "run.json") -> None:
    (place.service.settings.home / "runs" / "run-000001" / name).write_text(text)


def see_pages(client: FlaskClient) -> None:
    for page in PAGES:
        answer = client.get(page, base_url="http://127.0.0.1")
        assert answer.status_code == 200, page


@pytest.mark.parametrize(
    "text",
    [
        *(pytest.param(json.dumps({**GOOD, **wrong}), id=name) for name, wrong in BAD.items()),
        pytest.param(json.dumps({**GOOD, "decision": {"p": float("nan")}}), id="a decision that is no JSON"),
        pytest.param("{}", id="empty"),
        pytest.param("[]", id="a list"),
        pytest.param("no json", id="no JSON"),
        pytest.param("[" * 100_000, id="nested too deeply"),
        pytest.param('{"id": "run-0', id="cut short"),
    ],
)
def test_a_record_that_cannot_be_read_has_failed_with_a_line(
    place: School, client: FlaskClient, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    write(place, text)
    see_pages(client)
    [run] = client.get("/api/runs", base_url="http://127.0.0.1").get_json()["runs"]
    assert run["state"] == "failed"
    assert run["message"].startswith("run.json cannot be read: it")
    lines = [record.getMessage() for record in caplog.records if "run-000001" in record.getMessage()]
    assert len(lines) == 1, "it is told once"


def test_a_run_of_an_unknown_state_is_not_taken_up(place: School, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(place.service.learner._conductor, "perform", lambda run: taken.append(run.id))
    write(place, json.dumps({**GOOD, "state": "dreaming"}))
    place.service.learner.ask("another")
    end = time.monotonic() + 30
    while not taken and time.monotonic() < end:
        time.sleep(0.05)
    assert set(taken) == {"run-000002"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("progress.json", '{"stage": {}, "done": "x", "of": 0}'),
        ("progress.json", '{"stage": "training", "done": 1, "of": "many"}'),
        ("progress.json", '{"done": 1}'),
        ("progress.json", "[" * 100_000),
        ("curve.jsonl", '[1, "low"]\n5\nnull\n[1e400, 2]\n[2, NaN]\n{"a": 1}\n[1]'),
        ("evaluation.json", '{"pairs": {}, "pictures": "abc"}'),
    ],
)
def test_what_an_active_run_tells_may_be_anything(place: School, client: FlaskClient, name: str, text: str) -> None:
    place.service.learner._conductor.perform = lambda run: None  # type: ignore[method-assign]
    write(place, json.dumps({**GOOD, "state": "training", "ended": None}))
    write(place, text, name)
    see_pages(client)


def test_a_run_of_an_older_release_is_read_and_can_go_on(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    folder = runs.folder("run-000001")
    folder.pictures.mkdir(parents=True)
    for name, text in F2D9577.items():
        (folder.path / name).write_text(text)
    run = runs.load("run-000001")
    assert run is not None
    assert (run.state, run.attempts, run.position, run.counts["train"]) == ("training", 1, None, 48)
    assert TrainingJob.read(folder).plan.steps == 300
    assert folder.read_progress() == {"stage": "comparing", "done": 3, "of": 12}
    assert folder.read_curve() == [(1, 2.5), (2, 2.25)]
    assert folder.read_changes(3) == [ShownPair(0, "the cup", "Cup", 0.5, 0.75)]
    assert runs.report("run-000001") == b"page"
    assert [runs.picture("run-000001", 0, side) for side in ("before", "after")] == [b"before", b"after"]
    assert runs.create("another").id == "run-000002"


@given(JSON)
def test_no_json_is_more_than_a_value_error(value: Any) -> None:
    text = json.dumps(value)
    for merged in (text, json.dumps({**GOOD, "state": "kept", "counts": value}), json.dumps({**GOOD, "decision": value})):
        with contextlib.suppress(ValueError):
            assert isinstance(parse_run("run-000001", merged), Run)
    told = parse_progress(text)
    assert told == {} or told["of"] >= 0
    parse_changes(text, 3)


@given(st.binary(max_size=200))
def test_a_curve_of_any_bytes(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.curve.write_bytes(data)
        assert all(isinstance(step, int) for step, _ in (*run.read_curve(), *run.read_validation()))


def test_validation_losses_stand_beside_the_training_losses(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.add_to_curve(1, 2.5)
    run.add_to_curve(2, 2.25, 3.125)
    assert run.read_curve() == [(1, 2.5), (2, 2.25)]
    assert run.read_validation() == [(2, 3.125)]


@pytest.mark.parametrize("text", ["", "[]", '{"plan": 5}', '{"model": "demo", "plan": {"steps": 1, "strange": 2}}', "[" * 100_000])
def test_a_job_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(LearningError, match="is no job of a run"):
        TrainingJob.read(RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("score.json", b"[" * 100_000),
        ("score.json", b"\xff\xfe"),
        ("adapters/champion", b"\x00\xff"),
        ("adapters/champion", b"demo-1-zzzzzzzz\nERROR forged"),
        ("adapters/history.jsonl", b'[]\n5\n{"number": "x"}\n\xff\xff\n' + b"[" * 100_000),
        ("adapters/demo-1-0f3a9c12/manifest.json", b"[" * 100_000),
        ("adapters/highest", b"many"),
        ("version", b"\xff\xfe\n\x00"),
        ("version", b"demo-1-00000001\nERROR forged"),
    ],
)
def test_whatever_a_home_holds_the_server_serves(tmp_path: Path, name: str, content: bytes) -> None:
    if name == "version":
        probe = school(tmp_path)
        name = version_file(probe.service.settings).name
        probe.service.close(5)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    place = school(tmp_path)
    try:
        assert place.service.engine.state == "ready"
        see_pages(create_app(place.service).test_client())
    finally:
        place.service.close(5)
