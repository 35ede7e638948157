"""The page to try on, in Chromium, with the demo models and a real Label Studio. Screenshots are left in ``out/e2e``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pace import pace
from tests.e2e.conftest import BackendServer
from tests.e2e.editor import OVERFLOW, SHOTS, WIDTHS
from tests.e2e.test_backend import Project, drawn, fill, project, save, scene

__all__ = ["project"]
SECONDS = 2.0
"""From a phrase to its mask on the page, at the pace of the machine of the bars."""


@pytest.mark.parametrize("width", WIDTHS)
def test_a_phrase_and_a_picture_of_ones_own(browser: Any, backend_server: BackendServer, tmp_path: Path, width: int) -> None:
    one = scene(100)
    picture = save(one.image, tmp_path / "a.png")
    page = browser.new_page(viewport={"width": width, "height": 900})
    took = []
    for phrase in (one.expressions[0].phrase, "the lighthouse", one.expressions[0].phrase):
        page.goto(f"{backend_server.url}/try")
        page.fill("textarea[name=phrases]", phrase)
        page.set_input_files("input[name=picture]", str(picture))
        began = time.monotonic()
        page.get_by_role("button", name="Try", exact=True).click()
        page.wait_for_selector("section.card img")
        took.append(time.monotonic() - began)
        assert page.evaluate("document.querySelector('section.card img').naturalWidth") > 300
    page.screenshot(path=SHOTS / f"try-{width}.png", full_page=True)
    assert page.evaluate(OVERFLOW) <= 0
    assert min(took) <= SECONDS * max(1.0, pace())
    page.close()


def test_tasks_side_by_side_and_parameters_that_are_set_and_served(
    browser: Any, project: Project, backend_server: BackendServer, tmp_path: Path
) -> None:
    scenes = [scene(index) for index in range(100, 106)]
    files = [save(one.image, tmp_path / f"{index}.png") for index, one in enumerate(scenes)]
    numbers = fill(project, *((path, one.expressions[0].phrase) for path, one in zip(files, scenes, strict=True)))
    for width in WIDTHS:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(f"{backend_server.url}/try")
        page.fill("input[name=project]", str(project.id))
        page.select_option("select[name=strategy]", "box")
        page.get_by_role("button", name="Try", exact=True).click()
        page.wait_for_selector("section.card img")
        assert page.locator("section.card img").count() == len(scenes)
        assert page.evaluate(OVERFLOW) <= 0
        page.screenshot(path=SHOTS / f"try-tasks-{width}.png", full_page=True)
        if width != WIDTHS[-1]:
            page.close()
    page.get_by_role("button", name=f"Use for project {project.id}").click()
    page.wait_for_selector("[role=status]")
    page.close()
    [entry] = project.studio.api("GET", f"/api/ml?project={project.id}")
    assert entry["extra_params"] == {"strategy": "box"}
    project.studio.retrieve_predictions(project.id)
    told = [region["meta"]["text"][0] for one in project.predictions(numbers[0]) for region in drawn(one["result"])]
    assert told
    assert all(line.endswith("by the project's parameters: strategy box") for line in told)
