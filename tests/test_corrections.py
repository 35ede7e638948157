"""The log: nothing acknowledged is lost, whatever comes late, twice or malformed, and an older file is read once more."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.corrections import log as corrections
from backend.corrections import tables
from backend.corrections.log import CorrectionLog
from backend.corrections.log_faults import LogError
from backend.corrections.reviews import read_reviews
from tests.review_fakes import (
    CONFIG,
    CREATED,
    PROJECT,
    TASK,
    annotation,
    as_json,
    blob,
    created,
    event,
    recorded,
    region,
    when,
)
from tests.test_wire import JSON, RECORDED, requests

DELETED = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 1}]}


def updated(number: int = 1, after: float = 60.0, **fields: Any) -> dict[str, Any]:
    return event("ANNOTATION_UPDATED", annotation(number=number, updated=CREATED + after, **fields), description="the cup")


def state(log: CorrectionLog) -> dict[int, tuple[str, str]]:
    """Each annotation's state and time by its number."""
    return {one.id: (one.state, one.body["updated_at"]) for one in log.annotations()}


# -- folding -------------------------------------------------------------------------------------------------------------------------------


def test_an_annotation_has_its_tasks_data_and_its_projects_config(log: CorrectionLog) -> None:
    began = time.time()
    log.store(created(region("a", blob(4)), lead_time=3.5))
    [kept] = log.annotations()
    assert (kept.id, kept.project, kept.task, kept.state, kept.updated) == (1, PROJECT, TASK, "submitted", CREATED)
    assert kept.data == {"image": "/data/upload/3/a.png", "description": "the cup"}
    assert kept.label_configs == (CONFIG,)
    assert kept.body["result"] == [as_json(region("a", blob(4)))]
    assert (kept.body["lead_time"], kept.body["parent_prediction"]) == (3.5, 41)
    assert began <= kept.changed <= time.time()
    assert log.projects() == [PROJECT]


def test_the_recorded_events(log: CorrectionLog) -> None:
    bodies = [request["body"] for path in RECORDED for request in requests(path) if request["path"] == "/webhook"]
    for body in bodies:
        log.store(body)
    assert {one.id: one.state for one in log.annotations()} == dict.fromkeys((6, 7, 9, 10, 11), "submitted") | {2: "skipped"}
    assert log.projects() == [1, 13, 14, 21, 22]
    assert log.count_new(0.0) == 5
    assert [kept.body for kept in log.events()] == bodies


def test_no_token_of_a_project_is_in_the_tables(log: CorrectionLog) -> None:
    log.store(created())
    dump = [line for line in log._connection.iterdump() if 'INSERT INTO "events"' not in line]
    assert recorded("08")["project"]["token"] not in "".join(dump)


@pytest.mark.parametrize("bodies", [[created(), updated()], [updated(), created()], [updated(), created(), updated(), created()]])
def test_the_newest_stays_whatever_comes_last(log: CorrectionLog, bodies: list[dict[str, Any]]) -> None:
    for body in bodies:
        log.store(body)
    assert state(log) == {1: ("submitted", when(CREATED + 60))}
    assert len(log.events()) == len(bodies)


def test_times_are_compared_as_times(log: CorrectionLog) -> None:
    """Label Studio leaves out the fraction of a whole second, and "Z" sorts after "."."""
    log.store(event("ANNOTATION_UPDATED", {**annotation(), "updated_at": "2026-11-23T01:18:08Z"}))
    log.store(event("ANNOTATION_UPDATED", {**annotation(lead_time=9.0), "updated_at": "2026-11-23T01:18:08.500000Z"}))
    log.store(event("ANNOTATION_UPDATED", {**annotation(lead_time=1.0), "updated_at": "2026-11-23T02:18:08.200000+01:00"}))
    assert [one.body["lead_time"] for one in log.annotations()] == [9.0]


def test_an_event_that_comes_again_is_no_change(log: CorrectionLog) -> None:
    log.store(created())
    [before] = log.annotations()
    log.store(created(lead_time=99.0))
    assert log.annotations() == [before]
    assert log.count_new(before.changed) == 0
    assert log.count_new(before.changed - 1) == 1


def test_a_skip_is_kept_and_not_counted(log: CorrectionLog) -> None:
    log.store(created(was_cancelled=True))
    assert state(log) == {1: ("skipped", when(CREATED))}
    assert log.count_new(0.0) == 0
    log.store(updated())
    assert log.count_new(0.0) == 1


