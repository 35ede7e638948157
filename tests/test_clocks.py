"""A clock that was wrong, ahead or behind, changes no order: what came later counts as later."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.corrections.log import CorrectionLog
from backend.corrections.reviews import _is_newer, in_order, read_reviews
from backend.label_studio.events import START_TRAINING
from backend.learning.runs import Run
from backend.service import Service
from benchmarks.waiting import wait_for
from tests.learning_fakes import School, school
from tests.review_fakes import CREATED, PROJECT, TASK, annotation, blob, created, event, region, served, when

YEAR = 365 * 86400.0
PRESS = {"action": START_TRAINING, "project": {"id": 1}}


class Clock:
    """The time of day, off by so many seconds."""

    def __init__(self) -> None:
        self._real = time.time
        self.off = 0.0

    def __call__(self) -> float:
        return self._real() + self.off


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "time", made)
    return made


@pytest.fixture
def log(tmp_path: Path, clock: Clock) -> Iterator[CorrectionLog]:
    del clock
    opened = CorrectionLog(tmp_path / "corrections.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., School]]:
    started: list[School] = []

    def make(**given: Any) -> School:
        started.append(school(tmp_path, ("false",), **given))
        return started[-1]

    yield make
    for place in started:
        place.service.close(5)


def runs_of(service: Service, count: int) -> list[Run]:
    """All runs, once there are so many and they are over; there is nothing to learn from, so that they end soon."""

    def over() -> list[Run]:
        runs = service.learner.runs.all()
        return runs if len(runs) >= count and all(run.over for run in runs) else []

    return wait_for(f"the end of {count} runs", over, 30, 0.05)


# -- the scheduler -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [YEAR, -YEAR], ids=["ahead", "behind"])
def test_a_press_of_another_time_does_not_hide_the_next(start: Callable[..., School], clock: Clock, off: float) -> None:
    place = start()
    clock.off = off
    place.service.corrections.store(PRESS)
    runs_of(place.service, 1)
    clock.off = 0.0
    place.service.corrections.store(PRESS)
    assert len(runs_of(place.service, 2)) == 2
    place.service.close(5)
    again = start()
    time.sleep(2.5)
    assert len(again.service.learner.runs.all()) == 2, "a press is heeded once"


@pytest.mark.parametrize("off", [YEAR, -YEAR], ids=["ahead", "behind"])
def test_runs_start_by_themselves_after_the_clock_was_wrong(start: Callable[..., School], clock: Clock, off: float) -> None:
    place = start(train_after=3)
    clock.off = off
    place.service.learner.ask("test")
    runs_of(place.service, 1)
    clock.off = 0.0
    for number in range(3):
        place.service.corrections.store(created(number=number))
    newest, *_ = runs_of(place.service, 2)
    assert newest.reason == "3 new corrections"
    time.sleep(2.5)
    assert len(place.service.learner.runs.all()) == 2


def test_a_home_with_dates_to_come_of_before_there_were_stamps(start: Callable[..., School], tmp_path: Path, clock: Clock) -> None:
    """An older release, a clock a year ahead: a press, its run, and corrections; then the clock was set right, and a press did nothing."""
    clock.off = YEAR
    place = start()
    place.service.corrections.store(PRESS)
    place.service.corrections.store(created())
    [run] = runs_of(place.service, 1)
    place.service.close(5)
    record = place.service.learner.runs.folder(run.id).record
    record.write_text(json.dumps({key: value for key, value in json.loads(record.read_text()).items() if key != "position"}))
    clock.off = 0.0
    with sqlite3.connect(tmp_path / "corrections.sqlite") as connection:
        connection.execute("DROP TABLE marks")
        connection.execute("DROP INDEX served_by_note")
        connection.execute("ALTER TABLE served DROP COLUMN noted")
        connection.execute(
            "INSERT INTO events (received, action, project, body) VALUES (?, ?, 1, ?)", (time.time(), START_TRAINING, json.dumps(PRESS))
        )
    connection.close()
    again = start(train_after=2)
    assert len(runs_of(again.service, 2)) == 2, "the press that was not heard is heard now"
    time.sleep(2.5)
    assert len(again.service.learner.runs.all()) == 2
    for number in range(5, 7):
        again.service.corrections.store(created(number=number))
    assert len(runs_of(again.service, 3)) == 3


@pytest.mark.parametrize("off", [YEAR, -YEAR], ids=["ahead", "behind"])
def test_the_watch_counts_from_the_promotion_on(start: Callable[..., School], clock: Clock, off: float) -> None:
    place = start()
    log = place.service.corrections
    log.store(created(number=1))
    clock.off = off
    log.store(created(number=2))
    place.service.versions.promote(place.add())
    clock.off = 0.0
    since = place.service.learner.serves_since()
    log.store(created(number=3))
    assert place.service.learner.serves_since() == since
    [_, second, third] = log.annotations()
    assert third.changed > since
    if off > 0:
        assert second.changed <= since


# -- the log -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offs", [(YEAR, 0.0), (-YEAR, 0.0), (0.0, -YEAR), (YEAR, -YEAR)])
def test_every_write_is_after_the_one_before(log: CorrectionLog, clock: Clock, offs: tuple[float, float]) -> None:
    positions = [log.position()]
    for number, off in enumerate((0.0, *offs)):
        clock.off = off
        before = log.position()
        log.store(created(number=number))
        assert log.count_new(before) == 1
        positions.append(log.position())
    assert positions == sorted(set(positions))


def test_what_was_served_is_in_the_order_of_its_coming(log: CorrectionLog, clock: Clock) -> None:
    for name, off in (("a", 0.0), ("b", YEAR), ("c", 0.0)):
        clock.off = off
        log.serve([served(name, blob(4), time=time.time())])
    assert [one.region for one in log.served(PROJECT, TASK)] == ["a", "b", "c"]


def test_the_last_reason_holds(log: CorrectionLog, clock: Clock) -> None:
    clock.off = YEAR
    log.note_refusals("reviews", {1: "first"})
    clock.off = 0.0
    log.note_refusals("snapshot", {1: "second"})
    assert log.refusals() == {1: "second"}


@pytest.mark.parametrize("off", [YEAR, -YEAR], ids=["ahead", "behind"])
def test_a_pull_drops_what_is_gone_and_keeps_what_came_meanwhile(log: CorrectionLog, clock: Clock, off: float) -> None:
    clock.off = off
    log.store(created(number=1))
    clock.off = 0.0
    began = log.position()
    log.store(created(number=2))
    pulled = [{"id": TASK, "data": {"image": "/a.png"}, "updated_at": when(CREATED), "annotations": []}]
    found = log.reconcile(PROJECT, "", "<View/>", pulled, began)
    assert found.dropped == 1
    assert [one.id for one in log.annotations()] == [2]


def test_label_studios_clock_ahead_does_not_keep_later_corrections_out(log: CorrectionLog) -> None:
    """Also not those that nobody can pull, for there is no key."""
    ahead = time.time() + YEAR - CREATED
    now = time.time() - CREATED
    log.store(event("ANNOTATION_CREATED", annotation(region("a", blob(4)), updated=CREATED + ahead), description="the cup"))
    log.store(event("ANNOTATION_UPDATED", annotation(region("b", blob(5)), updated=CREATED + now), description="the cup"))
    [kept] = log.annotations()
    assert [one["id"] for one in kept.body["result"]] == ["b"]
    log.store(event("ANNOTATION_UPDATED", annotation(region("c", blob(6)), updated=CREATED + now - 5), description="the cup"))
    [kept] = log.annotations()
    assert kept.body["updated_at"] == when(CREATED + now), "among right times the later one still stands, in whatever order they come"


def test_of_two_reviews_the_later_one_stands_though_the_clock_was_ahead(log: CorrectionLog) -> None:
    ahead, now = time.time() + YEAR, time.time()
    log.store(event("ANNOTATION_CREATED", annotation(region("a", blob(4)), number=1, updated=ahead), description="the cup"))
    log.store(event("ANNOTATION_CREATED", annotation(region("b", blob(5)), number=2, updated=now), description="the cup"))
    [review] = read_reviews(log, "description").reviews
    assert review.annotation == 2
    earlier = replace(review, updated=ahead, changed=review.changed - 1)
    assert _is_newer(review, earlier)
    assert not _is_newer(earlier, review)
    assert sorted([review, earlier], key=in_order) == [earlier, review]
