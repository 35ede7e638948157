"""Sixty corrections in a real Label Studio, Start Training, and a version that knows three new things serves by itself."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from backend.demo import READY_TIMEOUT, is_ready, start_backend
from backend.local_label_studio import LocalLabelStudio
from backend.process import HOST, check_port
from benchmarks.learn import learn

SEED = 771_001
PROMOTION_SECONDS = 900


@pytest.mark.timeout(3600)
def test_corrections_make_a_better_version(label_studio: LocalLabelStudio, tmp_path: Path) -> None:
    port = check_port(0)
    url = f"http://{HOST}:{port}"
    backend = start_backend(tmp_path / "home", port, label_studio)
    try:
        backend.wait_until(lambda: is_ready(url), READY_TIMEOUT, print)
        learned = learn(label_studio, url, SEED, tmp_path)
        run = learned.run
        assert run["state"] == "promoted", run
        assert learned.seconds <= PROMOTION_SECONDS
        assert run["counts"] == {"train": 48, "holdout": 12, "refused": 0}
        assert httpx.get(f"{url}/versions", trust_env=False).json()["versions"][0] == run["challenger"]
        assert learned.versions[-1] == run["challenger"]
        page = httpx.get(f"{url}/api/runs/{run['id']}/report", trust_env=False)
        assert page.status_code == 200
        assert run["challenger"] in page.text
    finally:
        backend.stop()
