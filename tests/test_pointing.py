"""Clicks in a task whose masks are on the screen: what is refined, under which id, and what stands alone; and what is learned of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.corrections.log import CorrectionLog
from backend.corrections.log_faults import LogError
from backend.corrections.reviews import Review, read_reviews
from backend.label_studio.region_ids import alone_id, refined_ids, stands_alone, superseded
from backend.label_studio.wire import PredictRequest
from backend.learning.exports import read_label_studio
from sam4mllm.data.pairs import LeftOut, PhrasedPicture
from tests.backend_fakes import CONFIG, House, house, task
from tests.public_sets import picture
from tests.review_fakes import blob, created, decoded, log_of, region, served
from tests.test_predictor import drawn, keypoint, mask, rectangle, text

OUTLINES = CONFIG.replace("BrushLabels", "PolygonLabels")
ONE_LABEL = CONFIG.replace('<Label value="Dog"/>', "")


@pytest.fixture
def where(tmp_path: Path) -> Iterator[House]:
    opened = house(tmp_path)
    yield opened
    opened.service.close(5.0)


def ask(where: House, asked: dict[str, Any], *context: dict[str, Any], config: str = ONE_LABEL) -> dict[str, Any]:
    request = PredictRequest([asked], 3, config, context or None)
    [answer] = [json.loads(one) for one in where.service.predictor.predict(request)]
    return dict(answer)


def opened(where: House, config: str = ONE_LABEL, **data: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A task with its prediction, as a click's request holds it, and the prediction's regions."""
    plain = task(**data)
    regions = ask(where, plain, config=config)["result"]
    return {**plain, "predictions": [{"result": regions}]}, regions


def line(answer: dict[str, Any]) -> str:
    return str(answer["result"][-1]["value"]["text"][0])


@pytest.mark.parametrize(
    ("click", "which"),
    [
        pytest.param(keypoint(20, 20), 0, id="on the first mask"),
        pytest.param(keypoint(70, 20), 1, id="on the second mask"),
        pytest.param(keypoint(31, 20), 0, id="on a missing part beside the first"),
        pytest.param(keypoint(20, 20, positive=False), 0, id="taken away from the first"),
        pytest.param(rectangle(8, 9, 30, 32, "Cup"), 0, id="a box around the first"),
    ],
)
def test_a_refined_instance_keeps_its_id_and_the_others_stay(where: House, click: dict[str, Any], which: int) -> None:
    shown, before = opened(where, description="all cups")
    answer = ask(where, shown, click)
    [refined] = drawn(answer)
    assert refined["id"] == before[which]["id"]
    assert "all cups: 1 refined; accept it, and it replaces the old mask" in line(answer)


def test_one_click_may_refine_two_instances(where: House) -> None:
    shown, before = opened(where, description="all cups")
    answer = ask(where, shown, keypoint(20, 20), keypoint(70, 20))
    assert [one["id"] for one in drawn(answer)] == [one["id"] for one in before]


def test_polygons_keep_their_ids_too(where: House) -> None:
    shown, before = opened(where, OUTLINES, description="the left cup")
    [refined] = drawn(ask(where, shown, keypoint(20, 20), config=OUTLINES))
    assert [refined["id"]] == [one["id"] for one in before]


@pytest.mark.parametrize(
    ("click", "prompt"),
    [
        pytest.param(keypoint(90, 90), "points", id="a click"),
        pytest.param(rectangle(80, 60, 15, 30, "Cup"), "box", id="a box"),
    ],
)
def test_what_is_pointed_at_elsewhere_stands_alone(where: House, click: dict[str, Any], prompt: str) -> None:
    shown, before = opened(where, description="the left cup")
    where.grounder.asked.clear()
    where.segmenter.prompts.clear()
    answer = ask(where, shown, click)
    [alone] = drawn(answer)
    assert stands_alone(alone["id"])
    assert alone["value"]["brushlabels"] == ["Cup"]
    assert alone["meta"] == {"text": ["made by clicks alone, not learned as: the left cup"]}
    assert "stands alone and is not learned as: the left cup" in line(answer)
    own = where.segmenter.prompts[-1]
    assert (own.box_px is None, len(own.points_px)) == ((True, 1) if prompt == "points" else (False, 0))
    assert not any(box[0] >= 80 for inquiry in where.grounder.asked for box in inquiry.grounding.boxes_px)
    recorded = where.service.corrections.served(3, 1)
    assert [one.region for one in recorded] == [before[0]["id"]]


