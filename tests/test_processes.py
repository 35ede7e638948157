"""Several processes train what one would: the same losses, with and without the base model spread over them, stopped and resumed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.tensor import DTensor

from sam4mllm.adapters.fields import WEIGHTS
from sam4mllm.adapters.files import check_adapter
from sam4mllm.errors import TrainingError
from sam4mllm.training import tracking
from sam4mllm.training.asking import Asking
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.processes import Processes, join_processes
from sam4mllm.training.recipe import Progress
from sam4mllm.training.session import Extras, Session
from tests.conftest import make_checkpoint
from tests.test_conversations import BUS, write_talks
from tests.test_pool import TOY, write_pictures
from tests.test_recipe import PROCESSES
from tests.test_train_cli import run

torch.set_num_threads(1)

PLAN = TrainingPlan(epochs=5, batch=3, rate=1e-2, rank=4, alpha=8, dropout=0.3, replay_share=0.3, conversation_share=0.2, phrases=2)
"""An uneven batch: where the base model is spread, the one with fewer images has to keep pace."""
ASKING = Asking(points=2, prompt_share=0.5, prompt_groups=3, prompt_kept=2)
STOP = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and all that is learned from."""
    folder = tmp_path_factory.mktemp("world")
    make_checkpoint("qwen3_vl", folder / "model")
    write_pictures(folder / "data", TOY)
    write_pictures(folder / "replay", TOY[:1])
    write_talks(folder, [BUS])
    return folder


def make_session(world: Path, out: Path) -> Session:
    extras = Extras(ASKING, "demo", world / "talks.json")
    return Session(world / "data", out, PLAN, str(world / "model"), "cpu", world / "replay", extras=extras)


def train(world: Path, out: Path, stops: tuple[int | None, ...]) -> list[float]:
    """The losses told to this process, over as many sessions as it is stopped and once more."""
    found: list[float] = []
    for stop in stops:
        session = make_session(world, out)

        def tell(progress: Progress, session: Session = session, stop: int | None = stop) -> None:
            found.append(progress.loss)
            if progress.step == stop:
                session.trainer.stop()

        assert session.run(tell) is (stop is None)
    if session.processes.sharded:
        layer = session.trainer._checkpoint.model.model.language_model.layers[0].self_attn.q_proj
        assert isinstance(layer.base_layer.weight, DTensor)
        assert layer.base_layer.weight.to_local().numel() == layer.base_layer.weight.numel() // 2
        assert not isinstance(layer.lora_A["default"].weight, DTensor)
    session.processes.leave()
    return found


def train_in_group(rank: int, port: int, environment: dict[str, str], world: Path, out: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | environment)
    found = train(world, out, (STOP, None))
    (out.parent / f"losses-{rank}.json").write_text(json.dumps(found))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Path]:
    """What one process is told, unbroken, and the adapter that it makes."""
    out = tmp_path_factory.mktemp("alone") / "adapter"
    return train(world, out, (None,)), out


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize("environment", [pytest.param({}, id="whole"), pytest.param(FSDP, id="FSDP2")])
def test_two_processes_stopped_and_resumed_are_one_unbroken(
    environment: dict[str, str], world: Path, alone: tuple[list[float], Path], tmp_path: Path
) -> None:
    port, out = free_port(), tmp_path / "adapter"
    processes = [PROCESSES.Process(target=train_in_group, args=(rank, port, environment, world, out)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    expected, single = alone
    told = json.loads((tmp_path / "losses-0.json").read_text())
    assert len(expected) > STOP + 2
    assert told == pytest.approx(expected, abs=1e-5)
    assert json.loads((tmp_path / "losses-1.json").read_text()) == []
    check_adapter(out)
    own, other = load_file(out / WEIGHTS), load_file(single / WEIGHTS)
    for name, weight in other.items():  # AdamW makes whole steps of gradients near zero, which the order of adding up changes
        torch.testing.assert_close(own[name], weight, atol=0.1 * PLAN.rate, rtol=0)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["adapter"]


def test_accelerate_launches_two_processes_with_the_losses_of_one(world: Path, tmp_path: Path) -> None:
    """The command of the documentation, its curve read from TensorBoard's files."""
    (tmp_path / "plan.toml").write_text("steps = 5\nbatch = 3\nrate = 0.01\nrank = 4\nalpha = 8\n")
    arguments = ["train", world / "data", "--replay", world / "replay", "--model", world / "model", "--device", "cpu"]
    arguments += ["--config", tmp_path / "plan.toml", "--tensorboard", tmp_path / "curves", "--json"]
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", str(free_port()), "-m", "sam4mllm"]
    done = subprocess.run(
        [*launcher, *map(str, arguments), "--out", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()  # one process speaks
    assert json.loads(line)["step"] == 5
    run(*arguments, "--out", tmp_path / "one")
    curves = []
    for name in ("one", "two"):
        events = EventAccumulator(str(tmp_path / "curves" / name))
        events.Reload()
        curves.append([event.value for event in events.Scalars("loss")])
        assert [event.step for event in events.Scalars("rate")] == [1, 2, 3, 4, 5]
    assert len(set(curves[0])) == 5
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)


# -- failures ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "environment", "message"),
    [
        pytest.param("cuda:0", {}, "--device cuda:0|CUDA devices were found", id="one GPU for all"),
        pytest.param("cpu", {"LOCAL_RANK": "0", "RANK": "0"}, "cannot find each other", id="no address"),
    ],
)
def test_groups_that_cannot_be(device: str, environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import PartialState  # noqa: PLC0415

    monkeypatch.setattr(PartialState, "_shared_state", {})
    for name, value in {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", **environment}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Exception, match=message) as caught:
        join_processes(device)
    assert "\n" not in str(caught.value)


def test_fsdp_of_the_first_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sam4mllm.training.processes import _is_sharded  # noqa: PLC0415

    assert not _is_sharded()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainingError, match="only version 2 of FSDP"):
        _is_sharded()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert _is_sharded()


def test_more_processes_than_images(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam4mllm.training.session.join_processes", lambda device: Processes(torch.device("cpu"), 0, 4))
    monkeypatch.setattr("sam4mllm.training.session.load_segmenter", lambda *_: pytest.fail("it is no use"))
    with pytest.raises(TrainingError, match="batch is 3, fewer images than the 4 processes"):
        Session(world / "data", tmp_path / "out", PLAN, str(world / "model"), "cpu", None)


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    for name, extra in (("tensorboard", r"sam4mllm\[track\]"), ("wandb", "wandb")):
        wanted: dict[str, Any] = {"tensorboard": None, "wandb": None, name: tmp_path}
        with pytest.raises(TrainingError, match=f"--{name} needs the package {name}: pip install '{extra}'"):
            tracking.check_trackers(**wanted)
    with tracking.tracking(replace(PLAN, epochs=None), "run") as tell:  # nothing is asked for, nothing is needed
        tell(Progress(1, 2, 3.0, 0.1, 0.5))