@pytest.mark.parametrize("bodies", [[created(), DELETED], [DELETED, created()], [DELETED, created(), updated(), DELETED]])
def test_what_was_deleted_stays_deleted(log: CorrectionLog, bodies: list[dict[str, Any]]) -> None:
    for body in bodies:
        log.store(body)
    assert log.annotations() == []
    assert log.count_new(0.0) == 0


@pytest.mark.parametrize("again", [created(), updated(number=2), created(number=3)])
def test_a_deleted_task_takes_its_annotations_along(log: CorrectionLog, again: dict[str, Any]) -> None:
    log.store(created())
    log.store({"action": "TASKS_DELETED", "tasks": [{"id": TASK}]})
    log.store(again)
    assert log.annotations() == []
    assert log.count_new(0.0) == 0


def test_of_what_was_deleted_only_the_row_is_left(log: CorrectionLog) -> None:
    for number in (1, 2, 3):
        log.store(created(number=number, task=number))
    log.store(DELETED)
    log.store({"action": "TASKS_DELETED", "tasks": [{"id": 2}]})
    pull(log, gone=[3])
    assert log._read("SELECT id, state, body, reason FROM annotations ORDER BY id") == [
        (1, "deleted", "", "deleted in Label Studio"),
        (2, "deleted", "", "its task was deleted in Label Studio"),
        (3, "deleted", "", "Label Studio no longer has it"),
    ]


def test_several_annotations_at_once(log: CorrectionLog) -> None:
    """As Label Studio sends them when predictions are made to annotations: the tasks are a list beside them."""
    tasks = [{"id": 7, "data": {"image": "7"}, "updated_at": when(CREATED)}, {"id": 8, "data": {"image": "8"}}]
    log.store(
        {
            **created(),
            "action": "ANNOTATIONS_CREATED",
            "annotation": [annotation(number=1, task=7), annotation(number=2, task=8)],
            "task": tasks,
        }
    )
    assert [(one.id, one.data) for one in log.annotations()] == [(1, {"image": "7"}), (2, {"image": "8"})]


def test_a_config_is_replaced_by_a_later_one_only(log: CorrectionLog) -> None:
    later = CONFIG.replace("Dog", "Cat")
    project = {"id": PROJECT, "title": "t", "label_config": later, "updated_at": when(CREATED + 60)}
    log.store(created())
    log.store({"action": "PROJECT_UPDATED", "project": project})
    log.store(updated(after=120.0))
    log.store({"action": "PROJECT_UPDATED", "project": {**project, "label_config": "<older/>", "updated_at": when(CREATED)}})
    assert [one.label_configs for one in log.annotations()] == [(CONFIG, later)]


def test_a_tasks_data_are_replaced_by_later_ones_only(log: CorrectionLog) -> None:
    body = created()
    log.store({**body, "task": {**body["task"], "data": {"image": "new"}, "updated_at": when(CREATED + 60)}})
    log.store({**body, "task": {**body["task"], "data": {"image": "old"}, "updated_at": when(CREATED - 60)}})
    log.store({"action": "TASKS_CREATED", "tasks": [{"id": TASK, "data": {"image": "oldest"}, "updated_at": when(0)}]})
    assert [one.data for one in log.annotations()] == [{"image": "new"}]


def test_an_annotation_whose_task_never_came_is_kept(log: CorrectionLog) -> None:
    log.store({**created(), "task": None, "project": 7})
    assert [(one.data, one.label_configs) for one in log.annotations()] == [({}, ())]


ACTIONS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED", "TASKS_DELETED", "PROJECT_UPDATED")
FIELDS = st.sampled_from(
    ("id", "project", "task", "result", "updated_at", "was_cancelled", "data", "label_config", "title", "completed_by", "updated_by")
)
ODD = JSON | st.sampled_from((-1, 1 << 64, 0, 5, "\ud800", "2026-11-23T01:18:08Z", "0001-01-01", "9999-12-31T23:59:59-24:00", True, []))
THINGS = st.dictionaries(FIELDS, ODD | st.dictionaries(FIELDS, ODD, max_size=4), max_size=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(ACTIONS) | JSON,
    st.dictionaries(st.sampled_from(("annotation", "annotations", "task", "tasks", "project")), THINGS | ODD | st.lists(THINGS)),
)
def test_a_malformed_event_is_kept_and_hurts_nobody(log: CorrectionLog, action: object, parts: dict[str, Any]) -> None:
    body = {**parts, "action": action}
    number = log.store(body)
    assert [kept.body for kept in log.events(after=number - 1)] == [body]
    for one in log.annotations():
        assert isinstance(one.id, int)
    log.store(updated(number=1 << 40, after=random.random()))


