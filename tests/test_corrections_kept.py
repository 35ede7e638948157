"""What the log of corrections keeps: reasons, records of what was served, withheld tasks, older files, threads."""

from __future__ import annotations

import json
import sqlite3
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.corrections import schema, tables
from backend.corrections.log import CorrectionLog
from backend.corrections.log_faults import LogError
from backend.errors import SettingsError
from tests.review_fakes import (
    CONFIG,
    CREATED,
    PROJECT,
    TASK,
    annotation,
    blob,
    created,
    log_of,
    region,
    served,
    when,
)
from tests.test_corrections import DELETED, pull, state, task, updated

OLD_SCHEMA = """
CREATE TABLE events (id INTEGER PRIMARY KEY, received REAL NOT NULL, action TEXT NOT NULL, project INTEGER, body TEXT NOT NULL);
CREATE TABLE phrases (project TEXT NOT NULL, task INTEGER NOT NULL, phrase TEXT NOT NULL, typed REAL NOT NULL, PRIMARY KEY (project, task));
"""


def test_what_events_told_during_the_pull_stands(log: CorrectionLog) -> None:
    log.store(created(number=1))
    log.store(created(number=2))
    began = time.time()
    log.store({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 1}]})
    log.store(updated(number=2))
    log.store(created(number=3))
    assert pull(log, task(annotation(number=1), annotation(number=2)), began=began) == (0, 0)
    assert state(log) == {2: ("submitted", when(CREATED + 60)), 3: ("submitted", when(CREATED))}


def test_a_config_that_an_event_told_during_the_pull_stands(log: CorrectionLog) -> None:
    began = time.time()
    later = {"id": PROJECT, "label_config": "<later/>", "updated_at": when(CREATED + 60)}
    log.store({"action": "PROJECT_UPDATED", "project": later})
    log.store(created())
    log.reconcile(PROJECT, "t", CONFIG, [task(annotation())], began)
    assert [one.label_configs for one in log.annotations()] == [(CONFIG, "<later/>")]
    log.reconcile(PROJECT, "t", CONFIG, [task(annotation())], time.time())
    assert log._read("SELECT label_config FROM projects") == [(CONFIG,)]


def test_malformed_tasks_are_passed_over(log: CorrectionLog) -> None:
    good = task(annotation())
    odd = [{}, {"id": "x"}, {"id": 6, "data": [], "annotations": 7}, {"id": 7, "data": {}, "annotations": [3, {"id": None}]}]
    assert pull(log, *odd, good) == (1, 0)
    assert list(state(log)) == [1]


