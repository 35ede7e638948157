"""From corrections to a version that serves: when a run starts, what it says, and what happens to it when the server is killed."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backend import brush
from backend.learning.holdout import is_held_out, threshold
from backend.learning.job import TrainingJob
from backend.learning.runs import Run
from backend.learning.snapshot import HOLDOUT
from backend.service import Service
from backend.support.places import place_of
from backend.web.app import create_app
from benchmarks.waiting import wait_for
from sam4mllm.images import image_sha256
from tests.backend_fakes import CONFIG, FakeImages
from tests.learning_fakes import School

Start = Callable[..., School]


def event(number: int, action: str = "ANNOTATION_CREATED", **annotation: Any) -> dict[str, Any]:
    """A correction of the task of that number: a mask drawn by hand."""
    mask = np.zeros((80, 100), np.bool_)
    mask[10:40, 10:40] = True
    region = {
        "id": f"r{number}",
        "type": "brushlabels",
        "from_name": "mask",
        "to_name": "image",
        "origin": "manual",
        "original_width": 100,
        "original_height": 80,
        "value": {"format": "rle", "rle": brush.encode(mask), "brushlabels": ["Cup"]},
    }
    body = {
        "action": action,
        "annotation": {
            "id": number,
            "task": number,
            "project": 1,
            "result": [region],
            "was_cancelled": False,
            "updated_at": "2026-01-01T00:00:00Z",
            "created_at": "2026-01-01T00:00:00Z",
            "completed_by": 1,
            **annotation,
        },
        "task": {"id": number, "data": {"image": f"/data/upload/{number}-100x80.png", "description": "the left cup"}},
        "project": {"id": 1, "title": "cups", "label_config": CONFIG},
    }
    return copy.deepcopy(body)


def tell(service: Service, body: dict[str, Any]) -> None:
    """As Label Studio does."""
    answer = create_app(service).test_client().post("/webhook", json=body, base_url="http://127.0.0.1")
    assert answer.status_code == 201, answer.json


def correct(service: Service, count: int) -> None:
    """So many corrections on images of either side; the fake's pictures of one size are all alike, so sizes tell them apart."""
    for number in range(1, count + 1):
        body = event(number)
        body["task"]["data"]["image"] = f"/data/upload/{number}-100x80.png"
        tell(service, body)


class ManyImages(FakeImages):
    """Each reference is another picture."""

    def read(self, reference: object, task_id: int | None) -> bytes:
        import io  # noqa: PLC0415

        from PIL import Image  # noqa: PLC0415

        pixels = np.full((80, 100, 3), task_id or 0, np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


@pytest.fixture(autouse=True)
def many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.learning_fakes.FakeImages", ManyImages)


def ended(service: Service, number: int = 1, seconds: float = 60) -> Run:
    """The run of that number when it is over."""

    def over() -> Run | None:
        run = service.learner.runs.load(f"run-{number:06d}")
        return run if run is not None and run.over else None

    return wait_for(f"the end of run {number}", over, seconds, 0.05)


def test_the_button_trains_and_the_better_version_serves(start: Start) -> None:
    place = start()
    correct(place.service, 60)
    tell(place.service, {"action": "START_TRAINING", "project": {"id": 1}})
    run = ended(place.service)

    assert run.state == "promoted", run
    folder = place.service.learner.runs.folder(run.id)
    wait_for("what it needs no more to be removed", lambda: not any(one.exists() for one in (folder.data, folder.adapter)), 10)
    assert folder.report_page.exists()
    assert run.counts["train"] + run.counts[HOLDOUT] == 60
    names = [image_sha256(ManyImages().read("", number)) for number in range(1, 61)]
    at = threshold(map(place_of, names))
    assert run.counts[HOLDOUT] == sum(is_held_out(name, at) for name in names) >= 10
    assert place.serving == run.challenger == place.service.version
    assert place.service.versions.registry.show(run.challenger).version == run.challenger
    page = create_app(place.service).test_client().get(f"/api/runs/{run.id}/report", base_url="http://127.0.0.1")
    assert page.status_code == 200


@pytest.mark.parametrize(
    ("allowed", "threads"),
    [
        pytest.param("5", 5, id="a number"),
        pytest.param("", 3, id="nothing: half of the cores"),
        pytest.param("0", 3, id="none at all"),
        pytest.param("4,2", 3, id="numbers for nested loops"),
    ],
)
def test_training_takes_the_threads_that_are_allowed(start: Start, monkeypatch: pytest.MonkeyPatch, allowed: str, threads: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    place = start()
    correct(place.service, 60)
    place.service.learner.ask("test")
    job = TrainingJob.read(place.service.learner.runs.folder(ended(place.service).id))
    assert job.threads == threads


def test_a_version_that_is_no_better_is_kept_out(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_GAIN", "-0.01")
    place = start()
    correct(place.service, 60)
    place.service.learner.ask("test")
    run = ended(place.service)
    assert run.state == "kept"
    assert run.decision is not None
    assert run.decision["verdict"] == "keep"
    assert place.serving is None


def test_a_version_without_a_voice_is_kept_out(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SMOKE", "1")
    place = start()
    correct(place.service, 60)
    place.service.learner.ask("test")
    assert ended(place.service).state == "kept"
    assert place.serving is None


@pytest.mark.parametrize(
    ("count", "says"),
    [pytest.param(0, "no correction to learn from", id="none"), pytest.param(4, "about 16 more until", id="few")],
)
def test_too_few_corrections_cost_no_training(start: Start, count: int, says: str) -> None:
    place = start()
    correct(place.service, count)
    place.service.learner.ask("test")
    run = ended(place.service)
    assert run.state == "postponed"
    assert says in run.message
    assert not (place.service.learner.runs.folder(run.id).path / "starts").exists()


def test_runs_start_by_themselves_after_so_many_corrections(start: Start) -> None:
    place = start(train_after=50)
    correct(place.service, 49)
    time.sleep(2.5)
    assert place.service.learner.runs.all() == []
    tell(place.service, event(50))
    run = ended(place.service)
    assert run.reason == "50 new corrections"
    time.sleep(2.5)
    assert len(place.service.learner.runs.all()) == 1


def test_asked_twice_is_one_run(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "1")
    place = start()
    correct(place.service, 60)
    for _ in range(3):
        tell(place.service, {"action": "START_TRAINING", "project": {"id": 1}})
        time.sleep(0.3)
    assert ended(place.service).state == "promoted"
    assert len(place.service.learner.runs.all()) == 1


def test_a_run_is_stopped_on_request(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "60")
    place = start()
    correct(place.service, 60)
    run = place.service.learner.ask("test")
    client = create_app(place.service).test_client()
    end = time.monotonic() + 30
    while not place.service.learner.runs.folder(run.id).read_progress() and time.monotonic() < end:
        time.sleep(0.05)
    assert client.delete(f"/api/runs/{run.id}", base_url="http://127.0.0.1").status_code == 200
    assert ended(place.service).state == "stopped"
    assert place.serving is None


def test_a_failed_process_says_why(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ERROR", "out of memory; use another device")
    place = start()
    correct(place.service, 60)
    place.service.learner.ask("test")
    run = ended(place.service)
    assert (run.state, run.message) == ("failed", "out of memory; use another device")
