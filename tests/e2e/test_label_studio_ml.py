"""Our class in label-studio-ml 1.0.9's own server, behind a real Label Studio: setup, predict, and an annotation that reaches ``fit``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from backend.corrections.log import CorrectionLog
from backend.demo.local_label_studio import LocalLabelStudio
from backend.label_studio.config_template import DEMO_CONFIG
from backend.support.child import HOST, Child, check_port
from benchmarks.waiting import wait_for
from tests.e2e.test_backend import Project, fill, save, scene

ROOT = Path(__file__).parents[2]
PACKAGES = Path(os.environ.get("SAM4MLLM_LABEL_STUDIO_ML", ROOT / ".venv-label-studio-ml"))
WSGI = """
from label_studio_ml.api import init_app
from backend.plugin import Sam4mllmBackend

app = init_app(model_class=Sam4mllmBackend, model_dir="jobs")
"""


@pytest.fixture
def server(label_studio: LocalLabelStudio, tmp_path: Path) -> Iterator[str]:
    if not (PACKAGES / "label_studio_ml").is_dir():
        pytest.skip("label-studio-ml 1.0.9 is not installed: run `make label-studio-ml`")
    (tmp_path / "legacy_wsgi.py").write_text(WSGI, encoding="utf-8")
    port = check_port(0)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (PACKAGES, ROOT, tmp_path))),
        "LABEL_STUDIO_ML_BACKEND_V2": "1",
        "SAM4MLLM_HOME": str(tmp_path / "home"),
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
    }
    command = [sys.executable, "-m", "gunicorn", "--chdir", str(tmp_path), "--bind", f"{HOST}:{port}", "--threads", "8", "--timeout", "0"]
    child = Child("label-studio-ml", [*command, "legacy_wsgi:app"], environment, tmp_path / "server.log")
    url = f"http://{HOST}:{port}"

    def answers() -> bool:
        try:
            return httpx.get(url + "/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        child.wait_until(answers, 120, lambda _: None)
        yield url
    finally:
        child.stop()


@pytest.mark.timeout(1200)
def test_setup_predict_and_fit(label_studio: LocalLabelStudio, server: str, tmp_path: Path) -> None:
    number = label_studio.create_project("1.0.9", DEMO_CONFIG)
    project = Project(label_studio, number, label_studio.connect(number, server, "SAM4MLLM by label-studio-ml"))
    [one] = fill(project, (save(scene(70).image, tmp_path / "a.png"), scene(70).expressions[0].phrase))
    label_studio.retrieve_predictions(number)
    [prediction] = project.predictions(one)
    assert prediction["model_version"] == "INITIAL"
    label_studio.api("POST", f"/api/tasks/{one}/annotations/", json={"result": prediction["result"]})
    log = tmp_path / "home" / "corrections.sqlite"
    wait_for("the event", lambda: any(event.action == "ANNOTATION_CREATED" for event in CorrectionLog(log).events()), 60)
    label_studio.retrieve_predictions(number)
    assert len(project.predictions(one)) == 1, "a stored annotation must not look like a new version"
