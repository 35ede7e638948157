"""While the log cannot be written, what has to be kept waits beside it: acknowledged at once, in order, once each, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backend.corrections.log import CorrectionLog
from backend.corrections.log_faults import LogError, wrong
from backend.corrections.waiting_writes import WaitingWrites
from backend.errors import SettingsError
from backend.web.app import create_app
from benchmarks.waiting import wait_for
from tests.backend_fakes import CONFIG
from tests.learning_fakes import School, school
from tests.review_fakes import PROJECT, TASK, blob, created, served

BASE = "http://127.0.0.1"
ROOT = Path(__file__).parent.parent


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program holds the file."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def path_of(home: Path) -> Path:
    return home / "corrections.sqlite"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[School]:
    made = school(tmp_path)
    yield made
    made.service.close(5)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[CorrectionLog]:
    opened = CorrectionLog(path_of(tmp_path))
    yield opened
    opened.close()


def seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


# -- what a lock costs ---------------------------------------------------------------------------------------------------------------------


def test_under_a_lock_webhooks_are_acknowledged_and_predictions_answered_at_once(place: School, tmp_path: Path) -> None:
    client = create_app(place.service).test_client()
    body = {
        "tasks": [{"id": 1, "data": {"image": "1-100x80.png", "description": "the left cup"}}],
        "project": "1.1",
        "label_config": CONFIG,
    }
    with locked(path_of(tmp_path)):
        for number in range(1, 6):
            began = time.monotonic()
            assert client.post("/webhook", json={**created(number=number), "number": number}, base_url=BASE).status_code == 201
            assert time.monotonic() - began < 1.0
        began = time.monotonic()
        assert client.post("/predict", json=body, base_url=BASE).get_json()["results"][0]["result"]
        assert time.monotonic() - began < 2.0
        assert "locked by another program" in client.get("/api", base_url=BASE).get_json()["problem"]
        for page in ("/health", "/metrics", "/", "/api", "/api/runs"):
            began = time.monotonic()
            assert client.get(page, base_url=BASE).status_code == 200
            assert time.monotonic() - began < 2.0, page
    place.service.corrections.drain()
    assert [event.body["number"] for event in place.service.corrections.events()] == [1, 2, 3, 4, 5]
    assert len(place.service.corrections.served(1, 1)) == 1
    assert client.get("/api", base_url=BASE).get_json()["problem"] == ""


def test_pages_of_a_log_that_cannot_even_be_read_are_served(place: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = create_app(place.service).test_client()

    def broken(*_: object, **__: object) -> None:
        raise wrong(path_of(tmp_path), "damaged", "database disk image is malformed")

    monkeypatch.setattr(place.service.corrections, "_read", broken)
    for page in ("/health", "/metrics", "/"):
        assert client.get(page, base_url=BASE).status_code == 200


def test_the_four_kinds_of_write_wait_in_their_order(log: CorrectionLog, tmp_path: Path) -> None:
    with locked(path_of(tmp_path)):
        log.serve([served("a", blob(4))])
        log.store(created())
        log.remember(PROJECT, TASK, "the cup")
        log.withhold(PROJECT, TASK)
        log.set_mark("promotion", 5.0)
        assert log.task_phrase(PROJECT, TASK) == "the cup", "a click may follow at once"
        assert log.events() == []
        assert log.waiting
    log.store(created(number=2))
    assert log.events() == [], "later writes do not overtake those that wait"
    log.drain()
    assert not log.waiting
    assert [event.body["annotation"]["id"] for event in log.events()] == [1, 2]
    assert len(log.served(PROJECT, TASK)) == 1
    assert log.withheld(PROJECT, TASK)
    assert log.mark("promotion") == 5.0
    assert log.task_phrase(PROJECT, TASK) == "the cup"
    log.store(created(number=3))
    assert len(log.events()) == 3


def test_many_at_once_wait_no_longer_than_one(log: CorrectionLog, tmp_path: Path) -> None:
    taken: list[float] = []

    def store(number: int) -> None:
        taken.append(seconds(lambda: log.store(created(number=number))))

    with locked(path_of(tmp_path)):
        threads = [threading.Thread(target=store, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(taken) < 2.0
    log.drain()
    assert len(log.events()) == 20


def test_what_waited_is_taken_in_at_the_next_start(tmp_path: Path) -> None:
    log = CorrectionLog(path_of(tmp_path))
    with locked(path_of(tmp_path)):
        log.store(created())
        log.close()
    again = CorrectionLog(path_of(tmp_path))
    assert len(again.events()) == 1
    again.close()


def test_a_server_starts_under_a_lock(tmp_path: Path) -> None:
    CorrectionLog(path_of(tmp_path)).close()
    with locked(path_of(tmp_path)):
        log = CorrectionLog(path_of(tmp_path))
        log.store(created())
        log.close()


def test_the_learner_takes_it_in_by_itself(place: School, tmp_path: Path) -> None:
    with locked(path_of(tmp_path)):
        place.service.corrections.store(created())
    wait_for("what waits beside the log", lambda: not place.service.corrections.waiting, 30, 0.05)
    assert len(place.service.corrections.events()) == 1


# -- kills ---------------------------------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from backend.corrections.log import CorrectionLog
from backend.corrections.waiting_writes import WaitingWrites
log = CorrectionLog(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 10**6):
    log.store({"action": "X", "number": number})
    print(number, flush=True)
    if number % 7 == 0:
        try:
            log.drain()
        except Exception:
            pass
"""


