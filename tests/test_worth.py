"""What pre-annotations are worth, in time and in agreement, by tasks and not by phrases."""

from __future__ import annotations

from typing import Any

import pytest

from backend.corrections.reviews import Review
from backend.learning.worth import NOTHING, SHOWN_VERSIONS, measure_worth
from tests.test_snapshot import review


def seen(annotation: int, seconds: float | None, **changes: Any) -> Review:
    served = {"outcome": "edited", "iou": 0.8, "version": "demo-1-aaaa", "lead_time": seconds, "updated": float(annotation)}
    return review(annotation, "1", **{**served, **changes})


def alone(annotation: int, seconds: float | None, **changes: Any) -> Review:
    return review(annotation, "1", **{"outcome": "drawn", "unassisted": True, "lead_time": seconds, **changes})


def test_times_are_medians_of_tasks() -> None:
    worth = measure_worth([seen(1, 10.0), seen(1, 10.0, phrase="the dog"), seen(2, 20.0), seen(3, 90.0), alone(4, 50.0), alone(5, 70.0)])
    assert (worth.assisted.tasks, worth.assisted.seconds) == (3, 20.0)
    assert (worth.unassisted.tasks, worth.unassisted.seconds) == (2, 60.0)
    assert worth.saved == 40.0
    assert worth.cost(0.12) == pytest.approx(8.0)


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert (NOTHING.assisted.tasks, NOTHING.saved, NOTHING.cost(0.12), NOTHING.versions) == (0, None, None, ())
    worth = measure_worth([seen(1, None), alone(2, 30.0)])
    assert (worth.assisted.seconds, worth.unassisted.seconds, worth.saved) == (None, 30.0, None)
    assert (worth.unassisted.agreement, worth.unassisted.unchanged) == (None, None)


def test_what_was_let_stand() -> None:
    stands = seen(1, 5.0, outcome="accepted", iou=1.0)
    nothing_there = seen(2, 5.0, outcome="none", iou=1.0, instances=())
    taken_away = seen(3, 5.0, outcome="none", iou=0.0, instances=())
    worth = measure_worth([stands, nothing_there, taken_away, seen(4, 5.0, iou=0.6)])
    assert worth.assisted.unchanged == 0.5
    assert worth.assisted.agreement == pytest.approx(0.65)


def test_a_task_without_help_in_which_help_was_asked_for_had_it() -> None:
    worth = measure_worth([seen(1, 5.0, unassisted=True, outcome="accepted", iou=1.0), alone(2, 50.0, iou=0.7, version="demo-1-aaaa")])
    assert (worth.assisted.tasks, worth.unassisted.tasks) == (1, 1)
    assert worth.unassisted.agreement == 0.7, "of what would have been served"


def test_what_nobody_held_back_and_nothing_was_served_of_is_left_out() -> None:
    worth = measure_worth([review(1, "1", lead_time=40.0)])
    assert (worth.assisted.tasks, worth.unassisted.tasks) == (0, 0)


def test_versions_are_apart_the_newest_first_and_not_without_end() -> None:
    worth = measure_worth([seen(number, float(number), version=f"demo-{number}-aaaa") for number in range(1, SHOWN_VERSIONS + 3)])
    assert [one.name for one in worth.versions][:2] == [f"demo-{SHOWN_VERSIONS + 2}-aaaa", f"demo-{SHOWN_VERSIONS + 1}-aaaa"]
    assert len(worth.versions) == SHOWN_VERSIONS
    assert worth.assisted.tasks == SHOWN_VERSIONS + 2
