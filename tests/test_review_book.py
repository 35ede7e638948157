"""What is read bit by bit is what is read as a whole, whatever happens to the log in between; and little is read for little news."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.corrections.log import CorrectionLog
from backend.corrections.log_faults import LogError
from backend.corrections.review_book import ReviewBook
from backend.corrections.reviews import Review, key_of, read_one, read_reviews
from tests.review_fakes import CONFIG, PROJECT, blob, created, event, region, served

OTHER_CONFIG = CONFIG.replace('value="Cup"', 'value="Mug"')


def state_of(reviews: list[Review]) -> list[tuple[Any, ...]]:
    return sorted((key_of(one), one.annotation, one.outcome, one.iou, one.label, one.changed, len(one.instances)) for one in reviews)


def step(log: CorrectionLog, what: str, number: int, at: int, other: bool) -> None:
    """One change; ``number`` is an annotation's, of the task with the same number."""
    task = {"task": number, "number": number, "updated": 1_795_396_688.0 + at}
    drawn = region(f"r{number}", blob(at % 8), label="Mug" if other else "Cup", origin="manual")
    match what:
        case "create":
            log.store(created(drawn, config=OTHER_CONFIG if other else CONFIG, **task))
        case "second":
            log.store(created(drawn, **{**task, "number": number + 100}))
        case "truth":
            log.store(created(drawn, ground_truth=True, **task))
        case "skip":
            log.store(created(drawn, was_cancelled=True, **task))
        case "refuse":
            log.store(created(region(f"r{number}", blob(3), label=None, origin="manual"), **task))
        case "serve":
            log.serve([served(f"r{number}", blob(at % 8), task=number, version=f"demo-{at}-00000000")])
        case "delete":
            log.store({"action": "ANNOTATIONS_DELETED", "project": {"id": PROJECT}, "annotations": [{"id": number}]})
        case "drop task":
            log.store({"action": "TASKS_DELETED", "project": {"id": PROJECT}, "tasks": [{"id": number}]})
        case "task":
            body = event("TASKS_CREATED", {"task": number}, description=f"the cup {at}")
            del body["annotation"]
            body["task"] |= {"id": number, "updated_at": body["task"]["updated_at"].replace("2026", str(2027 + at))}
            log.store(body)
        case "config":
            log.note_config(PROJECT, OTHER_CONFIG if other else CONFIG)


WHAT = st.sampled_from(("create", "second", "truth", "skip", "refuse", "serve", "delete", "drop task", "task", "config"))
CHANGES = st.lists(st.tuples(WHAT, st.integers(1, 4), st.integers(0, 9), st.booleans()), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=5))
def test_bit_by_bit_is_as_a_whole(history: list[list[tuple[str, int, int, bool]]]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        log = CorrectionLog(Path(folder) / "corrections.sqlite")
        book = ReviewBook(log, "description")
        for changes in history:
            for change in changes:
                step(log, *change)
            found, whole = book.read(), read_reviews(log, "description")
            assert state_of(found.reviews) == state_of([replace(one, instances=()) for one in whole.reviews])
            assert sorted(found.refused, key=lambda one: one.annotation) == whole.refused
            with_masks = sorted(book.with_masks(found.reviews), key=key_of)
            assert with_masks == whole.reviews
        log.close()


def test_only_what_changed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    for number in range(1, 6):
        step(log, "create", number, 1, other=False)
    book, read = ReviewBook(log, "description"), []

    def noted(stored: Any, *rest: Any) -> Any:
        read.append(stored.id)
        return read_one(stored, *rest)

    monkeypatch.setattr("backend.corrections.review_book.read_one", noted)
    book.read()
    book.read()
    assert read == [1, 2, 3, 4, 5]
    step(log, "serve", 2, 1, other=False)
    step(log, "create", 9, 1, other=False)
    book.read()
    assert read[5:] == [2, 9]
    log.note_config(PROJECT, OTHER_CONFIG)
    book.read()
    assert sorted(read[7:]) == [1, 2, 3, 4, 5, 9]
    log.close()


def test_a_look_that_broke_off_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    for number in (1, 2, 3):
        step(log, "create", number, 1, other=False)
    book = ReviewBook(log, "description")
    with monkeypatch.context() as patch:
        patch.setattr(
            log, "withheld", lambda project, task: (_ for _ in ()).throw(LogError("it is locked", "busy")) if task == 2 else False
        )
        with pytest.raises(LogError):
            book.read()
    assert [one.annotation for one in book.read().reviews] == [1, 2, 3]
    step(log, "delete", 1, 1, other=False)
    with monkeypatch.context() as patch:
        patch.setattr(log, "touched", lambda since: (_ for _ in ()).throw(LogError("it is locked", "busy")))
        with pytest.raises(LogError):
            book.read()
    assert [one.annotation for one in book.read().reviews] == [2, 3]
    log.close()


def test_masks_of_what_changed_meanwhile_are_left_out(tmp_path: Path) -> None:
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    for number in (1, 2):
        step(log, "create", number, 1, other=False)
    book = ReviewBook(log, "description")
    reviews = book.read().reviews
    step(log, "create", 1, 2, other=False)
    assert [one.annotation for one in book.with_masks(reviews)] == [2]
    log.close()