def test_no_acknowledged_event_is_lost_or_taken_twice_over_kills(tmp_path: Path) -> None:
    """A writer is killed at moments that nobody chose, while another program locks and frees the file."""
    path, acknowledged = path_of(tmp_path), [0]
    CorrectionLog(path).close()
    stop = threading.Event()

    def annoy() -> None:
        while not stop.is_set():
            with locked(path):
                time.sleep(0.4)
            time.sleep(0.1)

    other = threading.Thread(target=annoy)
    other.start()
    try:
        for delay in (0.3, 0.9, 0.05, 0.6, 1.3):
            process = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), str(acknowledged[-1] + 1)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in (first + process.communicate()[0]).splitlines(True) if line.endswith("\n")]
    finally:
        stop.set()
        other.join()
    log = CorrectionLog(path)
    log.drain()
    numbers = [event.body["number"] for event in log.events()]
    log.close()
    assert set(acknowledged[1:]) <= set(numbers)
    assert len(acknowledged) > 50
    doubled = {number for number in numbers if numbers.count(number) > 1} - {end + 1 for end in acknowledged}
    assert not doubled, "one that was kept but not acknowledged before a kill is sent again by this writer, no other is there twice"
    assert sorted(numbers) == numbers


@pytest.mark.parametrize("moment", ["before the mark is committed", "after it, before the file is cleared"])
def test_a_kill_while_it_is_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    class KillError(BaseException):
        """Stands for the process's end."""

    def killed(*_: object) -> None:
        raise KillError

    log = CorrectionLog(path_of(tmp_path))
    with locked(path_of(tmp_path)):
        for number in range(3):
            log.store(created(number=number))
    with monkeypatch.context() as patch:
        if moment.startswith("before"):
            patch.setattr("backend.corrections.log_file.put_mark", killed)
        else:
            patch.setattr(WaitingWrites, "clear", killed)
        with pytest.raises(KillError):
            log.drain()
    log._close_all()
    again = CorrectionLog(path_of(tmp_path))
    assert [event.body["annotation"]["id"] for event in again.events()] == [0, 1, 2]
    assert not again.waiting
    again.close()


@pytest.mark.parametrize(
    "torn",
    [
        pytest.param(b'["event",[1.0,{"action":"ANNOT', id="half a line"),
        pytest.param(b"\x00\xff\n", id="no text"),
        pytest.param(b'["event"]\n', id="no write"),
        pytest.param(b'["strange",{}]\n', id="another release's"),
        pytest.param(b'["served",[[1]]]\n', id="a row of another shape"),
        pytest.param(b"[" * 100_000 + b"\n", id="nested too deeply"),
    ],
)
def test_a_damaged_line_costs_no_other(log: CorrectionLog, tmp_path: Path, torn: bytes) -> None:
    with locked(path_of(tmp_path)):
        log.store(created())
        with log._spill.path.open("ab") as file:
            file.write(torn)
        log.store(created(number=2))
    log.drain()
    assert [event.body["annotation"]["id"] for event in log.events()] == [1, 2]


