"""The demo's recipe from start to end: its stages in order, stopped and gone on with, and what it says of a run that is not its own."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sam4mllm.demo.pretrain import __main__ as command
from sam4mllm.demo.pretrain import export, recipe, segmenter
from sam4mllm.demo.pretrain.loop import PretrainPlan, as_row, run
from sam4mllm.demo.pretrain.recipe import SHARES, STEPS, WholeRun, train_all
from sam4mllm.errors import TrainingError
from sam4mllm.training.state import newest_state, read_state


def train(folder: Path, steps: int, stop_at: int | None = None, **changed: Any) -> torch.Tensor:
    """A small model trained by the recipe's loop; it is asked to stop at a step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)

    def losses(step: int) -> dict[str, torch.Tensor]:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": model(torch.full((1, 4), float(step))).pow(2).mean()}

    run(PretrainPlan(folder, steps, **{"batch": 1, "rate": 0.1, "warmup": 1, "floor": 1.0, **changed}), model, losses)
    return model.weight.detach()


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        pytest.param({"rate": 0.2}, "rate 0.1, not 0.2", id="another rate"),
        pytest.param({"batch": 2}, "batch 1, not 2", id="another batch"),
        pytest.param({"seed": 5}, "seed 1, not 5", id="other scenes"),
        pytest.param({"source": "shipped"}, "weights random, not shipped", id="other first weights"),
        pytest.param({"optimizer": "muon"}, "optimizer adamw, not muon", id="another optimizer"),
    ],
)
def test_a_run_of_another_recipe_is_not_gone_on_with(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    train(tmp_path, 2)
    before = (newest_state(tmp_path) or tmp_path).joinpath("model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=told):
        train(tmp_path, 4, **changed)
    assert states(tmp_path) == ["step-00000002"]
    assert (tmp_path / "step-00000002" / "model.safetensors").read_bytes() == before


def test_a_recipe_that_names_no_optimizer_is_adamw(tmp_path: Path) -> None:
    train(tmp_path, 2)
    path = tmp_path / "step-00000002" / "state.json"
    state = json.loads(path.read_text())
    del state["recipe"]["optimizer"]
    path.write_text(json.dumps(state))
    with pytest.raises(TrainingError, match="optimizer adamw, not muon"):
        train(tmp_path, 4, optimizer="muon")
    train(tmp_path, 3)
    assert "step-00000003" in states(tmp_path)


def test_a_state_of_before_recipes_were_kept_is_gone_on_with(tmp_path: Path) -> None:
    train(tmp_path, 2)
    path = tmp_path / "step-00000002" / "state.json"
    path.write_text(json.dumps({"step": 2, "seconds": 1.0}))
    train(tmp_path, 3, rate=0.2)
    assert "step-00000003" in states(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("left", [0, 0.5], ids=["emptied", "cut short"])
def test_a_damaged_state_costs_one_line_and_few_steps(tmp_path: Path, name: str, left: float) -> None:
    train(tmp_path, 2)
    train(tmp_path, 3)
    path = tmp_path / "step-00000003" / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    with pytest.raises(
        TrainingError, match=r"step-00000003 is damaged \(.+\): delete that folder, and the run goes on from step-00000002"
    ) as told:
        train(tmp_path, 5)
    assert "\n" not in str(told.value)
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    torch.testing.assert_close(train(tmp_path, 5), train(tmp_path.with_name("whole"), 5), atol=1e-6, rtol=0)


def test_a_state_that_is_no_object_is_told_in_one_line(tmp_path: Path) -> None:
    train(tmp_path, 2)
    (tmp_path / "step-00000002" / "state.json").write_text("[2]")
    with pytest.raises(TrainingError, match="damaged"):
        train(tmp_path, 4)


def test_outside_of_a_stage_sigterm_is_not_swallowed(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    train(tmp_path, 2, stop_at=1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_is_asked_to_stop_is_not_done(tmp_path: Path) -> None:
    train(tmp_path, 5, stop_at=2)
    assert (states(tmp_path), (read_state(tmp_path) or {})["done"]) == (["step-00000003"], False)
    train(tmp_path, 5)
    assert (read_state(tmp_path) or {})["done"]


def test_a_used_up_budget_trains_no_more_and_a_larger_one_does(tmp_path: Path) -> None:
    train(tmp_path, 5, minutes=1e-9)
    train(tmp_path, 5, minutes=1e-9)
    assert states(tmp_path) == ["step-00000001"]
    train(tmp_path, 5, minutes=60.0)
    assert states(tmp_path)[-1] == "step-00000005"


def test_a_row_of_the_table() -> None:
    row = as_row("segmenter", {"step": 3000, "images": 12_000, "images_per_second": 1.9, "multi": 0.6, "_iou_after_1": 0.7254})
    assert row.split() == ["segmenter", "3,000", "12,000", "1.9/s", "iou_after_1", "0.725"]


# -- all stages ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None]]:
    """Stages that train the small model, and a record of which were trained with which budget."""
    seen: list[tuple[str, float | None]] = []

    def stage(whole: WholeRun, name: str, minutes: float | None) -> None:
        seen.append((name, minutes))
        train(whole.runs / name, whole.steps[name], minutes=minutes, stop_at=2 if name == "tower" and len(seen) < 4 else None)

    monkeypatch.setattr(recipe, "_train", stage)
    for writer in ("export_mllm", "export_segmenter"):
        monkeypatch.setattr(export, writer, lambda what, folder: folder.mkdir(parents=True))
    monkeypatch.setattr(export, "read_trainee", lambda state: state)
    return seen


def test_stages_come_in_order_and_a_stopped_run_goes_on(tmp_path: Path, fake_stages: list[tuple[str, float | None]]) -> None:
    whole, lines = WholeRun(tmp_path, minutes=100.0, steps=dict.fromkeys(STEPS, 5)), list[str]()
    assert not train_all(whole, lines.append)
    assert [name for name, _ in fake_stages] == ["segmenter-small", "segmenter", "tower"]
    assert not (tmp_path / "models").exists()
    assert train_all(whole, lines.append)
    assert [name for name, _ in fake_stages[3:]] == list(STEPS)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["mllm", "segmenter"]
    assert "tower: step 3 after 0.0 minutes of training" in lines
    assert sum(minutes or 0 for _, minutes in fake_stages[3:]) == pytest.approx(100)


def test_a_stopped_stage_is_over_where_a_smaller_budget_is_used_up(tmp_path: Path, fake_stages: list[tuple[str, float | None]]) -> None:
    steps = dict.fromkeys(STEPS, 5)
    assert not train_all(WholeRun(tmp_path, minutes=100.0, steps=steps), lambda _: None)
    lines: list[str] = []
    train_all(WholeRun(tmp_path, minutes=1e-9, steps=steps), lines.append)
    assert [name for name, _ in fake_stages[3:]] == list(STEPS)
    assert "tower: step 3 after 0.0 minutes of training" in lines


def test_from_shipped_weights_two_stages_are_left(tmp_path: Path, fake_stages: list[tuple[str, float | None]]) -> None:
    assert train_all(WholeRun(tmp_path, shipped=True, minutes=100.0, steps=dict.fromkeys(STEPS, 1)), lambda _: None)
    assert [name for name, _ in fake_stages] == ["segmenter", "language"]
    assert sum(minutes or 0 for _, minutes in fake_stages) == pytest.approx(100)
    assert sum(SHARES.values()) == pytest.approx(1)


def test_the_command_tells_in_one_line_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    segmenter.train(tmp_path / "segmenter-small", steps=1, batch=1, size=segmenter.SMALL)
    monkeypatch.setattr("sys.argv", ["pretrain", "--runs", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "begun with another recipe (batch 1, not 4)" in line


def test_help_names_the_stages() -> None:
    told = CliRunner().invoke(command.app, ["--help"])
    assert told.exit_code == 0
    assert all(stage in told.output for stage in ("segmenter", "tower", "language", "export"))
