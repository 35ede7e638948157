"""A bulk run from the status page, in Chromium, with the demo models and a real Label Studio. Screenshots are left in ``out/e2e``."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from tests.e2e.conftest import BackendServer
from tests.e2e.editor import OVERFLOW, SHOTS, WIDTHS
from tests.e2e.test_backend import Project, drawn, fill, project, save, scene

__all__ = ["project"]
TASKS = 12


def test_all_tasks_are_predicted_stopped_and_gone_on_with(
    browser: Any, project: Project, backend_server: BackendServer, tmp_path: Path
) -> None:
    scenes = [scene(index) for index in range(200, 200 + TASKS)]
    files = [save(one.image, tmp_path / f"{index}.png") for index, one in enumerate(scenes)]
    numbers = fill(project, *((path, one.expressions[0].phrase) for path, one in zip(files, scenes, strict=True)))

    def predicted() -> Counter[int]:
        return Counter({number: len(project.predictions(number)) for number in numbers})

    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    page.goto(f"{backend_server.url}/#bulk")
    page.fill("#bulk input[name=subject]", str(project.id))
    page.get_by_role("button", name="Predict all its tasks").click()
    stop = page.get_by_role("button", name=f"Stop the run of project {project.id}")
    stop.click(timeout=20_000)
    again = page.get_by_role("button", name=re.compile(f"with project {project.id}$"))
    again.wait_for(timeout=60_000)
    assert set(predicted().values()) <= {0, 1}
    again.click()
    page.get_by_role("progressbar", name=f"Project {project.id}").wait_for(timeout=20_000)
    page.locator("#bulk").screenshot(path=SHOTS / "bulk-running.png")
    page.get_by_text(f"{TASKS} of {TASKS} tasks").wait_for(timeout=120_000)
    page.locator("#bulk-runs .good", has_text="finished").wait_for(timeout=60_000)
    assert predicted() == dict.fromkeys(numbers, 1)
    assert any(drawn(one["result"]) for number in numbers for one in project.predictions(number))
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(OVERFLOW) <= 0
        page.locator("#bulk").screenshot(path=SHOTS / f"bulk-{width}.png")
    page.close()