def test_an_event_that_breaks_the_reader_is_kept_alone(
    log: CorrectionLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("secret")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "_annotation", broken)
        assert log.store(created(number=2)) == 1
    assert log.annotations() == []
    assert log.projects() == []
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text
    assert log.store(created()) == 2
    assert [kept.id for kept in log.events()] == [1, 2]
    assert [one.id for one in log.annotations()] == [1]


def test_a_disk_that_fails_is_no_acknowledgement(log: CorrectionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "_apply", full)
        with pytest.raises(LogError, match="the disk is full; free space in"):
            log.store(created())
    assert log.events() == []
    log.store(created())
    assert len(log.annotations()) == 1


def test_many_annotations_are_read_some_at_a_time(log: CorrectionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "AT_ONCE", 2)
    for number in range(5):
        log.store(created(number=number))
    assert [one.id for one in log.each_annotation()] == [0, 1, 2, 3, 4]


def test_other_digests_in_the_file_cost_a_recomputation_and_no_review(tmp_path: Path) -> None:
    path = tmp_path / "corrections.sqlite"
    with closing(CorrectionLog(path)) as log:
        for number in range(3):
            log.store(created(region("a", blob(4)), number=number, task=number))
        before = [(one.id, one.body) for one in log.annotations()]
        reviews = [(one.annotation, one.phrase, one.outcome) for one in read_reviews(log, "description").reviews]
    assert len(reviews) == 3
    with closing(sqlite3.connect(path)) as file, file:
        assert file.execute("UPDATE digests SET digest = 'of another release'").rowcount >= 3
    with closing(CorrectionLog(path)) as log:
        for number in range(3):
            log.store(created(region("a", blob(4)), number=number, task=number))
        assert [(one.id, one.body) for one in log.annotations()] == before
        assert [(one.annotation, one.phrase, one.outcome) for one in read_reviews(log, "description").reviews] == reviews


# -- Label Studio's own word ---------------------------------------------------------------------------------------------------------------


def task(*annotations: dict[str, Any], number: int = TASK, **fields: Any) -> dict[str, Any]:
    data = {"image": "/data/upload/3/a.png", "description": "the cup"}
    return {"id": number, "data": data, "updated_at": when(CREATED), "annotations": list(annotations), **fields}


def pull(
    log: CorrectionLog, *tasks: dict[str, Any], began: float | None = None, config: str = CONFIG, gone: Sequence[int] = ()
) -> tuple[int, int]:
    found = log.reconcile(PROJECT, "a title", config, tasks, time.time() if began is None else began, gone)
    return found.annotations, found.dropped


def test_what_the_server_has_is_taken_over(log: CorrectionLog) -> None:
    log.store(created(number=1))
    log.store(created(number=2))
    assert pull(log, task(annotation(number=2, updated=CREATED + 9), annotation(number=3, was_cancelled=True))) == (2, 1)
    assert state(log) == {2: ("submitted", when(CREATED + 9)), 3: ("skipped", when(CREATED))}
    assert pull(log, task(annotation(number=2, updated=CREATED + 9), annotation(number=3, was_cancelled=True))) == (0, 0)


def test_what_an_event_told_already_is_not_new(log: CorrectionLog) -> None:
    """The API's lists have other fields beside, and at times the whole user."""
    log.store(created(region("a", blob(4)), completed_by=8))
    [before] = log.annotations()
    listed = {**annotation(region("a", blob(4))), "created_username": "x", "completed_by": {"id": 8, "email": "x"}}
    assert pull(log, task(listed)) == (0, 0)
    assert [one.changed for one in log.annotations()] == [before.changed]


def test_the_server_brings_back_what_an_event_deleted(log: CorrectionLog) -> None:
    """The event was false, or Label Studio was restored from a backup."""
    log.store(created())
    log.store(DELETED)
    log.store({"action": "TASKS_DELETED", "tasks": [{"id": TASK}]})
    assert pull(log, task(annotation())) == (1, 0)
    assert list(state(log)) == [1]


def test_a_task_that_the_server_lacks_is_dropped_with_its_annotations(log: CorrectionLog) -> None:
    log.store(created(number=1))
    assert pull(log, task(number=TASK + 1), gone=[TASK]) == (0, 1)
    log.store(updated(number=2))
    assert log.annotations() == []


def test_other_projects_are_left_alone(log: CorrectionLog) -> None:
    body = created(number=1)
    log.store({**body, "project": {**body["project"], "id": 99}, "annotation": {**body["annotation"], "project": 99, "task": 50}})
    assert pull(log, task()) == (0, 0)
    assert list(state(log)) == [1]
