"""A home that an older release left is served from, learned in and rolled back in as if this one had written it."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.brush import decode
from backend.corrections.log import CorrectionLog
from backend.corrections.reviews import read_reviews
from backend.learning.snapshot import HOLDOUT
from backend.web.app import create_app
from sam4mllm.adapters.manifest import number_of
from tests.backend_fakes import CONFIG
from tests.learning_fakes import FAKE_TRAINER, PHRASE, School, mask_width, school, width
from tests.test_learning import ManyImages, ended, event, tell

HOMES = ("f2d9577",)


@pytest.fixture(params=HOMES)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what :mod:`tests.homes.make_home` made."""
    with tarfile.open(Path(__file__).parent / "homes" / f"{request.param}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "home"


@pytest.fixture
def wanted(home: Path) -> Any:
    return json.loads((home / "wanted.json").read_text(encoding="utf-8"))


@pytest.fixture
def start(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], School]]:
    monkeypatch.setattr("tests.learning_fakes.FakeImages", ManyImages)
    started: list[School] = []

    def make() -> School:
        started.append(school(home, FAKE_TRAINER))
        return started[-1]

    yield make
    for place in started:
        place.service.close(5)


def drawn(place: School) -> tuple[str, int]:
    """The version that a prediction is stamped with, and how wide its mask is: in these tests an adapter's number tells."""
    task = {"id": 7, "data": {"image": "/data/upload/7-100x80.png", "description": PHRASE}}
    body = {"tasks": [task], "project": "1.1", "label_config": CONFIG}
    answer = create_app(place.service).test_client().post("/predict", json=body, base_url="http://127.0.0.1").json
    assert answer is not None
    [prediction] = answer["results"]
    [mask] = [one for one in prediction["result"] if one["type"] == "brushlabels"]
    alpha = decode(mask["value"]["rle"], 80, 100)
    return prediction["model_version"], mask_width(alpha > 0)


def test_its_reviews_are_what_they_were(home: Path, wanted: Any) -> None:
    log = CorrectionLog(home / "corrections.sqlite")
    try:
        reviews = read_reviews(log, "description")
    finally:
        log.close()
    said = [json.loads(json.dumps(dataclasses.asdict(one))) for one in reviews.reviews]
    assert [{name: one[name] for name in former} for one, former in zip(said, wanted["reviews"], strict=True)] == wanted["reviews"]
    assert not reviews.refused


def test_its_champion_serves_under_its_number(start: Callable[[], School], wanted: Any) -> None:
    place = start()
    version, wide = drawn(place)
    assert place.serving == wanted["champion"]
    assert wide == width(2)
    assert version == place.service.version
    assert version.startswith("demo-2-")
    assert {run.id: run.state for run in place.service.learner.runs.all()} == wanted["runs"]


def test_it_learns_on_from_its_champion(start: Callable[[], School], wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VALUE", "0.75")
    place = start()
    tell(place.service, event(201, updated_at="2099-01-02T00:00:00Z"))
    tell(place.service, {"action": "START_TRAINING", "project": {"id": 1}})
    run = ended(place.service, 5)
    assert run.state == "promoted", run
    assert number_of(run.champion) == number_of(wanted["champion"])
    assert run.counts["train"] + run.counts[HOLDOUT] == len(wanted["reviews"]) + 1
    assert place.service.versions.registry.show(run.challenger).parent == wanted["champion"]
    assert drawn(place)[1] == width(4)  # the third was kept out


def test_it_goes_back_to_what_served_before(start: Callable[[], School], wanted: Any) -> None:
    place = start()
    assert place.service.versions.registry.before() == wanted["history"]
    place.service.versions.rollback()
    assert place.serving == wanted["history"][0]
    assert drawn(place)[1] == width(1)
    place.service.versions.rollback()
    assert place.serving is None
    assert drawn(place)[1] == width(0)


def test_a_run_that_the_update_interrupted_comes_to_its_decision(home: Path, start: Callable[[], School], wanted: Any) -> None:
    record = home / "runs" / "run-000004" / "run.json"
    failed = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(
        json.dumps({**failed, "state": "training", "message": "", "ended": None, "champion": wanted["champion"]}), encoding="utf-8"
    )
    place = start()
    run = ended(place.service, 4)
    assert run.state == "promoted", run
    assert place.serving == run.challenger
