"""The training process on the demo model: it trains, compares, can be stopped and gone on with, and says in a line what is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backend.learning import trainer
from backend.learning.gate import PairedSample
from backend.learning.job import STOPPED, TrainingJob
from backend.learning.run_folder import RunFolder
from backend.learning.snapshot import HOLDOUT
from backend.learning.trainer import draw_scenes, drawn_by, main
from sam4mllm.adapters.fields import WEIGHTS
from sam4mllm.adapters.files import check_adapter
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.demo.dataset import write_scenes
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.session import select_examples


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures with a square each, one of them held out, and one without that is held out too."""
    folder = tmp_path_factory.mktemp("corrections") / "data"
    rng = np.random.default_rng(3)
    with ExampleWriter(folder) as writer:
        for index in range(4):
            image = rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)
            mask = np.zeros((1, 64, 80), np.bool_)
            mask[0, 10:40, 10 + index : 50] = True
            masks = mask if index < 3 else mask[:0]
            split = HOLDOUT if index in (1, 3) else "train"
            writer.add(writer.add_image(image), f"the cup {index}", masks, split, f"label-studio:1:{index}:{index}:drawn", label="Cup")
    return folder


def test_a_correction_is_drawn_by_its_label_or_where_there_is_but_one_by_its_noun(dataset: Path) -> None:
    [one, *_] = read_examples(dataset)
    asked = [replace(one, phrase=phrase) for phrase in ("the small cup left of the dog", "cup", "the dog", "左边的杯子")]
    assert [*map(drawn_by(asked), asked)] == ["cup", "cup", "dog", ""]
    several = [*asked, replace(one, label="Dog")]
    assert [*map(drawn_by(several), several)] == ["Cup"] * 4 + ["Dog"]


@pytest.fixture
def job(tmp_path: Path, dataset: Path) -> TrainingJob:
    """Three steps; the corrections themselves are replay and golden set."""
    return TrainingJob(
        model="demo",
        segmenter="demo",
        device="cpu",
        strategy="box",
        joint=False,
        dataset=str(dataset),
        replay=str(dataset),
        golden=str(dataset),
        home=str(tmp_path),
        champion=None,
        champion_version="demo-0-00000000",
        plan=TrainingPlan(steps=3, batch=2, rate=1e-3, rank=2),
        threads=1,
    )


def start(tmp_path: Path, job: TrainingJob) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir(exist_ok=True)
    job.write(run)
    return run


def evaluation(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.evaluation.read_text())
    return found


def test_a_job_is_read_as_it_was_written(tmp_path: Path, job: TrainingJob) -> None:
    assert TrainingJob.read(start(tmp_path, job)) == job


def test_a_job_of_a_server_before_patterns_asks_as_that_did(tmp_path: Path, job: TrainingJob) -> None:
    run = start(tmp_path, job)
    fields = json.loads(run.job.read_text())
    del fields["pattern"]
    run.job.write_text(json.dumps(fields))
    assert TrainingJob.read(run).pattern == "spread"


def test_a_run_gives_an_adapter_and_a_comparison(tmp_path: Path, job: TrainingJob) -> None:
    run = start(tmp_path, job)
    assert main([str(run.path)]) == 0
    check_adapter(run.adapter)
    assert [step for step, _ in run.read_curve()] == [1, 2, 3]
    found = evaluation(run)
    assert {pair["phrase"] for pair in found["pairs"]} == {"the cup 1", "the cup 3"}
    assert {pair["label"] for pair in found["pairs"]} == {"Cup"}
    assert all(0 <= pair[who] <= 1 for pair in found["pairs"] for who in ("champion", "challenger"))
    assert 0 <= found["golden_champion"] <= 1
    for index in found["pictures"]:
        assert {path.name for path in run.pictures.glob(f"{index}-*")} == {f"{index}-before.png", f"{index}-after.png"}
    assert main(["smoke", str(run.path)]) == 0

    trained = (run.adapter / "adapter_model.safetensors").read_bytes()
    run.evaluation.unlink()
    assert main([str(run.path)]) == 0  # killed after training: only the comparison is done again
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == trained
    assert evaluation(run) == found


