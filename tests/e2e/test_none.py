"""A server without an MLLM beside a real Label Studio, on a tiny SAM 3 of random weights: it finds anything, as the threshold is 0."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from backend.corrections.log import CorrectionLog
from backend.demo.launch import READY_TIMEOUT, is_ready
from backend.demo.local_label_studio import LocalLabelStudio
from backend.label_studio.config_template import DEMO_CONFIG
from backend.support.child import HOST, Child, check_port
from benchmarks.waiting import wait_for
from tests.e2e.editor import ARGUMENTS, find_chromium
from tests.e2e.test_backend import Project, drawn, fill, keypoint, mask_of, rectangle, save, scene, texts
from tests.e2e.test_commands import COMMAND
from tests.tiny_concepts import write_sam3_video

NO_LORA = "no LoRA is trained: it changes an MLLM, and the model is none"
SHOTS = Path(__file__).parents[2] / "out" / "e2e"


class Alone(NamedTuple):
    """The server, the log of its process, and the environment of commands beside it."""

    url: str
    home: Path
    log: Path
    environment: dict[str, str]

    def command(self, *arguments: object) -> str:
        given = os.environ | self.environment
        done = subprocess.run([COMMAND, *map(str, arguments)], env=given, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    @property
    def version(self) -> str:
        return str(httpx.get(self.url + "/ready").json()["version"])


@pytest.fixture(scope="module")
def server(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    """Started as the documentation says, and with a threshold."""
    place, port = tmp_path_factory.mktemp("none"), check_port(0)
    folder, url = write_sam3_video(place / "sam3"), f"http://{HOST}:{port}"
    environment = {
        "SAM4MLLM_HOME": str(place / "home"),
        "SAM4MLLM_PORT": str(port),
        "SAM4MLLM_THRESHOLD": "0",
        "SAM4MLLM_DEVICE": "cpu",
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
    }
    started = [COMMAND, "serve", "--model", "none", "--segmenter", str(folder)]
    child = Child("the server", [str(one) for one in started], os.environ | environment, place / "log")
    try:
        child.wait_until(lambda: is_ready(url), READY_TIMEOUT, lambda _: None)
        beside = {**environment, "SAM4MLLM_MODEL": "none", "SAM4MLLM_SEGMENTER": str(folder)}
        yield Alone(url, place / "home", place / "log", beside)
    finally:
        child.stop()


@pytest.fixture(scope="module")
def project(label_studio: LocalLabelStudio, server: Alone) -> Project:
    """Joined to the server by the command."""
    number = label_studio.create_project("none", DEMO_CONFIG)
    server.command("connect", number, "--url", server.url)
    [entry] = label_studio.api("GET", f"/api/ml?project={number}")
    return Project(label_studio, number, int(entry["id"]))


def test_predictions_clicks_batch_and_doctor(server: Alone, project: Project, tmp_path: Path) -> None:
    one = scene(70)
    height, width = one.image.shape[:2]
    picture = save(one.image, tmp_path / "a.png")
    [first] = fill(project, (picture, "cup"))
    project.studio.retrieve_predictions(project.id)
    [prediction] = project.predictions(first)
    assert prediction["model_version"] == server.version
    assert server.version.startswith("none-0-")
    assert len(drawn(prediction["result"])) > 1
    assert all(mask_of(region).shape == (height, width) for region in drawn(prediction["result"]))

    *found, line = project.interactive(first, texts("cup"))
    assert line["value"]["text"] == [f"cup: {len(found)} found by the segmenter"]
    assert len(found) == len(drawn(prediction["result"]))
    *_, line = project.interactive(first, texts("the cup that stands to the left of the second one from the right"))
    assert "the segmenter reads 32 tokens of a phrase" in line["value"]["text"][0]
    assert drawn(project.interactive(first, keypoint(50, 50)))
    assert drawn(project.interactive(first, rectangle(np.array([10, 10, 60, 60]), width, height)))

    *_, second = fill(project, (picture, "dog"))
    summary = json.loads(server.command("batch", project.id, "--json"))
    assert (summary["version"], summary["failed"]) == (server.version, 0)
    assert [one["model_version"] for one in project.predictions(second)] == [server.version]
    said = json.loads(server.command("doctor", project.id, "--json"))
    assert said["findings"] == []
    assert "no MLLM; strategy concept: the segmenter takes the phrase, and no MLLM is asked" in said["notes"]


def test_start_training_keeps_the_corrections_and_says_why_no_lora_is_trained(server: Alone, project: Project) -> None:
    task = project.tasks()[0]["id"]
    [prediction] = project.predictions(task)
    made = project.studio.api("POST", f"/api/tasks/{task}/annotations/", json={"result": drawn(prediction["result"])[:1]})

    def stored() -> bool:
        events = CorrectionLog(server.home / "corrections.sqlite").events()
        return any(event.action == "ANNOTATION_CREATED" and event.body["annotation"]["id"] == made["id"] for event in events)

    wait_for("the correction", stored, 60)
    project.studio.api("POST", f"/api/ml/{project.backend}/train", json={})

    def over() -> dict[str, Any] | None:
        runs: list[dict[str, Any]] = httpx.get(server.url + "/api/runs").json()["runs"]
        return next((run for run in runs if run["state"] == "postponed"), None)

    run = wait_for("the end of the run", over, 60)
    assert run["message"].startswith(NO_LORA)
    assert run["counts"]["train"] + run["counts"]["holdout"] == 1
    assert not list((server.home / "runs" / run["id"]).glob("training*")), "a training process was started"
    assert server.log.read_text(encoding="utf-8").count(f"{run['id']}: postponed, {NO_LORA}") == 1
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium: install your system's package chromium")
def test_the_status_page_says_what_serves_and_what_is_not_trained(server: Alone, project: Project) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.goto(server.url + "/")
        assert "Model none (no MLLM)" in page.inner_text("#now")
        assert "strategy concept" in page.inner_text("#now")
        assert NO_LORA in page.inner_text("#learning")
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / "status-none.png", full_page=True)
        chromium.close()
