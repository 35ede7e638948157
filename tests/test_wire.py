"""Recorded bodies are understood; hostile ones raise nothing but WireError and TaskError."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import TaskError, WireError
from backend.label_studio.wire import MAX_TASKS, prediction, read_predict, read_setup, read_task
from backend.support.bounded_json import read_json

RECORDED = sorted((Path(__file__).parent / "wire").glob("*.json"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=10), children, max_size=4),
    max_leaves=20,
)


def requests(path: Path) -> list[dict[str, Any]]:
    """The requests that a backend got in a recording."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = recorded if isinstance(recorded, list) else recorded["ml_backend_received"]
    return found


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_bodies(path: Path) -> None:
    for request in requests(path):
        body = read_json(json.dumps(request["body"]).encode()) if request["body"] else {}
        if request["path"] == "/predict":
            asked = read_predict(body)
            assert [read_task(task).id for task in asked.tasks] == [task["id"] for task in body["tasks"]]
            assert asked.label_config.startswith("<View>")
            assert asked.interactive == ("interactive" in path.stem)
        if request["path"] == "/setup":
            assert read_setup(body).label_config.startswith("<View>")


def test_drafts_are_read() -> None:
    [body] = [request["body"] for request in requests(next(path for path in RECORDED if path.stem.startswith("12")))]
    task = read_task(read_predict(body).tasks[0])
    assert [draft["type"] for draft in task.drafts] == ["brushlabels", "textarea"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{", id="cut off"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"\xff", id="no text"),
        pytest.param(b'{"a": NaN}', id="not a number"),
        pytest.param(b'{"a": 1e999}', id="infinite"),
        pytest.param(b'{"a":' + b"[1," * 300 + b"1" + b"]" * 300 + b"}", id="deep behind numbers"),
        pytest.param(b'{"a":' * 100_000, id="deep and cut off"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="very deep"),
        pytest.param(b'{"a":' * 300 + b"1" + b"}" * 300, id="deep objects"),
        pytest.param(b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", id="deep lists"),
    ],
)
def test_json_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        read_json(body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="no tasks"),
        pytest.param({"tasks": {}}, id="tasks no list"),
        pytest.param({"tasks": [{}] * (MAX_TASKS + 1)}, id="too many tasks"),
        pytest.param({"tasks": [], "project": "../1"}, id="path as project"),
        pytest.param({"tasks": [], "project": "1.2.3"}, id="odd project"),
        pytest.param({"tasks": [], "label_config": 1}, id="config no text"),
    ],
)
def test_predict_refused(body: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        read_predict(body)


@given(JSON)
def test_no_json_raises_anything_else(value: Any) -> None:
    for body in ({"tasks": [value], "params": value}, {"tasks": value, "project": value, "label_config": value}):
        try:
            for task in read_predict(body).tasks:
                read_task(task)
        except (WireError, TaskError):
            pass
    try:
        read_task({"id": value, "data": {"image": value}, "drafts": [value]})
        read_setup({"project": value, "schema": value})
    except WireError:
        pass


@pytest.mark.parametrize(
    ("sent", "number"),
    [("21.1795397780", 21), ("21", 21), (21, 21), ("0.1", 0), ("", None), (None, None), ([21], None), (2.5, None), ({"id": 21}, None)],
    ids=str,
)
def test_a_project_is_its_number(sent: object, number: int | None) -> None:
    assert read_predict({"tasks": [], "project": sent}).project == read_setup({"project": sent}).project == number


@pytest.mark.parametrize(
    "sent", ["x", "1.2.3", "1.", ".1", "-1", "1" * 19, " 1", "\u0661", True, -1, 1 << 63, 10**5000], ids=lambda sent: str(type(sent))
)
def test_what_is_no_projects_number_is_refused(sent: object) -> None:
    for read, body in ((read_predict, {"tasks": []}), (read_setup, {})):
        with pytest.raises(WireError):
            read({**body, "project": sent})


@pytest.mark.parametrize("score", [math.nan, math.inf, 0.5])
def test_a_score_is_always_a_number(score: float) -> None:
    assert math.isfinite(prediction([], score, "v")["score"])