@pytest.mark.parametrize("label", ["Cup", "Dog"])
def test_what_stands_alone_has_the_smart_tools_label(where: House, label: str) -> None:
    shown, _ = opened(where, CONFIG, description="the left cup")
    [alone] = drawn(ask(where, shown, keypoint(90, 90, label=label), config=CONFIG))
    assert alone["value"]["brushlabels"] == [label]


def test_of_several_labels_none_is_guessed(where: House) -> None:
    shown, _ = opened(where, CONFIG, description="the left cup")
    [alone] = drawn(ask(where, shown, keypoint(90, 90, label="unknown"), config=CONFIG))
    assert alone["value"]["brushlabels"] == []


def test_a_negative_click_with_no_mask_is_told(where: House) -> None:
    answer = ask(where, task(description="the moon"), keypoint(50, 50, positive=False))
    assert drawn(answer) == []
    assert line(answer) == "the moon: there is no mask here to take away from"


@pytest.mark.parametrize(
    ("click", "phrase"),
    [
        pytest.param(keypoint(20, 20), "the left cup", id="the one"),
        pytest.param(keypoint(50, 60), "the dog", id="the other"),
        pytest.param(keypoint(62, 60), "the dog", id="a missing part of the other"),
        pytest.param(keypoint(95, 95), "", id="neither"),
    ],
)
def test_of_several_phrases_the_one_pointed_at_is_refined(where: House, click: dict[str, Any], phrase: str) -> None:
    """One label, so that the label does not tell."""
    shown, before = opened(where, description=["the left cup", "the dog"])
    [answered] = drawn(ask(where, shown, click))
    expected = {"the left cup": before[0]["id"], "the dog": before[1]["id"]}
    assert answered["id"] == expected.get(phrase, answered["id"])
    assert stands_alone(answered["id"]) == (not phrase)


def test_a_region_that_the_request_names_is_meant(where: House) -> None:
    shown, before = opened(where, description="all cups")
    parent = {**keypoint(95, 95), "parentID": before[1]["id"]}
    assert [one["id"] for one in drawn(ask(where, shown, parent))] == [before[1]["id"]]
    assert [one["id"] for one in drawn(ask(where, shown, keypoint(95, 95), before[0]))] == [before[0]["id"]]


def test_a_drag_that_may_have_selected_the_mask_gets_an_id_that_says_what_it_replaces(where: House) -> None:
    shown, before = opened(where, description="the left cup")
    answer = ask(where, shown, rectangle(12, 15, 10, 15, "Cup"))
    [refined] = drawn(answer)
    assert refined["id"].startswith(before[0]["id"] + "~")
    assert "only the new mask is learned" in line(answer)
    assert superseded([*before, refined]) == {before[0]["id"]}


def test_a_phrase_that_is_typed_again_is_the_same_object(where: House) -> None:
    shown, before = opened(where, description="the left cup")
    [again] = drawn(ask(where, shown, text("the left cup")))
    assert superseded([*before, again]) == {before[0]["id"]}


