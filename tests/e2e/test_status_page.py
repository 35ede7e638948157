"""The status page in Chromium, with hundreds of runs: read at two widths, worked by its buttons, with and without JavaScript."""

from __future__ import annotations

import math
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

from backend.learning.agreement import ReviewedAnswer
from backend.web.app import create_app
from backend.web.overview import SHOWN_RUNS
from benchmarks.waiting import wait_for
from tests.e2e.editor import OVERFLOW, WIDTHS
from tests.learning_fakes import School, school
from tests.test_learning import ManyImages, correct

RUNS, VERSIONS, REVIEWS = 200, 50, 3000
LOAD_SECONDS = 1.0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[School]:
    """A service that has learned for years, with a training process that takes some seconds."""
    monkeypatch.setattr("tests.learning_fakes.FakeImages", ManyImages)
    monkeypatch.setenv("FAKE_SECONDS", "4")
    made = school(tmp_path, (sys.executable, "-m", "tests.fake_trainer"))
    runs, dice = made.service.learner.runs, random.Random(7)
    versions = [made.add(number / 100) for number in range(VERSIONS)]
    for version in versions:
        made.service.versions.registry.promote(version)
    made.service.versions.sync()
    for _ in range(RUNS):
        state: Any = dice.choice(["promoted", "kept", "postponed", "failed", "stopped"])
        message = "mean IoU 0.712 → 0.731 on 84 held-out corrections, better beyond chance; no label loses more than 0.03" * (
            state != "failed"
        )
        runs.save(
            runs.create(f"{dice.randint(50, 90)} new corrections"), state=state, counts={"train": 412, "holdout": 96}, message=message
        )
    made.service.learner.judged = tuple(
        ReviewedAnswer(
            float(at), min(1.0, 0.7 + 0.2 * math.tanh(at / 900) + dice.gauss(0, 0.08)), versions[at * VERSIONS // REVIEWS], dice.random()
        )
        for at in range(REVIEWS)
    )
    yield made
    made.service.close(5)


@pytest.fixture
def url(place: School) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, create_app(place.service), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join(5)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_within_a_second_and_fits(browser: Any, url: str, width: int, scheme: Any, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(url)  # the template is compiled, and Chromium has started
    took = []
    for _ in range(3):
        page.goto(url, wait_until="load")
        took.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000)
    assert min(took) <= LOAD_SECONDS, took
    assert page.evaluate(OVERFLOW) == 0
    assert page.locator("table.runs tbody tr").count() == SHOWN_RUNS
    page.get_by_text("40 older versions").click()
    assert page.evaluate(OVERFLOW) == 0
    page.screenshot(path=tmp_path / f"status-{width}-{scheme}.png", full_page=True)
    page.close()
    assert problems == []


def test_train_progress_promote_and_roll_back(browser: Any, url: str, place: School) -> None:
    correct(place.service, 60)
    former = place.serving
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(url)
    page.get_by_role("button", name="Train now").click()
    page.get_by_role("status").get_by_text("A run begins").wait_for()
    # nothing is loaded by hand from here on: the page follows by itself
    page.get_by_text("training 1 of 2").wait_for(timeout=20_000)
    assert page.get_by_role("progressbar").get_attribute("value") == "1"
    page.locator("svg[aria-label='The training loss by step'] polyline").first.wait_for()
    page.get_by_role("link", name=f"run-{RUNS + 1:06d}").first.wait_for(timeout=40_000)
    page.get_by_role("img", name="the mask after").first.wait_for()
    page.wait_for_function("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    challenger = place.serving
    assert challenger not in (None, former)
    page.get_by_role("button", name=f"Roll back to {former}").click()
    page.get_by_role("status").get_by_text("serves again").wait_for()
    assert place.serving == former
    page.get_by_role("button", name=f"Promote {challenger}").click()
    page.get_by_role("status").get_by_text("The version serves").wait_for()
    assert place.serving == challenger
    page.close()


def test_a_run_is_stopped(browser: Any, url: str, place: School, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "60")
    correct(place.service, 60)
    page = browser.new_page()
    page.goto(url)
    page.get_by_role("button", name="Train now").click()
    page.get_by_text("training 1 of 2").wait_for(timeout=20_000)
    page.get_by_role("button", name=f"Stop run-{RUNS + 1:06d}").click()
    wait_for("the run's end", lambda: place.service.learner.runs.all()[0].state == "stopped", 40)
    page.get_by_role("button", name="Train now").wait_for(timeout=20_000)
    page.close()


def test_it_is_worked_without_javascript_from_the_keyboard(browser: Any, url: str, place: School) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(url)
    reached: list[str] = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.locator(":focus").inner_text())
        if reached[-1] == "Train now":
            break
    assert reached[:5] == ["Learning", "All tasks", "Versions", "Agreement", "Requests"]
    assert reached[-1] == "Train now"
    page.keyboard.press("Enter")
    page.get_by_text("A run begins").wait_for()
    wait_for("the run", lambda: place.service.learner.runs.all()[0].reason == "asked for on the status page", 40)
    context.close()


def test_another_site_cannot_press_its_buttons(browser: Any, url: str, place: School, tmp_path: Path) -> None:
    version = place.service.versions.registry.versions()[0].version
    serving = place.serving
    trap = tmp_path / "trap.html"
    form = f"<form method=post action='{url}actions/promote'><input name=subject value={version}></form>"
    trap.write_text(f"{form}<script>document.forms[0].submit()</script>")
    page = browser.new_page()
    with page.expect_response(lambda answer: answer.request.method == "POST") as got:
        page.goto(trap.as_uri())
    assert got.value.status == 403
    assert place.serving == serving
    page.close()


def test_it_says_when_the_server_is_gone(browser: Any, url: str) -> None:
    page = browser.new_page()
    page.goto(url)
    assert page.get_by_text("The server does not answer").is_hidden()
    page.route("**/*", lambda route: route.abort())
    page.get_by_text("The server does not answer").wait_for(timeout=10_000)
    page.unroute("**/*")
    page.get_by_text("The server does not answer").wait_for(state="hidden", timeout=10_000)
    page.close()
