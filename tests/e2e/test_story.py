"""The paper's story in commands: public data, training by its plan, the adapter served, corrected, and trained on from there.

On tiny random weights of two backbones; no flag says again what the adapter's manifest says.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from backend import brush
from backend.demo.launch import READY_TIMEOUT, is_ready
from backend.label_studio.config_template import DEMO_CONFIG
from backend.learning.holdout import NEEDED
from backend.support.child import HOST, Child, check_port
from benchmarks.waiting import wait_for
from tests.e2e.test_commands import COMMAND
from tests.family_models import KINDS, make_family
from tests.public_sets import refer_root, reference
from tests.published_models import write_qwen_vl_chat

WIDTH, HEIGHT = 96, 64


def qwen_2_5_vl(folder: Path) -> Path:
    make_family(KINDS["Qwen2.5-VL"], folder / "model")
    return folder / "model"


def qwen_vl_chat(folder: Path) -> Path:
    """As first published, converted."""
    write_qwen_vl_chat(folder / "published")
    command("models", "convert", folder / "published", folder / "model")
    return folder / "model"


def command(*arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], env=os.environ | environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@contextmanager
def served(home: Path, *arguments: str) -> Iterator[str]:
    """The address of a server that was started by the command, ready."""
    url = f"http://{HOST}:{check_port(0)}"
    (home.parent / "plan.toml").write_text("steps = 1\nbatch = 2\n")
    own = {"SAM4MLLM_HOME": str(home), "SAM4MLLM_PORT": url.rpartition(":")[2], "SAM4MLLM_TRAIN_CONFIG": str(home.parent / "plan.toml")}
    server = Child("the server", [COMMAND, *arguments], os.environ | own, home.parent / "log")
    try:
        server.wait_until(lambda: is_ready(url), READY_TIMEOUT, lambda _: None)
        yield url
    finally:
        server.stop()


def photo(number: int) -> str:
    """A picture as the address of its data."""
    file = io.BytesIO()
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), (number, 40, 0), np.uint8)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def correction(number: int, picture: str) -> dict[str, Any]:
    """A mask drawn by hand, as Label Studio tells of it."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[10:40, 10 : 40 + number] = True
    region = {
        "id": f"r{number}",
        "type": "brushlabels",
        "from_name": "mask",
        "to_name": "image",
        "origin": "manual",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "value": {"format": "rle", "rle": brush.encode(mask), "brushlabels": ["Object"]},
    }
    drawn = {"id": number, "task": number, "project": 1, "result": [region], "was_cancelled": False, "completed_by": 1}
    times = dict.fromkeys(("created_at", "updated_at"), "2026-01-01T00:00:00Z")
    return {
        "action": "ANNOTATION_CREATED",
        "annotation": drawn | times,
        "task": {"id": number, "data": {"image": picture, "description": "the left cup"}},
        "project": {"id": 1, "title": "cups", "label_config": DEMO_CONFIG},
    }


def correct(url: str) -> None:
    """As many corrections as a run takes to be judged."""
    for number in range(1, NEEDED + 1):
        assert httpx.post(f"{url}/webhook", json=correction(number, photo(number))).status_code == 201


def refer(folder: Path) -> Path:
    """REFER's sets in small; what one tests on is trained on in none."""
    references = [reference(1, 1, ["the left cup", "a cup"]), reference(2, 2, ["right cup"], "testA", 2)]
    refer_root(folder)
    for name in ("refcoco", "refcoco+"):
        (folder / name / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("make", [pytest.param(qwen_2_5_vl, id="Qwen2.5-VL"), pytest.param(qwen_vl_chat, id="Qwen-VL-Chat")])
def test_from_public_data_to_a_run_that_goes_on(make: Callable[[Path], Path], tmp_path: Path) -> None:
    model, home, data = make(tmp_path), tmp_path / "home", tmp_path / "data"
    refer(tmp_path / "refer")
    for name in ("refcoco", "refcoco+"):
        command("data", "prepare", name, tmp_path / "refer", data / name)
    command("data", "merge", data / "all", data / "refcoco", data / "refcoco+")
    adapter = tmp_path / "adapter"
    command("train", data / "all", "--out", adapter, "--config", "paper", "--model", model, "--segmenter", "demo")
    papers = json.loads((adapter / "manifest.json").read_text())
    assert (papers["base_model"], papers["points"], papers["plan"]["rank"]) == (str(model), "joint", 256)

    figures = json.loads(command("evaluate", data / "refcoco", "--split", "testA", "--adapter", adapter, "--json"))
    assert (figures["count"], figures["strategy"]) == (1, "pqpp")
    command("adapters", "add", adapter, "--promote", "--home", home)
    with served(home, "serve", "--adapter", str(adapter)) as url:
        [champion] = json.loads(command("adapters", "list", "--json", "--home", home))["versions"]
        answer = httpx.post(
            f"{url}/predict",
            json={"tasks": [{"id": 1, "data": {"image": photo(99), "description": "the left cup"}}], "label_config": DEMO_CONFIG},
            timeout=100,
        )
        assert answer.status_code == 200, answer.text
        [prediction] = answer.json()["results"]  # random weights may write nothing that can be read: then nothing is stored
        assert not prediction or prediction["model_version"] == champion["version"]
        told = httpx.post(f"{url}/setup", json={"project": "1.1", "schema": DEMO_CONFIG}).json()
        assert told["model_version"] == champion["version"]
        correct(url)
        assert httpx.post(f"{url}/api/runs", json={}).status_code < 300
        run = wait_for("the end of the run", lambda: ended(url), 300, 0.5)
        assert run["state"] in ("promoted", "kept", "postponed"), run
    job = json.loads(next((home / "runs").glob("*/job.json")).read_text())
    assert Path(job["start"]) == (home / "adapters" / champion["version"]).resolve()
    made = json.loads((home / "adapters" / run["challenger"] / "manifest.json").read_text())
    assert made["base_sha256"] == papers["base_sha256"]
    assert json.loads((Path(job["start"]) / "adapter_config.json").read_text())["r"] == 256


def ended(url: str) -> dict[str, Any] | None:
    runs = httpx.get(f"{url}/api/runs").json()
    runs = runs["runs"] if isinstance(runs, dict) else runs
    return next((run for run in runs if run["state"] not in ("waiting", "preparing", "training", "deciding")), None)
