"""When reviewers agree less with a new version than with the one before, that one serves again; chance does not do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from backend.corrections.reviews import Review
from backend.learning.auto_rollback import BASELINE, LEAST, AutoRollback, ControlChart, control
from sam4mllm.adapters.registry import Tenure
from sam4mllm.errors import RegistryError


def agreements(mean: float, count: int, seed: int = 1, spread: float = 0.05) -> list[float]:
    return np.clip(np.random.default_rng(seed).normal(mean, spread, count), 0, 1).tolist()


@pytest.mark.parametrize(
    ("before", "since", "lost"),
    [
        pytest.param(agreements(0.9, 30), agreements(0.9, 30, 2), False, id="as before"),
        pytest.param(agreements(0.9, 30), agreements(0.95, 30, 2), False, id="better"),
        pytest.param(agreements(0.9, 30), agreements(0.7, 10, 2), True, id="much worse"),
        pytest.param(agreements(0.9, 30), agreements(0.82, 40, 2), True, id="a little worse for long"),
        pytest.param(agreements(0.9, 30), [0.0] * (LEAST - 1), False, id="too few to conclude"),
        pytest.param(agreements(0.9, 30), [*agreements(0.9, 10, 2), 0.75, *agreements(0.9, 10, 3)], False, id="one bad one"),
        pytest.param(agreements(0.9, 30), [*agreements(0.9, 60, 2), 0.3, 0.3], False, id="two bad ones after many good ones"),
        pytest.param([1.0] * 30, [*[1.0] * 10, 0.98], False, id="not as perfect as ever"),
    ],
)
def test_control(before: list[float], since: list[float], lost: bool) -> None:
    found = control(before, since)
    assert found is not None
    assert found.lost is lost


def test_without_a_baseline_nothing_is_concluded() -> None:
    assert control([0.9] * (BASELINE - 1), [0.0] * 50) is None


def mostly_accepted(count: int, seed: int) -> list[float]:
    """Seven of ten masks are accepted as they are, one is all wrong, the others are touched up."""
    rng = np.random.default_rng(seed)
    return np.where((kind := rng.random(count)) < 0.7, 1.0, np.where(kind > 0.91, 0.0, rng.uniform(0.8, 1.0, count))).tolist()


@pytest.mark.parametrize(
    ("before", "since"),
    [
        pytest.param(lambda seed: agreements(0.8, 50, seed, 0.1), lambda seed: agreements(0.8, 200, seed, 0.1), id="normal"),
        pytest.param(lambda seed: mostly_accepted(50, seed), lambda seed: mostly_accepted(200, seed), id="mostly accepted"),
    ],
)
def test_an_equal_version_is_rarely_rolled_back(before: Callable[[int], list[float]], since: Callable[[int], list[float]]) -> None:
    """Though it is asked after every one of 200 reviews."""

    def ever_lost(seed: int) -> bool:
        former, reviews = before(seed), since(seed + 10_000)
        return any(one is not None and one.lost for count in range(200) if (one := control(former, reviews[: count + 1])))

    assert sum(ever_lost(seed) for seed in range(100)) <= 8


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
    return Review(version=version, iou=iou, updated=updated, changed=updated, **rest)


@dataclass
class Desk:
    """Reviews, a champion that serves since the time 1000, and what was done about it."""

    former: int = 1
    rolled_back: int = 0
    fails: bool = False

    def tenure(self) -> Tenure | None:
        return None if self.rolled_back else Tenure("demo-2-00000002", 1000.0, self.former)

    def rollback(self) -> None:
        if self.fails:
            raise RegistryError("the disk is read-only")
        self.rolled_back += 1

    def watch(self) -> AutoRollback:
        return AutoRollback(self.tenure, self.rollback)


def history(former: str, after: Sequence[float]) -> list[Review]:
    before = agreements(0.9, 30)
    listed = [review(former, iou, float(index)) for index, iou in enumerate(before)]
    listed += [review("demo-2-00000002", iou, 1000.0 + index) for index, iou in enumerate(after)]
    return [*listed[::-1], review("", None, 5.0), review("demo-9-00000009", 0.0, 2000.0)]


@pytest.mark.parametrize(
    ("former", "number"),
    [
        pytest.param("demo-1-00000001", 1, id="an adapter before"),
        pytest.param("demo-0-00000000", 0, id="the base model before"),
        pytest.param("demo-1-ffffffff", 1, id="an adapter before, with other settings"),
    ],
)
def test_a_worse_version_is_rolled_back_once(former: str, number: int) -> None:
    desk = Desk(number)
    reviews = history(former, agreements(0.5, 12, 3))
    watch = desk.watch()
    assert watch.look(reviews, 1000.0)
    assert desk.rolled_back == 1
    assert not watch.look(reviews, 1000.0)
    assert watch.state is None


def test_a_good_version_stays() -> None:
    desk = Desk()
    watch = desk.watch()
    assert not watch.look(history("demo-1-00000001", agreements(0.92, 12, 3)), 1000.0)
    assert desk.rolled_back == 0
    assert isinstance(watch.state, ControlChart)
    assert watch.state.reviews == 12


def test_only_reviews_since_the_promotion_count() -> None:
    """Rolled back once and promoted again, a version is judged anew."""
    desk = Desk()
    watch = desk.watch()
    before = [review("demo-2-00000002", 0.1, 500.0 + index) for index in range(20)]
    assert not watch.look([*before, *history("demo-1-00000001", agreements(0.92, 12, 3))], 1000.0)


def test_a_version_of_other_settings_is_the_same_adapter() -> None:
    desk = Desk()
    other = [review("demo-2-eeeeeeee", 0.1, 2000.0 + index) for index in range(12)]
    assert desk.watch().look([*history("demo-1-00000001", []), *other], 1000.0)


def test_a_rollback_that_fails_is_told() -> None:
    with pytest.raises(RegistryError):
        Desk(fails=True).watch().look(history("demo-1-00000001", [0.1] * 12), 1000.0)
