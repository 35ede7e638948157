"""What is read bit by bit is what is read as a whole, whatever happens to the log in between; and little is read for little news."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.corrections.log import CorrectionLog
from backend.corrections.log_faults import LogError
from backend.corrections.review_book import ReviewBook
from backend.corrections.reviews import Refused, Review, key_of, read_one, read_reviews
from backend.errors import LearningError
from backend.learning.participants import Participants
from tests.review_fakes import CONFIG, PROJECT, blob, created, event, region, served

OTHER_CONFIG = CONFIG.replace('value="Cup"', 'value="Mug"')


def number(one: Review | Refused) -> int:
    return one.annotation


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
            found, fresh = book.read(), ReviewBook(log, "description")
            whole = fresh.read()
            assert state_of(found.reviews) == state_of(whole.reviews)
            assert sorted(found.refused, key=number) == sorted(whole.refused, key=number)
            assert list(book.with_masks(found.reviews)) == list(fresh.with_masks(whole.reviews))
            assert {one.annotation for one in whole.reviews} == {one.annotation for one in read_reviews(log, "description").reviews}
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

    def locked(*asked: float) -> Any:
        if asked[-1] != 1:
            raise LogError("it is locked", "busy")
        return False

    with monkeypatch.context() as patch:
        patch.setattr(log, "withheld", locked)
        with pytest.raises(LogError):
            book.read()
    assert [one.annotation for one in book.read().reviews] == [1, 2, 3]
    step(log, "delete", 1, 1, other=False)
    with monkeypatch.context() as patch:
        patch.setattr(log, "touched", locked)
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


# -- renamed labels ------------------------------------------------------------------------------------------------------------------------


def labels(*values: str) -> str:
    shown = "".join(f'<Label value="{value}"/>' if "=" not in value else _aliased(value) for value in values)
    return f'<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image">{shown}</BrushLabels></View>'


def _aliased(value: str) -> str:
    name, alias = value.split("=")
    return f'<Label value="{name}" alias="{alias}"/>'


@pytest.mark.parametrize(
    ("later", "told", "found"),
    [
        pytest.param([labels("Mug", "Dog")], {}, ("Mug", "Mug"), id="one went and one came"),
        pytest.param([labels("Mug", "Dog"), labels("Mug", "Hound")], {}, ("Mug", "Mug"), id="another one later"),
        pytest.param([labels("Mug", "Dog"), labels("Beaker", "Dog")], {}, ("Beaker", "Beaker"), id="twice"),
        pytest.param([labels("Mug=Cup", "Hound")], {}, ("Mug", "Mug"), id="the former name is an alias"),
        pytest.param([labels("Cup=mug", "Dog"), labels("mug", "Hound")], {}, ("mug", "mug"), id="the alias becomes the name"),
        pytest.param([labels("Cup=mug", "Dog")], {}, ("Cup", "Cup"), id="an alias is added"),
        pytest.param([labels("Mug", "Hound")], {}, ("Cup", "Cup"), id="two went and two came: not known"),
        pytest.param([labels("Mug", "Hound")], {"Cup": "Mug"}, ("Mug", "Mug"), id="unless it is told"),
        pytest.param([labels("Mug", "Dog")], {"Cup": "Dog"}, ("Dog", "Dog"), id="what is told goes before"),
        pytest.param([labels("Dog")], {}, ("Cup", "Cup"), id="one went"),
        pytest.param([labels("Fork", "Dog")], {"Cup": ""}, ("Cup", "Cup"), id="another thing, as it is told"),
        pytest.param([labels("Mug", "Dog"), labels("Mug", "Dog", "Cup")], {}, ("Cup", "Cup"), id="the name is there again"),
        pytest.param([labels("Mug", "Dog"), "<View", labels("Mug", "Hound")], {}, ("Mug", "Mug"), id="a broken config between"),
    ],
)
def test_a_renamed_label_is_followed(tmp_path: Path, later: list[str], told: dict[str, str], found: tuple[str, str]) -> None:
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    book = ReviewBook(log, "description", renamed={PROJECT: told})
    drawn = region("a", blob(3), origin="manual")
    log.store(created(drawn, phrase=None, config=labels("Cup", "Dog")))
    assert told or [(one.label, one.phrase) for one in book.read().reviews] == [("Cup", "Cup")]
    for config in later:
        log.note_config(PROJECT, config)
        reviews = book.read().reviews
    assert [(one.label, one.phrase) for one in reviews] == [found]
    assert [(one.label, one.phrase, len(one.instances)) for one in book.with_masks(reviews)] == [(*found, 1)]
    log.close()


def test_a_description_stays_what_it_is_when_its_label_is_renamed(tmp_path: Path) -> None:
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    log.store(created(region("a", blob(3), origin="manual"), phrase="the left cup", config=labels("Cup", "Dog")))
    log.note_config(PROJECT, labels("Mug", "Dog"))
    assert [(one.label, one.phrase) for one in ReviewBook(log, "description").read().reviews] == [("Mug", "the left cup")]
    log.close()


def test_of_a_picture_labelled_before_and_after_a_renaming_the_last_review_stands(tmp_path: Path) -> None:
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    log.store(created(region("a", blob(3), origin="manual"), phrase=None, config=labels("Cup", "Dog")))
    log.note_config(PROJECT, labels("Mug", "Dog"))
    mug = region("b", blob(4), label="Mug", origin="manual")
    log.store(created(mug, phrase=None, config=labels("Mug", "Dog"), number=2, updated=1_795_396_999.0))
    assert [(one.annotation, one.phrase) for one in ReviewBook(log, "description").read().reviews] == [(2, "Mug")]
    log.close()


def test_a_mapping_of_unknown_labels_is_one_line_and_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    log.store(created(region("a", blob(3), origin="manual"), phrase=None, config=labels("Cup", "Dog")))
    book = ReviewBook(log, "description", renamed={PROJECT: {"Spoon": "Dog", "Cup": "Fork"}})
    assert [one.label for one in book.read().reviews] == ["Cup"]
    book.read()
    [line] = [record.getMessage() for record in caplog.records]
    assert line == "SAM4MLLM_RENAMED names labels that project 3 does not have: ['Fork', 'Spoon']"
    log.close()


def test_two_projects_with_one_label_name_are_not_mixed(tmp_path: Path) -> None:
    """A label is renamed in its own project alone."""
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    log.store(created(region("a", blob(3), origin="manual"), phrase=None, config=labels("Cup", "Dog")))
    other = created(region("b", blob(3), origin="manual"), phrase=None, config=labels("Cup", "Dog"), number=2)
    for part in (other["task"], other["annotation"]):
        part |= {"project": 9}
    other["task"]["id"] = other["annotation"]["task"] = 77
    other["project"]["id"] = 9
    log.store(other)
    log.note_config(PROJECT, labels("Mug", "Dog"))
    assert {(one.project, one.label) for one in ReviewBook(log, "description").read().reviews} == {(PROJECT, "Mug"), (9, "Cup")}
    log.close()


def test_whom_nothing_is_learned_from(tmp_path: Path) -> None:
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    for number, reviewer in ((1, 7), (2, 8)):
        log.store(
            created(region(f"r{number}", blob(3), origin="manual"), number=number, task=number, completed_by=reviewer, updated_by=None)
        )
    participants = Participants(tmp_path, ["reviewer:8"])
    book = ReviewBook(log, "description", is_left_out=participants.is_left_out)
    assert [[one.reviewer for one in some] for some in (book.read().reviews, book.read().left_out)] == [[7], [8]]
    participants.leave_out("project:3")
    assert not book.read().reviews
    assert [one.name for one in Participants(tmp_path).survey([]) if one.left_out] == ["project:3"], "it outlives a restart"
    participants.take_in("project:3")
    assert [one.reviewer for one in book.read().reviews] == [7]
    with pytest.raises(LearningError, match="SAM4MLLM_LEAVE_OUT"):
        participants.take_in("reviewer:8")
    for name in ("", "reviewer:x", "project:1\n", "../3"):
        with pytest.raises(LearningError, match="project:3"):
            participants.leave_out(name)
    found = participants.survey([*book.read().reviews, *book.read().left_out])
    assert [(one.name, one.reviews, one.left_out, one.fixed) for one in found] == [
        ("project:3", 2, False, False),
        ("reviewer:7", 1, False, False),
        ("reviewer:8", 1, True, True),
    ]
    (tmp_path / "left-out.json").write_text('{"a": 1}')
    with pytest.raises(LearningError, match="damaged"):
        Participants(tmp_path)
    log.close()


def test_leaving_one_out_leaves_the_work_of_others_in(tmp_path: Path) -> None:
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    for number, reviewer in ((1, 7), (2, 8)):
        who = {"completed_by": reviewer, "updated_by": None, "updated": 1_795_396_688.0 + number}
        log.store(created(region(f"r{number}", blob(3), origin="manual"), number=number, **who))
    out = Participants(tmp_path, ["reviewer:8"])
    found = ReviewBook(log, "description", is_left_out=out.is_left_out).read()
    assert ([one.reviewer for one in found.reviews], found.left_out) == ([7], [])
    assert [one.reviewer for one in ReviewBook(log, "description").read().reviews] == [8]
    log.close()


def test_two_labels_of_an_annotation_that_became_one_are_one(tmp_path: Path) -> None:
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    both = [region("a", blob(3), origin="manual"), region("b", blob(15), label="Mug", origin="manual")]
    log.store(created(*both, phrase=None, config=labels("Cup", "Mug")))
    book = ReviewBook(log, "description", renamed={PROJECT: {"Cup": "Mug"}})
    found = book.read().reviews
    assert [(one.label, one.phrase) for one in found] == [("Mug", "Mug")]
    assert [len(one.instances) for one in book.with_masks(found)] == [2]
    log.note_config(PROJECT, labels("Mug", "Dog"))
    assert [one.label for one in book.read().reviews] == ["Mug"], "it is forgotten and read again"
    log.close()


def test_a_phrase_follows_its_labels_alias(tmp_path: Path) -> None:
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    coffee = region("a", blob(3), label="coffee cup", origin="manual")
    log.store(created(coffee, phrase=None, config=labels("c1=coffee cup", "c2=dog")))
    log.note_config(PROJECT, labels("c1=espresso cup", "c2=dog"))
    assert [(one.label, one.phrase) for one in ReviewBook(log, "description").read().reviews] == [("c1", "espresso cup")]
    log.close()
