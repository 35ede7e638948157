"""The shipped models through the installed command, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import sam4mllm
from sam4mllm.cli.main import make_app
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.demo.scenes import make_scene
from sam4mllm.pipeline import Pipeline

COMMAND = Path(sys.executable).with_name("sam4mllm")
SEED = 880_001
"""Scenes that no training has seen."""


def command(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return sam4mllm.load()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    command("scenes", folder, "--count", 24, "--seed", SEED)
    return folder


def test_predict_finds_and_draws(dataset: Path, tmp_path: Path) -> None:
    example = next(one for one in read_examples(dataset) if one.source.endswith("noun"))
    out = tmp_path / "overlay.png"
    done = command("predict", dataset / example.image, example.phrase, "--out", out)
    assert done.stdout.startswith(example.phrase)
    with Image.open(out) as overlay:
        assert overlay.width >= 360


def test_evaluate_reaches_what_the_model_card_promises(dataset: Path) -> None:
    figures = json.loads(command("evaluate", dataset, "--oracle", "--json").stdout)
    assert figures["count"] == 120
    assert {name for name, floor in FLOOR.items() if figures[name] < floor} == set()


FLOOR = {"gIoU": 0.75, "T-acc": 0.93, "N-acc": 0.6, "oracle_mIoU": 0.88, "point_accuracy": 0.88}
"""Below the model card's figures by what 24 images may deviate."""


@pytest.mark.parametrize("strategy", ["box", "ppg", "pqpp"])
@pytest.mark.parametrize("points", ["packed", "joint"])
def test_every_strategy_answers(dataset: Path, strategy: str, points: str) -> None:
    example = read_examples(dataset)[0]
    arguments = ["predict", str(dataset / example.image), example.phrase, "--strategy", strategy, "--points", points, "--json"]
    done = CliRunner().invoke(make_app(), arguments)  # here, for a process of its own takes seconds to load what it needs
    assert done.exit_code == 0, done.output
    [answer] = json.loads(done.stdout)
    assert answer["version"].startswith("demo-0-")


def test_errors_are_one_line_and_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a" * 40)
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    for arguments in (
        ("predict", tmp_path / "dot.png", "a cup"),
        ("predict", tmp_path, "a cup"),
        ("evaluate", tmp_path),
        ("batch", 7, "--out", tmp_path / "out"),
        ("batch", tmp_path / "nowhere", "--out", tmp_path / "out"),
    ):
        done = command(*arguments, code=1)
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr


@pytest.mark.timeout(1200)
def test_eight_threads_and_two_images_do_not_mix(pipeline: Pipeline) -> None:
    scenes = [make_scene((SEED, index)) for index in range(2)]
    jobs = [(scene.image, expression.phrase) for scene in scenes for expression in scene.expressions]

    def work(index: int) -> list[np.ndarray]:  # type: ignore[type-arg]
        image, phrase = jobs[index % len(jobs)]
        return [answer.mask for answer in pipeline.segment(image, [phrase])]

    alone = [work(index) for index in range(len(jobs))]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, range(200)))
    assert all(np.array_equal(found, alone[index % len(jobs)]) for index, found in enumerate(together))