def test_a_click_is_answered_where_the_log_cannot_be_read(where: House, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, _ = opened(where, description="the left cup")

    def fail(*_: object) -> None:
        raise LogError("the log cannot be read", "other")

    monkeypatch.setattr(CorrectionLog, "served", fail)
    [refined] = drawn(ask(where, shown, keypoint(20, 20)))
    assert mask(refined)[20, 20]


# -- ids -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "in_place", "expected"),
    [
        pytest.param(["A"], ["x"], True, ["A"], id="in place"),
        pytest.param(["A"], ["x", "y"], True, ["A", "y"], id="more pieces"),
        pytest.param(["A", "B", "C"], ["x", "y"], True, ["A", "B+C~y"], id="fewer pieces"),
        pytest.param(["A", "B"], ["x"], True, ["A+B~x"], id="one piece left"),
        pytest.param(["A"], ["x"], False, ["A~x"], id="beside"),
        pytest.param(["A~x"], ["y"], False, ["A~x.y"], id="beside, again"),
        pytest.param(["A", "B"], ["x", "y"], False, ["A+B~x", "y"], id="two pieces beside"),
    ],
)
def test_ids_of_refined_regions(old: list[str], new: list[str], in_place: bool, expected: list[str]) -> None:
    assert refined_ids(old, new, in_place) == expected
    regions = [{"id": one, "origin": "prediction"} for one in dict.fromkeys([*old, *expected])]
    assert superseded(regions) == {*old} - {*expected}


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        pytest.param([("A", "prediction"), ("A~x", "prediction")], {"A"}, id="as served"),
        pytest.param([("A", "prediction-changed"), ("A~x", "prediction")], set(), id="edited: never dropped"),
        pytest.param([("A", "manual"), ("A~x", "prediction")], set(), id="drawn by hand: never dropped"),
        pytest.param([("A", None), ("A~x", "prediction")], set(), id="of unknown origin: never dropped"),
        pytest.param([("A", "prediction")], set(), id="the suggestion was rejected"),
        pytest.param([("A~x", "prediction")], set(), id="the old one was deleted"),
        pytest.param([("A", "prediction"), ("A~x", "prediction"), ("A~x.y", "prediction")], {"A", "A~x"}, id="refined twice"),
        pytest.param([("A", "prediction"), ("~A", "prediction")], set(), id="what stands alone replaces nothing"),
        pytest.param([("A", "prediction"), ("~", "prediction"), ("~~", "prediction"), ("", "prediction")], set(), id="marks alone"),
    ],
)
def test_what_is_superseded(regions: list[tuple[str, str | None]], expected: set[str]) -> None:
    assert superseded([{"id": number, "origin": origin} for number, origin in regions]) == expected


# -- what is learned: the log and the export -----------------------------------------------------------------------------------------------


def of_log(folder: Path, body: dict[str, Any], *records: Any) -> list[Review]:
    return read_reviews(log_of(folder, body, served=records), "description").reviews


def of_export(folder: Path, body: dict[str, Any]) -> list[PhrasedPicture | LeftOut]:
    source = folder / "export"
    picture(source / "images" / "a.png")
    exported = {"id": 5, "project": 3, "data": body["task"]["data"], "annotations": [body["annotation"]]}
    (source / "export.json").write_text(json.dumps([exported]))
    (source / "label_config.xml").write_text(body["project"]["label_config"])
    return list(read_label_studio(source, "description").pairs)


FOREIGN = region(alone_id("ABCDEFGHIJ"), blob(20))


def test_a_foreign_click_is_no_truth_for_the_phrase(tmp_path: Path) -> None:
    body = created(region("a", blob(4)), FOREIGN)
    [review] = of_log(tmp_path, body, served("a", blob(4)))
    assert (review.phrase, review.outcome, review.iou, len(review.instances)) == ("the cup", "accepted", 1.0, 1)
    assert (decoded(review.instances[0]) == blob(4)).all()


def test_nor_is_it_if_it_was_edited(tmp_path: Path) -> None:
    body = created(region("a", blob(4)), {**FOREIGN, "origin": "prediction-changed"})
    [review] = of_log(tmp_path, body, served("a", blob(4)))
    assert len(review.instances) == 1


@pytest.mark.parametrize("first", [served("a", blob(4)), served("", None)], ids=["the served mask was deleted", "nothing was found"])
def test_a_foreign_click_alone_does_not_say_that_there_is_no_such_object(tmp_path: Path, first: Any) -> None:
    reviews = read_reviews(log_of(tmp_path, created(FOREIGN), served=[first]), "description")
    assert reviews.reviews == []
    assert "made by clicks away from what was found" in reviews.refused[0].reason


def test_where_labels_are_the_phrases_the_chosen_label_is_one(tmp_path: Path) -> None:
    [review] = of_log(tmp_path, created(FOREIGN, phrase=None))
    assert (review.phrase, len(review.instances)) == ("Cup", 1)


def test_a_foreign_click_is_not_in_an_exports_dataset_either(tmp_path: Path) -> None:
    [pair] = of_export(tmp_path, created(region("a", blob(4)), FOREIGN))
    assert isinstance(pair, PhrasedPicture)
    assert (pair.phrase, len(pair.outlines)) == ("the cup", 1)


