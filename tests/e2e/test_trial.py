"""A trial of four candidates on 30 pictures exported from a real Label Studio: killed once, gone on with, and its page looked at."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from backend import brush
from backend.demo.local_label_studio import LocalLabelStudio
from backend.label_studio.config_template import DEMO_CONFIG
from benchmarks.waiting import wait_for
from sam4mllm.data.examples import Example
from sam4mllm.demo.dataset import write_scenes
from sam4mllm.evaluation.run import by_image, choose
from tests.e2e.editor import ARGUMENTS, find_chromium
from tests.e2e.test_commands import COMMAND

PICTURES, SEED = 30, 990_031
CANDIDATES = """
[box]
strategy = "box"

[ppg]
strategy = "ppg"

[points]
strategy = "pqpp"

[points-joint]
strategy = "pqpp"
points = "joint"
"""
SECONDS = 900
"""For one candidate and a half on a busy machine."""
WIDTHS = (1280, 390)


def brushes(example: Example) -> list[dict[str, Any]]:
    """What an annotator would have drawn: a region for each thing."""
    size = {"original_width": example.width, "original_height": example.height, "image_rotation": 0}
    return [
        {
            "id": f"r{at}",
            "type": "brushlabels",
            "from_name": "mask",
            "to_name": "image",
            "origin": "manual",
            **size,
            "value": {"format": "rle", "rle": brush.encode(mask), "brushlabels": ["Object"]},
        }
        for at, mask in enumerate(example.masks())
    ]


@pytest.fixture(scope="module")
def export(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of 30 described and labelled pictures, as its JSON export with the uploads beside it."""
    folder = tmp_path_factory.mktemp("trial")
    write_scenes(folder / "scenes", PICTURES, SEED)
    chosen = [next(one for one in group if one.has_target) for group in by_image(choose(folder / "scenes"))]
    project = label_studio.create_project("trial", DEMO_CONFIG)
    uploads = label_studio.upload(project, [folder / "scenes" / one.image for one in chosen])
    tasks = [
        {"data": {"image": upload, "description": one.phrase}, "annotations": [{"result": brushes(one)}]}
        for one, upload in zip(chosen, uploads, strict=True)
    ]
    label_studio.api("POST", f"/api/projects/{project}/import", json=tasks)
    exported = label_studio.api("GET", f"/api/projects/{project}/export?exportType=JSON")
    (folder / "export" / "images").mkdir(parents=True)
    for one, upload in zip(chosen, uploads, strict=True):
        shutil.copy(folder / "scenes" / one.image, folder / "export" / "images" / Path(upload).name)
    (folder / "export" / "export.json").write_text(json.dumps(exported))
    (folder / "candidates.toml").write_text(CANDIDATES)
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "out" / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


@pytest.mark.timeout(3 * SECONDS)
def test_a_trial_that_is_killed_goes_on_and_says_which_to_take(export: Path) -> None:
    command = [COMMAND, "trial", export / "export" / "export.json", "--candidates", export / "candidates.toml", "--out", export / "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (export / "first.log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        wait_for("the second candidate", lambda: len(lines(export)) > PICTURES + 3 or first.poll() is not None, SECONDS)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL, (export / "first.log").read_text()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * SECONDS, env=environment)
    assert done.returncode == 0, done.stderr
    kept = lines(export)
    assert len({line["key"] for line in kept}) == len(kept) == 4 * PICTURES  # none was worked twice
    assert {line["candidate"] for line in kept[:PICTURES]} == {"box"}
    record = json.loads((export / "out" / "trial.json").read_text())
    assert (record["pictures"], len(record["candidates"]), record["failed"]) == (PICTURES, 4, {})
    for name in ("box", "ppg", "points", "points-joint"):
        [row] = [row for row in record["candidates"] if row["name"] == name]
        assert row["figures"]["gIoU"] > 0.7
        assert row["figures"]["bound"] > 0.85
        assert 0 <= row["figures"]["clicks"] <= 5
        assert row["memory"] > 10**8
        assert row["loading"] > 0
        assert f"\n {name} " in done.stdout
    assert done.stdout.splitlines()[-1] == record["sentence"]
    assert record["sentence"].startswith(record["candidates"][0]["name"])
    assert "is not told apart from" in record["sentence"] or "beats" in record["sentence"]


@pytest.mark.parametrize(("width", "scheme"), [(WIDTHS[0], "light"), (WIDTHS[0], "dark"), (WIDTHS[1], "light")])
def test_the_page_is_read_at_two_widths_and_in_the_dark(export: Path, width: int, scheme: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if find_chromium() is None:
        pytest.skip("there is no Chromium: install your system's package chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((export / "out" / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        assert page.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
        assert page.evaluate("document.querySelectorAll('.panels img').length") >= 4 * (2 + 4)
        assert [address for address in asked if not address.startswith(("file:", "data:"))] == []
        page.screenshot(path=tmp_path / f"trial-{width}-{scheme}.png", full_page=True)
        browser.close()