def test_a_run_goes_on_from_its_start(tmp_path: Path, job: TrainingJob) -> None:
    """Whose weights it has where nothing is learned; one that begins with none would have zeros."""
    first = start(tmp_path, job)
    assert main([str(first.path)]) == 0
    began = first.path.rename(tmp_path / "first") / "adapter"
    still = TrainingPlan(steps=1, batch=1, rate=1e-12, rank=5)
    run = start(tmp_path, replace(job, plan=still, start=str(began), champion=str(began), champion_version="demo-1-00000000"))
    assert main([str(run.path)]) == 0
    before, after = (load_file(folder / WEIGHTS) for folder in (began, run.adapter))
    assert before.keys() == after.keys()
    for name, weight in after.items():
        assert torch.allclose(weight, before[name], atol=1e-7), name
    assert max(float(weight.abs().max()) for name, weight in after.items() if "lora_B" in name) > 0
    assert all(pair["champion"] == pair["challenger"] for pair in evaluation(run)["pairs"])


def test_a_job_of_a_server_before_starts_begins_with_none(tmp_path: Path, job: TrainingJob) -> None:
    run = start(tmp_path, job)
    fields = json.loads(run.job.read_text())
    del fields["start"]
    run.job.write_text(json.dumps({**fields, "champion": "/some/adapter"}))
    assert TrainingJob.read(run).start is None


def test_the_golden_set_is_left_out_where_the_holdout_decides(tmp_path: Path, job: TrainingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[PairedSample] = []
    monkeypatch.setattr("backend.learning.trainer.is_kept", lambda pairs: judged.extend(pairs) or True)
    run = start(tmp_path, job)
    assert main([str(run.path)]) == 0
    found = evaluation(run)
    assert (found["golden_champion"], found["golden_challenger"]) == (None, None)
    assert [(pair.label, pair.champion) for pair in judged] == [(one["label"], one["champion"]) for one in found["pairs"]]


def test_sigterm_ends_with_a_saved_state_and_the_next_start_goes_on(tmp_path: Path, job: TrainingJob) -> None:
    run = start(tmp_path, replace(job, plan=replace(job.plan, steps=100_000)))
    process = subprocess.Popen([sys.executable, "-m", "backend.learning.trainer", str(run.path)])
    end = time.monotonic() + 120
    while not run.read_curve() and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == STOPPED
    done = len(run.read_curve())
    assert done > 0
    assert not run.adapter.exists()
    assert any(run.training_state.glob("step-*"))

    process = subprocess.Popen([sys.executable, "-m", "backend.learning.trainer", str(run.path)])
    while len(run.read_curve()) <= done and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == STOPPED
    assert [step for step, _ in run.read_curve()] == list(range(1, len(run.read_curve()) + 1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"dataset": "/nowhere"}, "cannot be read", id="no dataset"),
        pytest.param({"model": "/nowhere"}, "no such folder", id="no model"),
        pytest.param({"golden": "/nowhere"}, "cannot be read", id="no golden set"),
    ],
)
def test_failures_are_one_line(
    tmp_path: Path, job: TrainingJob, changes: dict[str, str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(start(tmp_path, replace(job, **changes)).path)]) == 1  # type: ignore[arg-type]
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert says in errors[0]


def test_a_curve_that_a_kill_cut_off(tmp_path: Path) -> None:
    (tmp_path / "curve.jsonl").write_text("[1, 2.5]\n[2, 2.0]\n[2, 2.1]\n[3, 1.")
    assert RunFolder(tmp_path).read_curve() == [(1, 2.5), (2, 2.1)]
    assert RunFolder(tmp_path / "nowhere").read_curve() == []


@pytest.mark.parametrize("older", [None, 5, trainer.SEEDS["replay"]], ids=["new", "an earlier release's seed", "an earlier release's size"])
def test_the_demo_models_own_replay_can_be_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: int | None) -> None:
    monkeypatch.setattr(trainer, "SCENES", {name: (2, *rest) for name, (_, *rest) in trainer.SCENES.items()})
    if older is not None:
        write_scenes(tmp_path / "replay", 1, older, phrases=5, split="train")
    folders = draw_scenes(tmp_path)
    assert len(select_examples(folders["replay"])) == 10
    assert {example.split for example in read_examples(folders["golden"])} == {"test"}
    before = (folders["replay"] / "examples.jsonl").stat()
    assert draw_scenes(tmp_path) == folders
    assert (folders["replay"] / "examples.jsonl").stat().st_mtime_ns == before.st_mtime_ns
