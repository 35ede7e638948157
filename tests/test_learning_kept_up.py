"""Runs that are broken off, resumed, ended or refused."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest

from backend.corrections.log import CorrectionLog
from backend.errors import LearningError
from backend.learning.conductor import Conductor
from backend.learning.job import TrainingJob
from backend.learning.runs import Run
from backend.learning.snapshot import HOLDOUT
from backend.web.app import create_app
from sam4mllm.durable import remove
from sam4mllm.training.asking import Asking
from tests.backend_fakes import CONFIG
from tests.test_learning import ManyImages, Start, correct, ended, event, tell


@pytest.fixture(autouse=True)
def many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.learning_fakes.FakeImages", ManyImages)


def test_a_run_that_the_servers_end_broke_off_goes_on_after_the_next_start(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "60")
    place = start()
    correct(place.service, 60)
    run = place.service.learner.ask("test")
    starts = place.service.learner.runs.folder(run.id).path / "starts"
    end = time.monotonic() + 30
    while not starts.exists() and time.monotonic() < end:
        time.sleep(0.05)
    place.service.close(10)
    left = place.service.learner.runs.load(run.id)
    assert left is not None
    assert left.state == "training"

    monkeypatch.setenv("FAKE_SECONDS", "0")
    again = start()
    assert ended(again.service).state == "promoted"
    assert len(starts.read_text().splitlines()) == 2


def test_a_run_that_never_ends_fails_in_the_end(start: Start, tmp_path: Path) -> None:
    place = start()
    correct(place.service, 60)
    place.service.close(5)
    run = place.service.learner.runs.create("test")
    place.service.learner.runs.save(run, state="training", attempts=3, counts={"train": 48, HOLDOUT: 12})
    again = start()
    assert ended(again.service).state == "failed"


def test_pause_takes_the_models_away_and_brings_them_back(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "1.5")
    place = start(train_mode="pause")
    correct(place.service, 60)
    run = place.service.learner.ask("test")
    client = create_app(place.service).test_client()
    end = time.monotonic() + 30
    while not place.service.learner.runs.folder(run.id).read_progress() and time.monotonic() < end:
        time.sleep(0.02)
    body = {"tasks": [{"id": 1, "data": {"image": "1-100x80.png"}}], "project": "1.1", "label_config": CONFIG}
    refused = client.post("/predict", json=body, base_url="http://127.0.0.1")
    assert refused.status_code == 503
    assert "Retry-After" in refused.headers
    assert place.loader.away_from_device
    assert client.get("/health", base_url="http://127.0.0.1").status_code == 200

    assert ended(place.service).state == "promoted"
    assert not place.loader.away_from_device
    assert client.post("/predict", json=body, base_url="http://127.0.0.1").status_code == 200


def test_what_cannot_be_learned_from_is_counted_with_its_reason(start: Start) -> None:
    place = start()
    correct(place.service, 60)
    broken = event(61)
    broken["annotation"]["result"][0]["value"]["rle"] = [1, 2, 3]
    other = event(62)
    other["annotation"]["result"][0]["value"]["brushlabels"] = ["Unheard"]
    for body in (broken, other):
        tell(place.service, body)
    place.service.learner.ask("test")
    run = ended(place.service)
    assert run.counts["refused"] == 2
    refused = json.loads(place.service.learner.runs.folder(run.id).refused.read_text())
    assert {number for number, _ in refused} == {61, 62}


def test_a_full_disk_costs_neither_the_server_nor_what_it_acknowledged(start: Start) -> None:
    place = start()
    correct(place.service, 3)
    connection = place.service.corrections._connection
    connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
    client = create_app(place.service).test_client()
    refused = 0
    for number in range(4, 60):
        answer = client.post("/webhook", json=event(number), base_url="http://127.0.0.1")
        assert answer.status_code in (201, 507)
        refused += answer.status_code == 507
    assert refused
    assert len(place.service.corrections.events()) == 59 - refused
    body = {"tasks": [{"id": 1, "data": {"image": "1-100x80.png"}}], "project": "1.1", "label_config": CONFIG}
    assert client.post("/predict", json=body, base_url="http://127.0.0.1").status_code == 200


def test_a_run_whose_record_cannot_be_written_is_taken_up_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.learning.conductor.RETRY_SECONDS", 0.1)
    place = start()
    correct(place.service, 60)
    runs, failures = place.service.learner.runs, [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only")]
    save = runs.save

    def full(run: Run, **changes: Any) -> Run:
        if failures and changes.get("state") in ("training", "preparing"):
            raise failures.pop()
        return save(run, **changes)

    monkeypatch.setattr(runs, "save", full)
    place.service.learner.ask("test")
    assert ended(place.service).state == "promoted"
    assert failures == []


def test_a_full_disk_as_a_run_ends_is_waited_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end cannot be written; the thread waits, and the run ends when there is room."""
    monkeypatch.setattr("backend.learning.conductor.RETRY_SECONDS", 0.1)
    place = start()
    correct(place.service, 60)
    runs, failures = place.service.learner.runs, [OSError(errno.ENOSPC, "No space left on device")] * 2
    save = runs.save

    def full(run: Run, **changes: Any) -> Run:
        if failures and changes.get("state") == "failed":
            raise failures.pop()
        return save(run, **changes)

    def refuse(*_: Any, **__: Any) -> None:
        raise LearningError("this run cannot be; try another")

    monkeypatch.setattr(runs, "save", full)
    monkeypatch.setattr(place.service.learner._conductor, "_train", refuse)
    place.service.learner.ask("test")
    run = ended(place.service)
    assert (run.state, run.message) == ("failed", "this run cannot be; try another")
    assert failures == []


