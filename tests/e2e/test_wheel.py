"""The wheel, started from a folder with other people's modules: a training run to its decision, and the demo with a real Label Studio."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend import brush
from backend.demo.launch import find_label_studio
from backend.errors import SettingsError
from backend.label_studio.config_template import DEMO_CONFIG
from backend.learning.holdout import LEAST, NEEDED
from backend.support.child import HOST, check_port
from sam4mllm.demo.scenes import DemoScene, make_scene
from tests.e2e.test_backend import save
from tests.installed import Installed, hosting, install, serving

SEED = 880_021
RUN_SECONDS = 600
DEMO_SECONDS = 1200


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("wheel"))


@pytest.mark.timeout(RUN_SECONDS + 300)
@pytest.mark.parametrize("start", ["sam4mllm", "python -m"])
def test_a_training_run_comes_to_its_decision(installed: Installed, start: str, tmp_path: Path) -> None:
    known = tmp_path / "known"
    done = installed.run(*installed.starts[start], "scenes", known, "--count", 2, "--seed", SEED, "--split", "train")
    assert done.code == 0, done.err
    image = next((known / "images").iterdir())
    assert installed.run(*installed.starts[start], "predict", image, "the cup").out.startswith("the cup: ")
    plan = tmp_path / "plan.toml"
    plan.write_text("steps = 3\n")
    settings = {"SAM4MLLM_REPLAY": str(known), "SAM4MLLM_GOLDEN": str(known), "SAM4MLLM_STRATEGY": "box"}
    settings |= {"SAM4MLLM_HOME": str(tmp_path / "home"), "SAM4MLLM_TRAIN_CONFIG": str(plan)}
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with hosting(pictures) as host, serving(installed, start, SAM4MLLM_ALLOW_HOSTS=host, **settings) as url:
        for number, one in enumerate(scenes(pictures), 1):
            httpx.post(f"{url}/webhook", json=event(number, f"{host}/{number}.png", one), trust_env=False).raise_for_status()
        httpx.post(f"{url}/api/runs", json={}, trust_env=False).raise_for_status()
        run = finished(url)
    assert run["state"] in ("kept", "promoted"), run
    assert run["counts"] == {"train": NEEDED - LEAST, "holdout": LEAST, "refused": 0}


def scenes(folder: Path) -> list[DemoScene]:
    """Scenes with one thing that is asked for, as many as the run needs; the n-th is ``n.png``."""
    found = [make_scene((SEED, index), kinds=["noun"]) for index in range(NEEDED)]
    for number, one in enumerate(found, 1):
        save(one.image, folder / f"{number}.png")
    return found


def event(number: int, image: str, one: DemoScene) -> dict[str, Any]:
    """A webhook's body: a reviewer drew the true mask by hand."""
    expression = one.expressions[0]
    regions = [
        {
            "id": f"r{number}-{index}",
            "type": "brushlabels",
            "from_name": "mask",
            "to_name": "image",
            "origin": "manual",
            "original_width": one.image.shape[1],
            "original_height": one.image.shape[0],
            "value": {"format": "rle", "rle": brush.encode(one.masks[target]), "brushlabels": ["Object"]},
        }
        for index, target in enumerate(expression.targets)
    ]
    when = {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
    annotation = {"id": number, "task": number, "project": 1, "result": regions, "was_cancelled": False, "completed_by": 1, **when}
    return {
        "action": "ANNOTATION_CREATED",
        "annotation": annotation,
        "task": {"id": number, "data": {"image": image, "description": expression.phrase}},
        "project": {"id": 1, "title": "scenes", "label_config": DEMO_CONFIG},
    }


def finished(url: str) -> dict[str, Any]:
    """The run's record when it has ended."""
    end = time.monotonic() + RUN_SECONDS
    while time.monotonic() < end:
        runs: list[dict[str, Any]] = httpx.get(f"{url}/api/runs", trust_env=False, timeout=30).json()["runs"]
        if runs and runs[0]["ended"]:
            return runs[0]
        time.sleep(1)
    raise AssertionError("the run did not end")


@pytest.mark.timeout(2 * DEMO_SECONDS)
def test_the_demo_comes_up_from_nothing_and_again(installed: Installed, tmp_path: Path) -> None:
    """From nothing where modules of the working directory could get in the way, then the other way in the folder that is there."""
    try:
        executable = find_label_studio()
    except SettingsError as error:
        pytest.skip(str(error))
    first = come_up(installed, "python -m", executable, tmp_path)
    again = come_up(installed, "sam4mllm", executable, tmp_path)
    assert "drawing and uploading" in first
    assert "drawing and uploading" not in again


def come_up(installed: Installed, start: str, executable: Path, place: Path) -> str:
    """What the demo says until it is stopped, which is once it is there."""
    port, backend_port = check_port(0), check_port(0)
    command = [*installed.starts[start], "demo", str(place / "demo"), "--port", str(port), "--backend-port", str(backend_port)]
    environment = installed.environment(SAM4MLLM_LABEL_STUDIO=str(executable), PYTHONUNBUFFERED="1")
    log = place / "demo.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=installed.folder, env=environment, stdout=output, stderr=output)
    try:
        end = time.monotonic() + DEMO_SECONDS
        while "Ctrl-C stops both servers" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(1)
        assert f"http://{HOST}:{port}/projects/" in log.read_text()
        assert httpx.get(f"http://{HOST}:{backend_port}/health", trust_env=False).json()["state"] == "ready"
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    return log.read_text()
