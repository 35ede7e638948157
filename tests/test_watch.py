"""When reviewers agree less with a new version than with the one before, that one serves again; chance does not do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from backend.reviews import Review
from backend.watch import BASELINE, LEAST, Control, Watch, control
from sam4mllm.errors import RegistryError


def agreements(mean: float, count: int, seed: int = 1, spread: float = 0.05) -> list[float]:
    return np.clip(np.random.default_rng(seed).normal(mean, spread, count), 0, 1).tolist()


@pytest.mark.parametrize(
    ("before", "since", "lost"),
    [
        pytest.param(agreements(0.9, 30), agreements(0.9, 30, 2), False, id="as before"),
        pytest.param(agreements(0.9, 30), agreements(0.95, 30, 2), False, id="better"),
        pytest.param(agreements(0.9, 30), agreements(0.7, 10, 2), True, id="much worse"),
        pytest.param(agreements(0.9, 30), agreements(0.85, 40, 2), True, id="a little worse for long"),
        pytest.param(agreements(0.9, 30), [0.0] * (LEAST - 1), False, id="too few to conclude"),
        pytest.param(agreements(0.9, 30), [*agreements(0.9, 10, 2), 0.75, *agreements(0.9, 10, 3)], False, id="one bad one"),
    ],
)
def test_control(before: list[float], since: list[float], lost: bool) -> None:
    found = control(before, since)
    assert found is not None
    assert found.lost is lost


def test_without_a_baseline_nothing_is_concluded() -> None:
    assert control([0.9] * (BASELINE - 1), [0.0] * 50) is None


def test_an_equal_version_is_rarely_rolled_back() -> None:
    """At the end of twenty reviews; the limit is at three standard deviations."""
    found = [control(agreements(0.8, 200, seed, 0.1), agreements(0.8, 20, seed + 10_000, 0.1)) for seed in range(400)]
    assert sum(one is not None and one.lost for one in found) <= 8


def review(version: str, iou: float | None, updated: float) -> Review:
    rest: Any = {
        "annotation": 1,
        "project": 1,
        "task": 1,
        "phrase": "cup",
        "label": "Cup",
        "instances": (),
        "width": 10,
        "height": 10,
        "outcome": "edited",
        "features": {},
        "lead_time": None,
        "reviewer": None,
        "image": "x",
        "unassisted": False,
    }
    return Review(version=version, iou=iou, updated=updated, **rest)


@dataclass
class Desk:
    """Reviews, a champion, and what was done about it."""

    reviews: list[Review]
    parent: str | None = None
    rolled_back: int = 0
    fails: bool = False
    champion: Any = field(init=False)

    def __post_init__(self) -> None:
        self.champion = type("Manifest", (), {"version": "demo-2-00000002", "parent": self.parent})()

    def rollback(self) -> None:
        if self.fails:
            raise RegistryError("the disk is read-only")
        self.rolled_back += 1
        self.champion = None

    def watch(self) -> Watch:
        return Watch(lambda: self.champion, self.rollback)


def history(former: str, after: Sequence[float]) -> list[Review]:
    before = agreements(0.9, 30)
    listed = [review(former, iou, float(index)) for index, iou in enumerate(before)]
    listed += [review("demo-2-00000002", iou, 1000.0 + index) for index, iou in enumerate(after)]
    return [*listed[::-1], review("", None, 5.0), review("demo-9-00000009", 0.0, 2000.0)]


@pytest.mark.parametrize(
    ("former", "parent"),
    [
        pytest.param("demo-1-00000001", "demo-1-00000001", id="an adapter before"),
        pytest.param("demo-0-00000000", None, id="the base model before"),
    ],
)
def test_a_worse_version_is_rolled_back_once(former: str, parent: str | None) -> None:
    desk = Desk(history(former, agreements(0.5, 12, 3)), parent)
    watch = desk.watch()
    assert watch.look(desk.reviews)
    assert desk.rolled_back == 1
    assert not watch.look(desk.reviews)
    assert watch.state is None


def test_a_good_version_stays() -> None:
    desk = Desk(history("demo-1-00000001", agreements(0.92, 12, 3)), "demo-1-00000001")
    watch = desk.watch()
    assert not watch.look(desk.reviews)
    assert desk.rolled_back == 0
    assert isinstance(watch.state, Control)
    assert watch.state.reviews == 12


def test_a_rollback_that_fails_is_told() -> None:
    desk = Desk(history("demo-1-00000001", [0.1] * 12), "demo-1-00000001", fails=True)
    with pytest.raises(RegistryError):
        desk.watch().look(desk.reviews)
