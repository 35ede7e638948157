"""The commands that make adapters and look after them: what they print, what they leave, and how they fail and stop."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from sam4mllm import loading
from sam4mllm.adapters.fields import CONFIG, FILES, MANIFEST, WEIGHTS
from sam4mllm.adapters.files import check_adapter
from sam4mllm.adapters.registry import Registry
from sam4mllm.cli import main as cli
from sam4mllm.options import AUTO, Precision
from sam4mllm.pipeline import Pipeline
from sam4mllm.training import session
from sam4mllm.training.recipe import Trainer
from tests.conftest import make_checkpoint
from tests.fakes import FakeGrounder, FakeSegmenter
from tests.test_adapters import add
from tests.test_cli import fail
from tests.test_pool import TOY, write_pictures

torch.set_num_threads(1)


def invoke(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.make_app(), [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def run(*arguments: object, code: int = 0) -> str:
    return invoke(*arguments, code=code).stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", TOY)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "made" / "adapter"


@pytest.fixture
def arguments(model: Path, data: Path, out: Path) -> list[object]:
    return ["train", data, "--out", out, "--model", model, "--device", "cpu"]


# -- train ---------------------------------------------------------------------------------------------------------------------------------


def test_train_writes_an_adapter_and_nothing_else(arguments: list[object], out: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("steps = 50\nrank = 3\nbatch = 1\n")
    replay = write_pictures(tmp_path / "replay", TOY[:1])
    told = json.loads(run(*arguments, "--config", tmp_path / "plan.toml", "--replay", replay, "--steps", 3, "--seed", 4, "--json"))
    assert told["adapter"] == str(out)
    assert told["step"] == told["steps"] == 3
    assert told["phrases"] == 6
    assert 0 < told["loss"] < 100
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert {path.name for path in out.iterdir()} == {*FILES, MANIFEST}
    check_adapter(out)
    config = json.loads((out / CONFIG).read_text())
    assert config["r"] == 3
    assert config["base_model_name_or_path"] == str(model)


def test_the_same_command_makes_the_same_adapter(arguments: list[object], out: Path) -> None:
    made = []
    for index in range(2):
        assert f"{out}: 2 steps in" in run(*arguments, "--steps", 2)
        made.append((out / WEIGHTS).read_bytes())
        out.rename(out.with_name(str(index)))
    assert made[0] == made[1]


def test_the_split_to_train_on(arguments: list[object], data: Path, tmp_path: Path) -> None:
    lines = (data / "examples.jsonl").read_text().splitlines()
    marked = [line.replace('"split": "train"', '"split": "testA"') for line in lines[2:]]
    (data / "examples.jsonl").write_text("\n".join([*lines[:2], *marked]))
    [*before, _, place] = arguments[:4]
    told = json.loads(run(*before, "--out", f"{place}-2", *arguments[4:], "--steps", 1, "--json"))
    assert told["phrases"] == 2


def only_tested_on(data: Path) -> str:
    """A set as `data merge` leaves it whose pictures are all tested on elsewhere; and its splits."""
    lines = [line.replace('"split": "train"', '"split": "val"') for line in (data / "examples.jsonl").read_text().splitlines()]
    lines[0] = lines[0].replace('"split": "val"', '"split": "testA"')
    (data / "examples.jsonl").write_text("\n".join(lines))
    return f"no example of the split train to train on; it has testA (1), val ({len(lines) - 1})"


def test_a_set_without_the_split_to_train_on_is_refused(
    arguments: list[object], data: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = only_tested_on(data)
    assert splits in fail(capsys, monkeypatch, *arguments)
    assert not out.exists()


def test_a_replay_without_the_split_to_train_on_is_refused(
    arguments: list[object], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = Path(shutil.copytree(data, tmp_path / "replay"))
    splits = only_tested_on(replay)
    assert splits in fail(capsys, monkeypatch, *arguments, "--replay", replay)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_stops_after_a_step_and_the_same_command_goes_on(
    number: signal.Signals, arguments: list[object], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    real = Trainer._step
    steps: list[int] = []

    def step(self: Trainer, step: int, of: int) -> float:
        steps.append(step)
        if steps == [0, 1]:
            signal.raise_signal(number)
        return real(self, step, of)

    monkeypatch.setattr(Trainer, "_step", step)
    stopped = invoke(*arguments, "--steps", 4, code=1)
    assert stopped.stdout == ""
    assert "stopped at step 2 of 4; the same command goes on from there" in stopped.stderr
    assert not out.exists()
    runs = out.with_name(f".{out.name}.run")
    assert [path.name for path in runs.iterdir()] == ["step-00000002"]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers

    again = invoke(*arguments, "--steps", 4)
    assert again.stderr == "going on from step 3\n"
    assert steps == [0, 1, 2, 3]
    broken = (out / WEIGHTS).read_bytes()
    assert not runs.exists()
    out.rename(out.with_name("broken"))
    run(*arguments, "--steps", 4)
    assert (out / WEIGHTS).read_bytes() == broken


def test_a_kill_before_the_adapter_is_named_leaves_the_run(arguments: list[object], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "sync_tree", killed)
        with pytest.raises(Killed):
            CliRunner().invoke(cli.make_app(), [*map(str, arguments), "--steps", "2"])
    assert not out.exists()
    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("all steps were done"))
    assert run(*arguments, "--steps", 2) == f"{out}\n"
    check_adapter(out)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_train_fails_with_one_line(
    arguments: list[object], out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.toml").write_text("steps = ")
    (tmp_path / "unknown.json").write_text('{"steps": 3, "epoch": 2, "lr": 1}')
    (tmp_path / "wrong.toml").write_text('rate = "1e-4"')
    for name, message in (
        ("list.json", "not an object"),
        ("broken.toml", "neither JSON nor"),
        ("unknown.json", "unknown 'epoch', 'lr'; known are steps, batch"),
        ("wrong.toml", "rate must be a number"),
        ("nowhere.json", "cannot be read"),
    ):
        assert message in fail(capsys, monkeypatch, *arguments, "--config", tmp_path / name)
    assert "examples.jsonl cannot be read" in fail(capsys, monkeypatch, "train", tmp_path / "nowhere", "--out", out)
    assert "no such folder" in fail(capsys, monkeypatch, *arguments, "--model", tmp_path / "nowhere")
    assert "is no device" in fail(capsys, monkeypatch, *arguments, "--device", "abacus")
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in fail(capsys, monkeypatch, *arguments, "--steps", 1, "--out", tmp_path / "file" / "adapter")
    assert not out.exists()


def test_an_out_that_holds_something_is_refused_before_training(
    arguments: list[object], out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out.mkdir(parents=True)
    (out / "precious").write_text("x")
    for taken in (out, out / "precious"):
        assert "not an empty folder" in fail(capsys, monkeypatch, *arguments, "--out", taken)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    (out / "precious").unlink()
    run(*arguments, "--steps", 1)
    check_adapter(out)


def test_a_run_with_other_settings_is_not_gone_on_with(
    arguments: list[object], out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer._step

    def stopping(self: Trainer, step: int, of: int) -> float:
        self.stop()
        return real(self, step, of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        invoke(*arguments, "--steps", 4, code=1)
    assert "other data or settings" in fail(capsys, monkeypatch, *arguments, "--steps", 5)
    run(*arguments, "--steps", 4)


# -- adapters ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path / "home"))
    return Registry(tmp_path / "home")


def test_versions_are_listed_and_promoted_and_rolled_back(home: Registry) -> None:
    assert run("adapters", "list") == "* the base model alone\n"
    first, second = add(home, 0.1), add(home, 0.2)
    assert run("adapters", "promote", first) == f"serving: {first}\n"
    run("adapters", "promote", second)
    listed = run("adapters", "list").splitlines()
    assert listed[0].startswith(f"  {first}  ")
    assert listed[1].startswith(f"* {second}  ")
    assert listed[1].endswith("demo  gIoU 0.5")
    assert run("adapters", "rollback") == f"serving: {first}\n"
    told = json.loads(run("adapters", "list", "--json"))
    assert told["serving"] == first
    assert [version["version"] for version in told["versions"]] == [first, second]
    assert told["broken"] == []
    assert run("adapters", "rollback") == "serving: the base model alone\n"


def test_a_home_is_given_or_of_the_environment(home: Registry, tmp_path: Path) -> None:
    version = add(home)
    other = add(Registry(tmp_path / "other"), slug="other")
    assert version in run("adapters", "list")
    assert other in run("adapters", "list", "--home", tmp_path / "other")


def test_show_and_export(home: Registry, tmp_path: Path) -> None:
    version = add(home)
    assert json.loads(run("adapters", "show", version, "--json"))["version"] == version
    shown = run("adapters", "show", version)
    assert f"version: {version}\n" in shown
    assert "parent: none\n" in shown
    assert 'metrics: {"gIoU": 0.5}\n' in shown
    run("adapters", "export", version, tmp_path / "exported")
    check_adapter(tmp_path / "exported")


def test_broken_versions_are_named(home: Registry) -> None:
    good, bad = add(home), add(home)
    home.promote(bad)
    (home.path(bad) / "manifest.json").write_text("{")
    listed = invoke("adapters", "list")
    assert "which one serves cannot be told" in listed.stderr
    assert "the base model" not in listed.stdout
    told = json.loads(run("adapters", "list", "--json"))
    assert told["serving"] is None
    assert [version["version"] for version in told["versions"]] == [good]
    assert [broken["name"] for broken in told["broken"]] == [bad]


def test_adapters_fail_with_one_line(
    home: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = add(home)
    for command in ("show", "promote"):
        assert "there is no version" in fail(capsys, monkeypatch, "adapters", command, "demo-9-00000000")
        assert "is no version" in fail(capsys, monkeypatch, "adapters", command, "../evil")
    assert "nothing to roll back" in fail(capsys, monkeypatch, "adapters", "rollback")
    assert "not empty" in fail(capsys, monkeypatch, "adapters", "export", version, tmp_path)
    (home.path(version) / WEIGHTS).write_bytes(b"")
    assert "SHA-256" in fail(capsys, monkeypatch, "adapters", "promote", version)


# -- options -------------------------------------------------------------------------------------------------------------------------------


def test_adapter_and_precision_reach_the_pipeline(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def load(*arguments: object) -> Pipeline:
        given.append(arguments[4:6])
        return Pipeline(FakeGrounder({}), FakeSegmenter())

    monkeypatch.setattr(loading, "load_pipeline", load)
    Image.fromarray(np.full((100, 200, 3), 90, np.uint8)).save(tmp_path / "image.png")
    run("predict", tmp_path / "image.png", "a cup", "--adapter", "demo-1-0f3a9c12", "--dtype", "bf16")
    run("evaluate", data, "--adapter", tmp_path, "--quantize", "4bit")
    run("bench", "--images", 1, "--adapter", "x", "--device-map", "auto")
    run("predict", tmp_path / "image.png", "a cup")
    assert given == [
        ("demo-1-0f3a9c12", Precision("bf16")),
        (str(tmp_path), Precision(quantize="4bit")),
        ("x", Precision(device_map="auto")),
        (None, AUTO),
    ]


def test_an_adapter_that_is_not_there(
    data: Path, home: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no version demo-1-0f3a9c12" in fail(capsys, monkeypatch, "evaluate", data, "--adapter", "demo-1-0f3a9c12")
    assert "there is no folder" in fail(capsys, monkeypatch, "evaluate", data, "--adapter", "no/folder")


@pytest.mark.parametrize("command", ["train", *(f"adapters {name}" for name in ("list", "show", "promote", "rollback", "export"))])
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: sam4mllm {command}" in " ".join(run(*command.split(), "--help").split())


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["train", "data"], id="no out"),
        pytest.param(["train", "--out", "a"], id="no dataset"),
        pytest.param(["train", "data", "--out", "a", "--steps", "0"], id="no steps"),
        pytest.param(["adapters"], id="no command"),
        pytest.param(["adapters", "promote"], id="no version"),
        pytest.param(["adapters", "nonsense"], id="unknown command"),
        pytest.param(["adapters", "promote", "demo-1-0f3a9c12", "--json"], id="unknown option"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    run(*arguments, code=2)