@pytest.mark.parametrize("begun", [b'{"spill": "0f', b"\n", b"\x00" * 50])
def test_a_file_that_was_just_begun_is_put_aside(log: CorrectionLog, tmp_path: Path, begun: bytes) -> None:
    log._spill.path.write_bytes(begun)
    with locked(path_of(tmp_path)):
        log.store(created())
    log.drain()
    assert len(log.events()) == 1


# -- other faults --------------------------------------------------------------------------------------------------------------------------


def full(*_: object) -> int:
    raise sqlite3.OperationalError("database or disk is full")


def test_a_full_disk_is_told_as_one(place: School, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.service.corrections, "_take", full)
    answer = create_app(place.service).test_client().post("/webhook", json=created(), base_url=BASE)
    assert answer.status_code == 507
    assert "the disk is full; free space in" in answer.get_json()["error"]


def test_a_log_that_breaks_while_it_serves_loses_nothing(place: School, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT

        def malformed(*_: object) -> int:
            raise error

        patch.setattr(place.service.corrections, "_take", malformed)
        client = create_app(place.service).test_client()
        assert client.post("/webhook", json=created(), base_url=BASE).status_code == 201
    place.service.corrections.drain()
    assert len(place.service.corrections.events()) == 1


def damage(path: Path, how: str) -> None:
    CorrectionLog(path).close()
    data = path.read_bytes()
    damaged: dict[str, Any] = {
        "not a database": b"hello " * 1000,
        "cut short": data[: len(data) // 2],
        "a page overwritten": data[:4096] + b"\xff" * 8192 + data[12288:],
    }
    if how in damaged:
        path.write_bytes(damaged[how])
        return
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE events (foo TEXT)" if how == "another program's" else "PRAGMA user_version = 1")
        if how == "a table that lacks a column":
            connection.execute("CREATE TABLE served (project INTEGER, noted REAL)")
    connection.close()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("not a database", "is damaged (file is not a database)"),
        ("cut short", "is damaged ("),
        ("a page overwritten", "is damaged ("),
        ("another program's", "does not have this server's tables"),
        ("a table that lacks a column", "does not have this server's tables"),
    ],
)
def test_a_damaged_log_is_no_full_disk(tmp_path: Path, how: str, says: str) -> None:
    damage(path_of(tmp_path), how)
    with pytest.raises(SettingsError) as caught:
        CorrectionLog(path_of(tmp_path))
    told = str(caught.value)
    assert str(path_of(tmp_path)) in told
    assert says in told
    assert "Restore" in told
    assert "free space" not in told


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (sqlite3.SQLITE_BUSY, "busy", "locked by another program"),
        (sqlite3.SQLITE_FULL, "full", "free space in"),
        (sqlite3.SQLITE_IOERR_WRITE, "io", "the disk reports an error"),
        (sqlite3.SQLITE_READONLY, "read_only", "cannot be written"),
        (sqlite3.SQLITE_CANTOPEN, "closed", "cannot be opened"),
        (sqlite3.SQLITE_CORRUPT, "damaged", "is damaged"),
    ],
)
def test_each_fault_has_its_own_words(log: CorrectionLog, code: int, kind: str, says: str) -> None:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorcode = code
    with pytest.raises(LogError, match=says) as caught, log._explained():
        raise error
    assert caught.value.kind == kind
    assert str(log.path) in str(caught.value)


def test_a_read_only_folder_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CorrectionLog(path_of(tmp_path)).close()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SettingsError, match="make it and its folder writable"):
        CorrectionLog(path_of(tmp_path))


def test_the_lines_are_json(log: CorrectionLog, tmp_path: Path) -> None:
    with locked(path_of(tmp_path)):
        log.store({"action": "X", "text": "two\nlines \ud800"})
        lines = log._spill.path.read_text().splitlines()
    assert json.loads(lines[1])[0] == "event"
    log.drain()
    assert log.events()[0].body["text"] == "two\nlines \ud800"