def test_the_button_outlives_a_kill(start: Start) -> None:
    """It was pressed, acknowledged, and the server was gone before it began anything."""
    place = start()
    correct(place.service, 60)
    place.service.close(5)
    log = CorrectionLog(place.service.settings.home / "corrections.sqlite")
    log.store({"action": "START_TRAINING", "project": {"id": 1}})
    log.close()
    again = start()
    run = ended(again.service)
    assert (run.state, run.reason) == ("promoted", "Label Studio's Start Training")
    time.sleep(2.5)
    assert len(again.service.learner.runs.all()) == 1


def test_a_run_goes_on_from_the_champion(start: Start) -> None:
    place = start()
    correct(place.service, 60)
    jobs = []
    for number in (1, 2):
        run = place.service.learner.ask(f"test {number}")
        assert ended(place.service, number).state == "promoted"
        jobs.append(TrainingJob.read(place.service.learner.runs.folder(run.id)))
    first = place.service.versions.registry.versions()[0].version
    assert jobs[0].start is None
    assert (jobs[0].asking, jobs[1].asking) == (Asking(), None)
    assert jobs[1].start == jobs[1].champion == str(place.service.versions.registry.path(first).resolve())


def test_a_champion_whose_folder_is_gone_stops_no_run(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    place = start()
    version = place.add()
    place.service.versions.registry.promote(version)
    remove(place.service.versions.registry.path(version))
    correct(place.service, 60)
    place.service.learner.ask("test")
    assert ended(place.service).state == "promoted"
    assert sum(f"no version {version}" in line for line in caplog.messages) <= 2


def test_a_stopped_process_is_started_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops a service stops its training process, too, perhaps first."""
    monkeypatch.setenv("FAKE_EXIT_ONCE", "3")
    place = start()
    correct(place.service, 60)
    run = place.service.learner.ask("test")
    assert ended(place.service).state == "promoted"
    assert len((place.service.learner.runs.folder(run.id).path / "starts").read_text().splitlines()) == 2


def test_restarts_are_no_attempts(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in range(4):
        monkeypatch.setenv("FAKE_SECONDS", "60")
        place = start(train_mode="pause")
        if not count:
            correct(place.service, 60)
            run = place.service.learner.ask("test")
        starts = place.service.learner.runs.folder(run.id).path / "starts"
        end = time.monotonic() + 30
        while (not starts.exists() or len(starts.read_text().splitlines()) <= count) and time.monotonic() < end:
            time.sleep(0.02)
        place.service.close(10)
        left = place.service.learner.runs.load(run.id)
        assert left is not None
        assert (left.state, left.attempts) == ("training", 0)


def test_the_models_are_away_while_the_new_version_is_tried(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    place = start(train_mode="pause")
    seen: list[bool] = []
    run_process = Conductor._run_process

    def watched(self: Conductor, name: str, *arguments: Any) -> int:
        if name == "smoke":
            seen.append(place.loader.away_from_device)
        return run_process(self, name, *arguments)

    monkeypatch.setattr(Conductor, "_run_process", watched)
    correct(place.service, 60)
    place.service.learner.ask("test")
    assert ended(place.service).state == "promoted"
    assert seen == [True]


def test_a_process_that_hangs_is_ended(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "60")
    monkeypatch.setattr("backend.learning.conductor.COMPARISON_SECONDS", 0.5)
    plan = tmp_path / "plan.toml"
    plan.write_text("budget_seconds = 0.6")
    place = start(train_config=str(plan))
    correct(place.service, 60)
    place.service.learner.ask("test")
    run = ended(place.service)
    assert run.state == "failed"
    assert "took longer than" in run.message


def test_copies_of_one_picture_are_too_few_to_judge(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty-one tasks of the same picture are one picture."""
    read = ManyImages.read
    monkeypatch.setattr(ManyImages, "read", lambda self, reference, task: read(self, reference, min(task or 0, 10)))
    place = start()
    correct(place.service, 40)
    place.service.learner.ask("test")
    run = ended(place.service)
    assert run.state == "postponed"
    assert run.message == "10 corrected pictures, 10 held out, about 10 more until a run can be judged"
