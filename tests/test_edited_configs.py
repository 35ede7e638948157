"""An annotation is read with the labelling config that it was made under, however the config is edited afterwards."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend.corrections.config_of import choose_config
from backend.corrections.log import CorrectionLog
from backend.corrections.reviews import Review, read_reviews
from backend.learning.exports import read_label_studio
from tests.backend_fakes import house
from tests.review_fakes import CONFIG, CREATED, PROJECT, TASK, annotation, blob, created, log_of, region, served, when

RENAMED = CONFIG.replace('value="Cup" alias="mug, beaker"', 'value="Vessel" alias="mug, beaker"')
SYNONYM = CONFIG.replace('alias="mug, beaker"', 'alias="mug, beaker, tumbler"')
DELETED = CONFIG.replace('<Label value="Cup" alias="mug, beaker"/>', "")
CONTROL = CONFIG.replace('name="mask"', 'name="shapes"')
OTHER_KIND = CONFIG.replace("BrushLabels", "PolygonLabels").replace('name="mask"', 'name="outline"')
EDITS = {"renamed": RENAMED, "synonym": SYNONYM, "deleted": DELETED, "control renamed": CONTROL, "another kind of control": OTHER_KIND}
edits = pytest.mark.parametrize("later", EDITS.values(), ids=EDITS.keys())

ALIAS = "mug, beaker"
"""What Label Studio writes for the label Cup."""


def edited(config: str, after: float = 60.0) -> dict[str, Any]:
    return {"action": "PROJECT_UPDATED", "project": {"id": PROJECT, "label_config": config, "updated_at": when(CREATED + after)}}


def reviews(log: CorrectionLog) -> list[Review]:
    found = read_reviews(log, "description")
    assert found.refused == []
    return found.reviews


@pytest.fixture
def given() -> list[Any]:
    return [served("a", blob(4), label="Cup")]


@edits
def test_an_edit_loses_no_review_and_unlearns_none(tmp_path: Path, given: list[Any], later: str) -> None:
    log = log_of(tmp_path, created(region("a", blob(4), ALIAS)), served=given)
    before = reviews(log)
    log.store(edited(later))
    assert reviews(log) == before
    assert [(one.phrase, one.label, one.outcome) for one in before] == [("the cup", "Cup", "accepted")]


@edits
def test_the_events_own_config_counts_when_events_come_in_another_order(tmp_path: Path, given: list[Any], later: str) -> None:
    log = log_of(tmp_path, edited(later), created(region("a", blob(4), ALIAS)), served=given)
    assert [(one.label, one.outcome) for one in reviews(log)] == [("Cup", "accepted")]


@edits
def test_labels_as_phrases_stay_what_they_were(tmp_path: Path, later: str) -> None:
    log = log_of(tmp_path, created(region("h", blob(4), "Dog", "manual"), region("i", blob(16), ALIAS, "manual"), phrase=None))
    before = [(one.phrase, one.label) for one in reviews(log)]
    log.store(edited(later))
    assert [(one.phrase, one.label) for one in reviews(log)] == before == [("Cup", "Cup"), ("Dog", "Dog")]


@edits
def test_a_lost_event_is_read_with_the_config_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[Any], later: str
) -> None:
    """It comes over the API, which says what the config is now."""
    log = log_of(tmp_path, served=given)
    made = annotation(region("a", blob(4), ALIAS))
    data = {"image": "/data/upload/3/a.png", "description": "the cup"}
    for config, noted in ((CONFIG, CREATED - 100), (later, CREATED + 100)):
        with monkeypatch.context() as then:
            then.setattr(time, "time", lambda noted=noted: noted)
            log.note_config(PROJECT, config)
    log.reconcile(PROJECT, "t", later, [{"id": TASK, "data": data, "annotations": [made]}], time.time())
    assert [(one.phrase, one.label, one.outcome) for one in reviews(log)] == [("the cup", "Cup", "accepted")]


@edits
def test_what_was_pulled_before_an_edit_is_read_with_the_config_of_that_pull(tmp_path: Path, given: list[Any], later: str) -> None:
    log = log_of(tmp_path, served=given)
    data = {"image": "/data/upload/3/a.png", "description": "the cup"}
    task = {"id": TASK, "data": data, "annotations": [annotation(region("a", blob(4), ALIAS))]}
    log.reconcile(PROJECT, "t", CONFIG, [task], time.time())
    log.reconcile(PROJECT, "t", later, [task], time.time())
    assert [one.label for one in reviews(log)] == ["Cup"]


def test_the_order_is_that_of_the_log_not_of_a_clock_that_was_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(tmp_path)
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time", lambda: CREATED + 1e8)
        log.note_config(PROJECT, CONFIG)
    log.note_config(PROJECT, SYNONYM)
    event = created(region("a", blob(4), "Dog"))
    del event["project"]["label_config"]
    log.store(event)
    [kept] = log.annotations()
    assert kept.label_configs[0] == SYNONYM
    log.close()


def test_a_prediction_with_the_old_label_that_is_accepted_later_keeps_it(tmp_path: Path, given: list[Any]) -> None:
    """Label Studio sends what it was served, under a config that no longer has it."""
    log = log_of(tmp_path, created(region("a", blob(4), ALIAS)), served=given)
    log.store(created(region("a", blob(4), "Cup"), config=DELETED, updated=CREATED + 60))
    assert [(one.label, one.outcome) for one in reviews(log)] == [("Cup", "accepted")]


def test_an_old_and_a_new_label_in_one_annotation(tmp_path: Path, given: list[Any]) -> None:
    log = log_of(tmp_path, created(region("a", blob(4), ALIAS)), served=given)
    later = CONFIG.replace('value="Cup" alias="mug, beaker"', 'value="Vessel"')
    both = created(region("a", blob(4), ALIAS), region("h", blob(16), "Vessel", "manual"), config=later, updated=CREATED + 60)
    log.store(both)
    [review] = reviews(log)
    assert (review.phrase, len(review.instances)) == ("the cup", 2)


def test_a_served_region_that_was_given_the_labels_new_name_is_of_its_phrase(tmp_path: Path, given: list[Any]) -> None:
    log = log_of(tmp_path, created(region("a", blob(4), "Vessel"), config=RENAMED.replace("mug", "cup")), served=given)
    assert [(one.phrase, one.label, one.outcome) for one in reviews(log)] == [("the cup", "Vessel", "accepted")]


def test_a_mask_of_a_control_that_no_config_has_is_not_a_deleted_one(tmp_path: Path, given: list[Any]) -> None:
    log = log_of(tmp_path, created(region("a", blob(4), ALIAS), config=CONTROL), served=given)
    found = read_reviews(log, "description")
    assert found.reviews == []
    assert [one.reason for one in found.refused] == ["a region was drawn with 'mask', which the labelling config does not have"]


def test_a_file_of_a_former_release_is_read_with_the_configs_of_its_events(tmp_path: Path, given: list[Any]) -> None:
    log = log_of(tmp_path, created(region("a", blob(4), ALIAS)), edited(RENAMED), served=given)
    log.close()
    with sqlite3.connect(tmp_path / "corrections.sqlite") as connection:
        for table in ("configs", "config_notes", "annotation_configs"):
            connection.execute(f"DROP TABLE {table}")
    connection.close()
    again = CorrectionLog(tmp_path / "corrections.sqlite")
    assert [one.label_configs for one in again.annotations()] == [(CONFIG, RENAMED)]
    assert [one.label for one in reviews(again)] == ["Cup"]


def test_the_same_event_again_under_a_later_config_changes_nothing(tmp_path: Path) -> None:
    log = log_of(tmp_path, created(region("a", blob(4), ALIAS)), created(region("a", blob(4), ALIAS), config=RENAMED))
    [kept] = log.annotations()
    assert kept.label_configs[0] == CONFIG


def test_a_config_that_cannot_be_read_gives_way_to_one_that_can(tmp_path: Path, given: list[Any]) -> None:
    log = log_of(tmp_path, created(region("a", blob(4), ALIAS)), served=given)
    log.store(created(region("a", blob(4), ALIAS), config="<View/>", updated=CREATED + 60))
    assert [one.label for one in reviews(log)] == ["Cup"]
    [kept] = log.annotations()
    assert choose_config(kept).mask.name == "mask"


def test_a_config_that_comes_back_is_noted_again(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    for config in (CONFIG, CONFIG, RENAMED, RENAMED, CONFIG):
        log.note_config(PROJECT, config)
    assert len(log._read("SELECT id FROM config_notes")) == 3
    assert len(log._read("SELECT digest FROM configs")) == 2


def test_setup_and_predictions_note_the_config(tmp_path: Path) -> None:
    where = house(tmp_path)
    try:
        for config in (CONFIG, RENAMED):
            where.service.predictor.note_config(PROJECT, config)
        assert len(where.service.corrections._read("SELECT id FROM config_notes WHERE project = ?", (PROJECT,))) == 2
        where.service.predictor.note_config(None, CONFIG)
    finally:
        where.service.close(5.0)


@edits
def test_an_export_beside_its_edited_config(tmp_path: Path, later: str) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 24)).save(tmp_path / "images" / "a.png")
    (tmp_path / "label_config.xml").write_text(later)
    data = {"image": "/data/upload/3/a.png", "description": "the cup"}
    task = {"id": 1, "project": 3, "data": data, "annotations": [annotation(region("h", blob(4), "Cup", "manual"))]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    assert [getattr(one, "phrase", one) for one in read_label_studio(tmp_path, "description").pairs] == ["the cup"]
