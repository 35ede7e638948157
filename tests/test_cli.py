"""The commands on fakes: what they print, where, and how they fail."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sam4mllm import loading
from sam4mllm.cli import main as cli
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.options import PATTERNS, Options, Pattern
from sam4mllm.overlay import draw
from sam4mllm.pipeline import Pipeline
from sam4mllm.run_lengths import from_rle
from tests.fakes import FakeGrounder, FakeSegmenter, grounding

COMMANDS = ("predict", "scenes", "evaluate", "ablate", "bench")
CUPS = grounding("all cups", [[20, 10, 60, 50], [100, 30, 180, 90]])


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(FakeGrounder({"all cups": CUPS}), FakeSegmenter())
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: pipeline)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.full((100, 200, 3), 90, np.uint8)).save(path)
    return path


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.make_app(), [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def fail(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The one line that the real entry point prints on standard error, with exit status 1."""
    monkeypatch.setattr("sys.argv", ["sam4mllm", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_predict_prints_a_line_a_phrase_and_writes_the_overlay(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "overlay.png"
    printed = run("predict", image, "all cups", "the dog", "--out", out)
    assert re.search(r"all cups: 2 found, 6400 pixels, box and score \[20 10 60 50\] 0\.\d\d", printed)
    assert "the dog: no such object (P = 0.95)" in printed
    with Image.open(out) as overlay:
        assert overlay.width == 1440  # two panels


def test_predict_as_json_carries_masks_and_points(image: Path) -> None:
    [answer] = json.loads(run("predict", image, "all cups", "--json"))
    assert answer["phrase"] == "all cups"
    assert from_rle(answer["instances"][0]["rle"], 100, 200).sum() == 1600
    assert len(answer["instances"][0]["points"]) == len(answer["instances"][0]["labels"]) == 30


def test_scenes_are_a_dataset_and_the_same_again(tmp_path: Path) -> None:
    run("scenes", tmp_path / "a", "--count", 2, "--seed", 5)
    run("scenes", tmp_path / "b", "--count", 2, "--seed", 5)
    assert (tmp_path / "a" / "examples.jsonl").read_bytes() == (tmp_path / "b" / "examples.jsonl").read_bytes()
    assert len(read_examples(tmp_path / "a")) == 10


def test_novel_nouns_are_asked_for(tmp_path: Path) -> None:
    run("scenes", tmp_path / "a", "--count", 2, "--nouns", "novel")
    novel = ("penguin", "octopus", "parrot", "tiger", "kiwi", "avocado", "violin", "scooter", "tractor", "candle", "robot", "anchor")
    assert all(any(noun in example.phrase for noun in novel) for example in read_examples(tmp_path / "a"))


def test_bench_splits_the_time_by_stage() -> None:
    assert set(json.loads(run("bench", "--images", 2, "--json"))) == {"loading", "phrase", "image", "box", "points", "segmenter"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: sam4mllm {command}" in " ".join(run(command, "--help").split())


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["predict"], id="no image"),
        pytest.param(["predict", "a.png", "b", "--strategy", "magic"], id="unknown strategy"),
        pytest.param(["scenes", "a", "--count", "0"], id="no scenes"),
        pytest.param(["nonsense"], id="unknown command"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    run(*arguments, code=2)


def test_failures_are_one_line(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nowhere.png" in fail(capsys, monkeypatch, "predict", tmp_path / "nowhere.png", "a cup")
    (tmp_path / "broken.png").write_bytes(image.read_bytes()[:60])
    assert "error:" in fail(capsys, monkeypatch, "predict", tmp_path / "broken.png", "a cup")
    assert "the phrase is empty" in fail(capsys, monkeypatch, "predict", image, " ")
    assert "could not be written" in fail(capsys, monkeypatch, "predict", image, "a cup", "--out", tmp_path / "no" / "folder.png")
    assert "error:" in fail(capsys, monkeypatch, "evaluate", tmp_path / "no-dataset")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("predict", "{image}", "the cup"), id="predict"),
        pytest.param(("bench", "--images", "1"), id="bench"),
        pytest.param(("evaluate", "{scenes}"), id="evaluate"),
        pytest.param(("ablate", "{scenes}", "--over", "points", "--out", "{scenes}/out"), id="ablate"),
    ],
)
def test_the_pattern_reaches_the_options(
    arguments: tuple[str, ...], pattern: Pattern, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Options] = []

    def load(model: str, segmenter: str, device: str | None, options: Options, *_: object) -> Pipeline:
        loaded.append(options)
        return Pipeline(FakeGrounder({}), FakeSegmenter(), options)

    monkeypatch.setattr(loading, "load_pipeline", load)
    if "{scenes}" in arguments:
        run("scenes", tmp_path / "scenes", "--count", 1)
    run(*(one.format(image=image, scenes=tmp_path / "scenes") for one in arguments), "--pattern", pattern)
    assert [options.pattern for options in loaded] == [pattern]


@pytest.mark.parametrize("command", ["predict", "evaluate", "ablate", "bench"])
def test_an_unknown_pattern_is_wrong_usage(command: str) -> None:
    run(command, "a", "b", "--pattern", "magic", code=2)


def test_overlays_of_every_kind_of_answer_can_be_drawn() -> None:
    pipeline = Pipeline(FakeGrounder({"all cups": CUPS}), FakeSegmenter())
    pixels = np.full((100, 200, 3), 90, np.uint8)
    answers = pipeline.segment(pixels, ["all cups", "the dog", "all cups", "the dog"])
    sheet = np.asarray(draw(pixels, answers))
    assert sheet.shape[1] == 3 * 720
    assert (sheet != 90).any()
