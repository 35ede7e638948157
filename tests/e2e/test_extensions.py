"""The packages of ``examples/``, each installed by pip and used by commands and server; none of our files names them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from backend.demo.launch import READY_TIMEOUT, is_ready
from backend.support.child import HOST, Child, check_port
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.grounding.families import DEMO_FOLDER
from tests.e2e.test_commands import COMMAND
from tests.e2e.test_doctor import inline_picture

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


class Installed:
    """The samples, in a folder that commands find packages in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
        for sample in sorted(EXAMPLES.glob("*/pyproject.toml")):
            copied = shutil.copytree(sample.parent, folder / "sources" / sample.parent.name)  # a build leaves files beside the sources
            offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
            subprocess.run([sys.executable, "-m", "pip", "--quiet", "install", *offline, "--target", folder, copied], check=True)

    def command(self, *arguments: object) -> str:
        done = subprocess.run(
            [COMMAND, *map(str, arguments)], env=self.environment, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def scenes(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    installed.command("scenes", folder, "--count", 6, "--seed", 880_001)
    return folder


@pytest.fixture(scope="module")
def lantern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as a checkpoint of the sample's family, which brings the dialect."""
    folder = shutil.copytree(DEMO_FOLDER, tmp_path_factory.mktemp("models") / "lantern")
    (folder / "dialect.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "lantern_vl"}))
    return folder


def test_none_of_our_files_names_a_sample() -> None:
    brought = re.compile(r"lantern|grabcut|labelme|\bfive-1\b|sam4mllm_five", re.IGNORECASE)
    said = re.compile(r"sam4mllm_grabcut|grabcut = ")  # the sample of an entry point in a docstring
    for path in [*ROOT.glob("sam4mllm/**/*.py"), *ROOT.glob("backend/**/*.py"), ROOT / "pyproject.toml"]:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if brought.search(line) and not said.search(line)]
        assert not lines, (path, lines)


def test_predict_asks_the_family_by_the_strategy_and_draws_with_the_segmenter(installed: Installed, scenes: Path, lantern: Path) -> None:
    example = next(one for one in read_examples(scenes) if one.source.endswith("noun"))
    given = ("predict", scenes / example.image, example.phrase, "--json")
    [drawn] = json.loads(installed.command(*given, "--model", lantern, "--strategy", "five", "--segmenter", "grabcut:2"))
    [plain] = json.loads(installed.command(*given))
    assert len(drawn["instances"]) == len(plain["instances"]) > 0
    assert drawn["version"] != plain["version"]
    assert {len(instance["points"]) for instance in drawn["instances"]} <= set(range(6))


def test_evaluate_measures_them(installed: Installed, scenes: Path) -> None:
    figures = json.loads(installed.command("evaluate", scenes, "--strategy", "five", "--segmenter", "grabcut:1", "--limit", 4, "--json"))
    assert figures["gIoU"] > 0.4


def test_a_dataset_is_prepared(installed: Installed, scenes: Path, tmp_path: Path) -> None:
    example = next(one for one in read_examples(scenes) if one.has_target)
    shutil.copy2(scenes / example.image, tmp_path / "kitchen.png")
    corners = [[10, 10], [60, 10], [60, 50], [10, 50]]
    shapes = [{"label": "the tray", "shape_type": "polygon", "points": corners}, {"label": "it", "shape_type": "circle", "points": []}]
    size = {"imageHeight": example.height, "imageWidth": example.width}
    (tmp_path / "kitchen.json").write_text(json.dumps({"imagePath": "kitchen.png", "shapes": shapes, **size}))
    (tmp_path / "other.json").write_text("[]")
    out = tmp_path / "prepared"
    counted = json.loads(installed.command("data", "prepare", "labelme", tmp_path, out, "--json"))
    [prepared] = read_examples(out)
    assert prepared.phrase == "the tray"
    assert prepared.instances[0].box_px.tolist() == pytest.approx([10, 10, 60, 50], abs=1)
    assert sum(counted["left_out"].values()) == 2


@pytest.fixture(scope="module")
def server(installed: Installed, lantern: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home, port = tmp_path_factory.mktemp("home"), check_port(0)
    url = f"http://{HOST}:{port}"
    own = {
        "SAM4MLLM_HOME": str(home),
        "SAM4MLLM_PORT": str(port),
        "SAM4MLLM_MODEL": str(lantern),
        "SAM4MLLM_SEGMENTER": "grabcut:1",
        "SAM4MLLM_STRATEGY": "five",
        "SAM4MLLM_DEVICE": "cpu",
    }
    child = Child("the server", [COMMAND, "serve"], installed.environment | own, home / "server.log")
    try:
        child.wait_until(lambda: is_ready(url), READY_TIMEOUT, lambda _: None)
        yield url
    finally:
        child.stop()


def test_the_server_answers_with_them(server: str) -> None:
    config = '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image"><Label value="Cup"/></BrushLabels></View>'
    task = {"id": 1, "data": {"image": inline_picture(), "description": "the cup"}}
    body = {"tasks": [task], "label_config": config, "project": "1.1"}
    said = httpx.post(f"{server}/predict", json=body, timeout=60).json()
    [answer] = said["results"]
    assert answer["model_version"].startswith("lantern-0-")
    status = httpx.get(server, timeout=60).text
    assert "strategy five" in status
