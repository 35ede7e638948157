"""A run is a function of its plan and its data: killed and resumed it is an unbroken one, and it learns; memory and numbers may fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sam4mllm.errors import TrainingError
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.training.asking import Asking
from sam4mllm.training.config import read_plan
from sam4mllm.training.plan import MEASURED, TrainingPlan, fit_steps, learning_rate
from sam4mllm.training.recipe import Progress, Trainer
from tests.test_pool import TOY, make_pool, write_pictures

torch.set_num_threads(1)

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["sam4mllm.training.recipe", "tests.test_recipe"])
CPU = torch.device("cpu")
PLAN = TrainingPlan(steps=6, batch=2, rate=1e-2, rank=4, alpha=8, dropout=0.3, replay_share=0.5)
ASKING = Asking(points=2)


def make_trainer(source: Path, data: Path, folder: Path, plan: TrainingPlan = PLAN, asking: Asking = ASKING) -> Trainer:
    pool = make_pool(data / "corrections", data / "replay")
    return Trainer(load_checkpoint(str(source), CPU), pool, plan, folder, asking)


def weights(trainer: Trainer) -> list[Tensor]:
    return [weight.detach().clone() for weight in trainer.model.parameters() if weight.requires_grad]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def losses(trainer: Trainer) -> list[float]:
    told: list[Progress] = []
    assert trainer.train(told.append)
    return [progress.loss for progress in told]


# -- numbers -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"),
    [
        pytest.param(1, 0.03, [1.0], id="one step"),
        pytest.param(4, 0.0, [1.0, 1.0, 2 / 3, 1 / 3], id="no warm-up but the first step"),
        pytest.param(6, 0.5, [1 / 3, 2 / 3, 1.0, 1.0, 2 / 3, 1 / 3], id="half"),
        pytest.param(3, 1.0, [1 / 3, 2 / 3, 1.0], id="warm-up alone"),
    ],
)
def test_learning_rate(steps: int, warmup: float, expected: list[float]) -> None:
    plan = TrainingPlan(steps=steps, warmup=warmup, rate=0.5)
    assert [learning_rate(plan, step, steps) for step in range(steps)] == pytest.approx([0.5 * share for share in expected])


@pytest.mark.parametrize(
    ("seconds", "budget", "expected"),
    [
        pytest.param(20.0, float("inf"), 400, id="no budget"),
        pytest.param(20.0, 5000.0, 400, id="room for all"),
        pytest.param(20.0, 100.0, 50, id="room for some"),
        pytest.param(20.0, 1.0, 10, id="spent already"),
        pytest.param(0.0, 100.0, 400, id="no time passed"),
    ],
)
def test_steps_are_fitted_to_a_budget(seconds: float, budget: float, expected: int) -> None:
    assert fit_steps(400, 10, seconds, budget) == expected


def test_a_budget_ends_a_run_with_its_rate_near_zero(single: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100_000))
    monkeypatch.setattr("sam4mllm.training.recipe.time.monotonic", lambda: float(next(ticks)))
    trainer = make_trainer(single, data, tmp_path, replace(PLAN, steps=500, budget_seconds=40.0))
    told: list[Progress] = []
    assert trainer.train(told.append)
    assert MEASURED < told[-1].step == told[-1].steps < 50
    assert told[-1].rate < 0.1 * PLAN.rate
    resumed = make_trainer(single, data, tmp_path, trainer.plan)
    assert resumed.train(lambda progress: pytest.fail("it was complete"))
    assert_same(weights(resumed), weights(trainer))


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0}, {"steps": 2.0}, {"steps": True}, {"batch": -1}, {"rate": 0}, {"rate": float("nan")}, {"rank": 5000}, {"dropout": 1},
        {"rate": "1e-4"}, {"replay_share": 1.5}, {"seed": -1}, {"budget_seconds": 0}, {"recompute": "yes"}, {"clip": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=f"{next(iter(changes))} must be"):
        TrainingPlan(**changes)


def test_plans_in_files(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"steps": 7, "rate": 0.5}')
    (tmp_path / "plan.toml").write_text("steps = 7\nrate = 0.5\n")
    for name in ("plan.json", "plan.toml"):
        assert read_plan(tmp_path / name) == TrainingPlan(steps=7, rate=0.5)
        assert read_plan(tmp_path / name, steps=3, seed=None) == TrainingPlan(steps=3, rate=0.5)
    assert read_plan(None, steps=None, seed=5) == TrainingPlan(seed=5)


# -- kills ---------------------------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_and_resumed_is_an_unbroken_one(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    unbroken = make_trainer(tiny_checkpoint, data, tmp_path / "unbroken")
    start = weights(unbroken)
    expected = losses(unbroken)
    assert len(expected) == PLAN.steps
    assert max(float((one - other).abs().max()) for one, other in zip(weights(unbroken), start, strict=True)) > 1e-3

    found: list[float] = []
    for stop_at in (1, 4, None):
        trainer = make_trainer(tiny_checkpoint, data, tmp_path / "broken")

        def tell(progress: Progress, trainer: Trainer = trainer, stop_at: int | None = stop_at) -> None:
            found.append(progress.loss)
            if progress.step == stop_at:
                trainer.stop()

        assert trainer.train(tell) == (stop_at is None)
    assert found == pytest.approx(expected, abs=1e-6)
    assert_same(weights(trainer), weights(unbroken))


def train_and_die(source: Path, data: Path, folder: Path, plan: TrainingPlan) -> None:
    def tell(progress: Progress) -> None:
        if progress.step == MEASURED + 3:
            os.kill(os.getpid(), signal.SIGKILL)

    make_trainer(source, data, folder, plan).train(tell)


def test_a_run_killed_between_two_saves_is_an_unbroken_one(single: Path, data: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, steps=MEASURED + 5)
    process = PROCESSES.Process(target=train_and_die, args=(single, data, tmp_path / "killed", plan))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [f"step-{MEASURED:08d}"]
    resumed, unbroken = make_trainer(single, data, tmp_path / "killed", plan), make_trainer(single, data, tmp_path / "unbroken", plan)
    expected = losses(unbroken)
    assert losses(resumed) == pytest.approx(expected[MEASURED:], abs=1e-6)
    assert_same(weights(resumed), weights(unbroken))


def test_saves_come_at_their_time(single: Path, data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(single, data, tmp_path, replace(PLAN, seconds_between_saves=0))
    saved: list[int] = []

    def tell(progress: Progress) -> None:
        saved.append(len(list(tmp_path.glob("step-*"))))

    trainer.train(tell)
    assert saved == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"plan": replace(PLAN, seed=2)}, id="seed"),
        pytest.param({"plan": replace(PLAN, steps=7)}, id="steps"),
        pytest.param({"asking": Asking(points=3)}, id="points"),
        pytest.param({"asking": replace(ASKING, look_share=0.5)}, id="looks back"),
        pytest.param({"data": TOY[:2]}, id="data"),
    ],
)
def test_another_run_does_not_go_on_from_this_one(change: dict[str, Any], single: Path, data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(single, data, tmp_path / "run")
    trainer.train(lambda progress: trainer.stop())
    if "data" in change:
        write_pictures(tmp_path / "corrections", change.pop("data"))
        write_pictures(tmp_path / "replay", TOY[:1])
        data = tmp_path
    with pytest.raises(TrainingError, match="other data or settings"):
        make_trainer(single, data, tmp_path / "run", **change).train()


def test_how_often_a_run_saves_may_change(single: Path, data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(single, data, tmp_path)
    trainer.train(lambda progress: trainer.stop())
    assert make_trainer(single, data, tmp_path, replace(PLAN, seconds_between_saves=1)).train()


# -- learning ------------------------------------------------------------------------------------------------------------------------------
