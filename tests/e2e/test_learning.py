"""Versions in a real Label Studio: sixty corrections make one that serves by itself, and a promotion clears away the former one's masks."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import torch

from backend.demo.local_label_studio import LocalLabelStudio
from backend.label_studio.config_template import DEMO_CONFIG
from benchmarks.learn import learn
from benchmarks.waiting import wait_for
from sam4mllm.adapters.lora import attach
from sam4mllm.adapters.manifest import Manifest
from sam4mllm.adapters.registry import Registry
from sam4mllm.adopt import Claims, adopt
from sam4mllm.grounding.families import load_checkpoint
from tests.e2e.conftest import serving
from tests.e2e.test_backend import Project, fill, save, scene

SEED = 771_001
PROMOTION_SECONDS = 900
"""At the pace of the machine of the bars; the run's two cores may be slower, or not its own."""


def store_adapter(home: Path, folder: Path) -> Manifest:
    """A new adapter of the demo model in the registry; it changes nothing yet."""
    attach(load_checkpoint("demo", torch.device("cpu")), 1, 1, 0.0).save_pretrained(str(folder), save_embedding_layers=False)
    return adopt(folder, Registry(home), Claims(model="demo", device="cpu"))


def test_after_a_promotion_label_studio_has_no_predictions_of_the_former_version(label_studio: LocalLabelStudio, tmp_path: Path) -> None:
    version = store_adapter(tmp_path / "home", tmp_path / "adapter").version
    with serving(tmp_path / "home", label_studio, SAM4MLLM_REFRESH="true") as url:
        number = label_studio.create_project("refreshed", DEMO_CONFIG)
        project = Project(label_studio, number, label_studio.connect(number, url, "SAM4MLLM"))
        one = scene(105)
        [task] = fill(project, (save(one.image, tmp_path / "a.png"), one.expressions[0].phrase))
        label_studio.retrieve_predictions(number)
        former = httpx.get(f"{url}/ready", trust_env=False).json()["version"]
        assert [prediction["model_version"] for prediction in project.predictions(task)] == [former]
        httpx.post(f"{url}/api/versions/{version}/promote", json={}, trust_env=False, timeout=60).raise_for_status()
        wait_for("the former predictions' end", lambda: not project.predictions(task), 60)
        [connected] = label_studio.api("GET", f"/api/ml?project={number}")
        assert connected["title"] == connected["model_version"] == version
        label_studio.retrieve_predictions(number)
        assert [prediction["model_version"] for prediction in project.predictions(task)] == [version]


@pytest.mark.timeout(3600)
def test_corrections_make_a_better_version(label_studio: LocalLabelStudio, tmp_path: Path) -> None:
    with serving(tmp_path / "home", label_studio) as url:
        learned = learn(label_studio, url, SEED, tmp_path)
        run = learned.run
        assert run["state"] == "promoted", run
        assert learned.seconds <= PROMOTION_SECONDS * max(1.0, learned.pace)
        assert run["counts"] == {"train": 48, "holdout": 12, "refused": 0}
        assert httpx.get(f"{url}/versions", trust_env=False).json()["versions"][0] == run["challenger"]
        assert learned.versions[-1] == run["challenger"]
        page = httpx.get(f"{url}/api/runs/{run['id']}/report", trust_env=False)
        assert page.status_code == 200
        assert run["challenger"] in page.text