def test_masks_are_written_out_before_the_file_is_locked(log: CorrectionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """That may take many seconds, in which events and requests go on."""
    honest = tables._json
    written: list[int] = []

    def slow(value: Any) -> str:
        if "result" in value and value["id"] < 100:
            store = threading.Thread(target=lambda: written.append(log.store(created(number=100 + value["id"]))))
            store.start()
            store.join(5.0)
            assert len(written) == value["id"]
        return honest(value)

    began = time.time()
    monkeypatch.setattr(tables, "_json", slow)
    assert pull(log, task(annotation(number=1), annotation(number=2)), began=began) == (2, 0)
    assert list(state(log)) == [1, 2, 101, 102]


class Touched:
    """What the log's connection reads and writes of the rows of annotations and tasks while it is watched."""

    def __init__(self, log: CorrectionLog) -> None:
        self.bodies_read = self.rows_written = 0
        self._connection = log._connection

    def _note(self, action: int, table: str | None, column: str | None, *_: str | None) -> int:
        if table in ("annotations", "tasks", "digests"):
            self.bodies_read += action == sqlite3.SQLITE_READ and column == "body"
            self.rows_written += action in (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE)
        return sqlite3.SQLITE_OK

    def __enter__(self) -> Touched:
        self._connection.set_authorizer(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.set_authorizer(None)


def test_what_is_as_it_was_is_neither_read_nor_written(log: CorrectionLog) -> None:
    log.store(created(region("a", blob(4)), number=1))
    tasks = task(annotation(region("a", blob(4)), number=1), annotation(number=2))
    assert pull(log, tasks) == (1, 0)
    with Touched(log) as touched:
        assert pull(log, tasks) == (0, 0)
    assert (touched.bodies_read, touched.rows_written) == (0, 0)
    with Touched(log) as touched:
        assert pull(log, task(annotation(region("a", blob(8)), number=1), annotation(number=2))) == (1, 0)
    assert (touched.bodies_read, touched.rows_written > 0) == (0, True)


def test_a_file_that_knows_no_digests_is_compared_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "corrections.sqlite"
    older = log_of(tmp_path, created(number=1), created(number=2))
    older._connection.execute("DROP TABLE digests")
    older.close()
    log = CorrectionLog(path)
    same, other = annotation(number=1), annotation(number=2, lead_time=99.0)
    assert pull(log, task(same, other)) == (1, 0)
    with Touched(log) as touched:
        assert pull(log, task(same, other)) == (0, 0)
    assert (touched.bodies_read, touched.rows_written) == (0, 0)
    log.close()


def test_a_digest_of_what_an_older_release_wrote_over_is_none(log: CorrectionLog) -> None:
    assert pull(log, task(annotation())) == (1, 0)
    with log._writing() as connection:
        connection.execute("UPDATE annotations SET body = replace(body, '\"lead_time\":', '\"lead_time\":1'), changed = changed - 1e-3")
    assert pull(log, task(annotation())) == (1, 0)
    assert pull(log, task(annotation())) == (0, 0)


def test_a_project_can_be_dropped(log: CorrectionLog) -> None:
    log.store(created())
    assert log.drop(PROJECT, time.time()).dropped == 1
    assert log.annotations() == []
    assert log.projects() == [PROJECT]


# -- what nothing is learnt from -----------------------------------------------------------------------------------------------------------


def test_reasons_are_kept_by_stage_until_it_says_others(tmp_path: Path) -> None:
    log = log_of(tmp_path, *[created(number=number) for number in (1, 2, 3)])
    log.note_refusals("reviews", {3: "an unknown label", 1: "no label"})
    log.note_refusals("snapshot", {2: "the image host does not answer"})
    log.close()
    again = CorrectionLog(tmp_path / "corrections.sqlite")
    assert again.refusals() == {1: "no label", 2: "the image host does not answer", 3: "an unknown label"}
    again.note_refusals("reviews", {3: "another size"})
    assert again.refusals() == {2: "the image host does not answer", 3: "another size"}
    again.note_refusals("snapshot", {})
    assert list(again.refusals().items()) == [(3, "another size")]
    again.close()


def test_of_two_stages_reasons_the_newest_is_told(log: CorrectionLog) -> None:
    log.note_refusals("snapshot", {1: "the image host does not answer"})
    log.note_refusals("reviews", {1: "no label"})
    log.note_refusals("snapshot", {1: "the image host does not answer"})
    assert log.refusals() == {1: "no label"}
    log.note_refusals("snapshot", {1: "another size \ud800"})
    assert log.refusals() == {1: "another size ?"}


def test_a_reason_goes_with_its_annotation_and_changes_none(log: CorrectionLog) -> None:
    for number in (1, 2, 3):
        log.store(created(number=number, task=7 if number == 2 else TASK))
    before = log.annotations()
    log.note_refusals("reviews", {1: "no label", 2: "no label", 3: "no label"})
    assert log.annotations() == before
    log.store(DELETED)
    log.store({"action": "TASKS_DELETED", "tasks": [{"id": 7}]})
    assert log.refusals() == {3: "no label"}


def test_reasons_are_kept_together_or_not_at_all(log: CorrectionLog) -> None:
    log.note_refusals("reviews", {1: "no label"})
    with pytest.raises(LogError):
        log.note_refusals("reviews", {2: "no label", None: "no label"})  # type: ignore[dict-item]
    assert log.refusals() == {1: "no label"}


# -- what was served -----------------------------------------------------------------------------------------------------------------------


def test_what_was_served_comes_back_in_order_of_time(log: CorrectionLog) -> None:
    late, early = served("b", blob(4), time=2.0, interactive=True), served("a", blob(8), time=1.0)
    none = served("", None, "a fork", None, time=3.0)
    log.serve([late, early, none, served("x", blob(4), task=TASK + 1)])
    log.serve([late])
    assert log.served(PROJECT, TASK) == [early, late, none]
    assert log.served(PROJECT + 1, TASK) == []


def test_a_record_that_is_there_stays(log: CorrectionLog) -> None:
    first = served("", None, time=1.0, interactive=True)
    log.serve([first])
    log.serve([replace(first, time=9.0, score=0.1, interactive=False)])
    assert log.served(PROJECT, TASK) == [replace(first, interactive=False)]
    log.serve([first])
    assert log.served(PROJECT, TASK) == [replace(first, interactive=False)]


def test_records_are_kept_together_or_not_at_all(log: CorrectionLog) -> None:
    with pytest.raises(LogError):
        log.serve([served("a", blob(4)), replace(served("b", blob(4)), version=None)])  # type: ignore[arg-type]
    assert log.served(PROJECT, TASK) == []


def test_withheld_tasks(log: CorrectionLog) -> None:
    log.withhold(PROJECT, TASK)
    log.withhold(PROJECT, TASK)
    assert log.withheld(PROJECT, TASK)
    assert not log.withheld(PROJECT, TASK + 1)


# -- the file ------------------------------------------------------------------------------------------------------------------------------


def old_file(path: Path, *texts: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD_SCHEMA)
        rows = [(1000.0 + number, "X", PROJECT, text) for number, text in enumerate(texts)]
        connection.executemany("INSERT INTO events (received, action, project, body) VALUES (?, ?, ?, ?)", rows)
        connection.execute("INSERT INTO phrases VALUES ('3.1', 5, 'the cup', 1)")
    connection.close()


def test_an_older_file_is_read_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "corrections.sqlite"
    texts = [json.dumps(body) for body in (created(number=2), DELETED, created(), updated(number=2))]
    old_file(path, *texts, "no json", "[]", '{"action": "ANNOTATION_CREATED", "annotation": {"id": "x"}}')
    log = CorrectionLog(path)
    assert state(log) == {2: ("submitted", when(CREATED + 60))}
    assert log.annotations()[0].changed == 1003.0
    assert log.task_phrase(3, 5) == "the cup"
    assert [log.task_phrase(project, 5) for project in (None, 1, 30, 31)] == [""] * 4
    log.remember(3, 5, "the dog")
    assert log.task_phrase(3, 5) == "the dog"
    assert log.events(after=6)[0].body["annotation"] == {"id": "x"}
    log.close()

    def never(*_: object) -> None:
        raise AssertionError("read twice")

    monkeypatch.setattr(tables, "_apply", never)
    again = CorrectionLog(path)
    assert list(state(again)) == [2]
    again.close()


def test_an_older_files_bad_event_does_not_hide_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "corrections.sqlite"
    old_file(path, *[json.dumps(created(number=number)) for number in range(6)])
    honest = tables._annotation

    def picky(raw: Any, *rest: Any) -> Any:
        if raw["id"] == 3:
            raise KeyError
        return honest(raw, *rest)

    monkeypatch.setattr(tables, "_annotation", picky)
    log = CorrectionLog(path)
    assert list(state(log)) == [0, 1, 2, 4, 5]
    log.close()


def test_an_upgrade_that_was_cut_off_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "corrections.sqlite"
    old_file(path, json.dumps(created()))

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "_apply", full)
        with pytest.raises(SettingsError, match="disk is full"):
            CorrectionLog(path)
    log = CorrectionLog(path)
    assert list(state(log)) == [1]
    log.close()


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corrections.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    with pytest.raises(SettingsError, match="newer release"):
        CorrectionLog(path)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "corrections.sqlite"
    CorrectionLog(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_threads_and_two_openings_of_one_file(tmp_path: Path) -> None:
    logs = [CorrectionLog(tmp_path / "corrections.sqlite") for _ in range(2)]

    def work(which: int) -> None:
        for number in range(10):
            logs[which % 2].store(created(number=100 * which + number))
            logs[which % 2].serve([served(f"{which} {number}", blob(4))])

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        assert len(log.annotations()) == len(log.events()) == len(log.served(PROJECT, TASK)) == 40
        log.close()