def test_a_superseded_mask_is_not_learned_beside_the_refined_one(tmp_path: Path) -> None:
    body = created(region("a", blob(4)), region("a~x", blob(6)))
    [review] = of_log(tmp_path, body, served("a", blob(4)), served("a~x", blob(6), interactive=True))
    assert (review.outcome, len(review.instances)) == ("edited", 1)
    assert (decoded(review.instances[0]) == blob(6)).all()
    [pair] = of_export(tmp_path, body)
    assert isinstance(pair, PhrasedPicture)
    assert len(pair.outlines) == 1


def test_an_edited_mask_stays_beside_the_refined_one(tmp_path: Path) -> None:
    body = created(region("a", blob(4), origin="prediction-changed"), region("a~x", blob(16)))
    [review] = of_log(tmp_path, body, served("a", blob(6)), served("a~x", blob(16), interactive=True))
    assert len(review.instances) == 2


@pytest.mark.parametrize("tag", ["BrushLabels", "PolygonLabels", "RectangleLabels"])
def test_a_mask_that_was_refined_in_place_is_learned_as_it_is(tmp_path: Path, tag: str) -> None:
    """The log has what was served first under the id; Label Studio says of the refined region that nobody changed it."""
    from backend.label_studio.write_regions import values_of  # noqa: PLC0415

    refined = blob(6, side=12)
    [value] = values_of(refined, tag)
    own = {**region("a", refined), "type": tag.lower(), "value": {**value, tag.lower(): ["Cup"]}}
    config = ONE_LABEL.replace("BrushLabels", tag)
    [review] = of_log(tmp_path, created(own, config=config), served("a", blob(4)))
    assert review.outcome == "edited"
    assert np.mean(decoded(review.instances[0]) != refined) < 0.04
    assert review.iou is not None
    assert review.iou < 0.7


@pytest.mark.parametrize("more", [{}, {"text": ["the cup: 1 refined"]}], ids=["the label alone", "label and text"])
def test_the_answers_line_with_a_label_is_no_mask(tmp_path: Path, more: dict[str, Any]) -> None:
    """Label Studio's editor gives an accepted line the label that is chosen at the time, in a region of the line's id."""
    text_of = {"id": "l", "type": "textarea", "from_name": "answer", "to_name": "image", "value": {"text": ["the cup: 1 refined"]}}
    label_of = {"id": "l", "type": "brushlabels", "from_name": "mask", "to_name": "image", "value": {"brushlabels": ["Cup"], **more}}
    body = created(region("a", blob(4)), text_of, label_of)
    [review] = of_log(tmp_path, body, served("a", blob(4)))
    assert (review.outcome, len(review.instances)) == ("accepted", 1)
    [pair] = of_export(tmp_path, body)
    assert isinstance(pair, PhrasedPicture)
    assert len(pair.outlines) == 1


def test_nor_is_it_in_json_min(tmp_path: Path) -> None:
    """There the label stands among the masks, without an id."""
    source = tmp_path / "export"
    picture(source / "images" / "a.png")
    size = {"original_width": 32, "original_height": 24}
    mask_of = {**region("a", blob(4))["value"], **size}
    record = {"image": "/data/upload/3/a.png", "description": "the cup", "id": 5, "annotation_id": 1}
    (source / "export.json").write_text(json.dumps([{**record, "mask": [mask_of, {"brushlabels": ["Cup"]}]}]))
    (source / "label_config.xml").write_text(ONE_LABEL)
    [pair] = read_label_studio(source, "description").pairs
    assert isinstance(pair, PhrasedPicture)
    assert (pair.phrase, len(pair.outlines)) == ("the cup", 1)


def test_a_mask_with_a_text_of_its_own_is_a_mask(tmp_path: Path) -> None:
    note = {"id": "a", "type": "textarea", "from_name": "note", "to_name": "image", "value": {"text": ["blurry"]}}
    [review] = of_log(tmp_path, created(region("a", blob(4)), note), served("a", blob(4)))
    assert (review.outcome, len(review.instances)) == ("accepted", 1)
