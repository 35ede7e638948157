"""Reviews of other controls and outlines, of several annotations, and what is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.corrections.annotation import read_annotation
from backend.corrections.log_records import Served
from backend.corrections.reviews import read_reviews
from backend.label_studio.write_regions import _DRAW
from sam4mllm.masks import mask_iou
from tests.review_fakes import (
    CONFIG,
    CREATED,
    HEIGHT,
    PROJECT,
    TASK,
    WIDTH,
    Mask,
    annotation,
    blob,
    created,
    decoded,
    event,
    log_of,
    region,
    served,
    typed,
)
from tests.test_reviews import ONE_LABEL, polygons, read
from tests.test_wire import JSON

BAD_RLE = {"format": "rle", "rle": [0, 0, 1], "brushlabels": ["Cup"]}


def reasons(folder: Path, *events: dict[str, Any], given: list[Served] | None = None) -> list[str]:
    log = log_of(folder, *events, served=given or [])
    found = read_reviews(log, "description")
    kept = log.annotations()
    log.close()
    assert found.reviews == []
    assert [one.id for one in kept] == [one.annotation for one in found.refused]
    assert all(len(one.reason.splitlines()) == 1 and one.reason for one in found.refused)
    return [one.reason for one in found.refused]


def test_an_instance_that_was_added_by_clicks_is_an_edit(tmp_path: Path) -> None:
    given = [served("a", blob(0)), served("b", blob(16), interactive=True, time=CREATED - 5)]
    [review] = read(tmp_path, created(region("a", blob(0)), region("b", blob(16))), given=given)
    assert (review.outcome, review.iou, len(review.instances)) == ("edited", 0.5, 2)


def test_a_phrase_that_only_the_served_records_know(tmp_path: Path) -> None:
    """The project's last phrase was used for a task that has none."""
    [review] = read(tmp_path, created(region("h", blob(4), "Dog", "manual"), phrase=None), given=[served("a", blob(4), "a hound", "Dog")])
    assert review.phrase == "a hound"


def test_without_any_phrase_the_labels_are_the_phrases(tmp_path: Path) -> None:
    [review] = read(tmp_path, created(region("h", blob(4), "Dog", "manual"), phrase=None))
    assert (review.phrase, review.outcome) == ("Dog", "drawn")


def test_a_region_of_clicks_alone_is_the_reviewers_own(tmp_path: Path) -> None:
    given = [served("a", blob(4)), served("k", blob(8), "", None, interactive=True, time=CREATED - 5)]
    [review] = read(tmp_path, created(region("k", blob(8))), given=given)
    assert (review.phrase, review.outcome, review.version) == ("the cup", "drawn", "demo-0-00000000")
    assert review.iou == pytest.approx(1 / 3)


def test_the_answer_that_was_taken_is_the_one_compared_with(tmp_path: Path) -> None:
    first = served("a", blob(0), interactive=True, time=CREATED - 9, version="v1")
    second = served("b", blob(8), interactive=True, time=CREATED - 5, version="v2")
    [review] = read(tmp_path, created(region("b", blob(8))), given=[first, second])
    assert (review.outcome, review.iou, review.version) == ("accepted", 1.0, "v2")


def test_other_controls_are_not_read(tmp_path: Path) -> None:
    others = [
        {"id": "p", "type": "textarea", "from_name": "answer", "origin": "prediction", "value": {"text": ["the cup: 1 found"]}},
        {"id": "k", "type": "keypointlabels", "from_name": "click", "value": {"x": 1, "y": 1, "keypointlabels": ["Cup"]}},
        {"id": "b", "type": "rectanglelabels", "from_name": "box", "value": {"x": 1, "y": 1, "rectanglelabels": ["Cup"]}},
        {"id": "c", "type": "choices", "from_name": "quality", "value": {"choices": ["good"]}},
        {"type": "relation", "from_id": "a", "to_id": "b"},
        {"id": "e", "type": "ellipselabels", "from_name": "spots", "value": {"ellipselabels": ["Stain"]}},
        "no region",
    ]
    [review] = read(tmp_path, created(region("a", blob(4)), *others), given=[served("a", blob(4))])
    assert (review.outcome, len(review.instances)) == ("accepted", 1)


@pytest.mark.parametrize("tag", ["BitmaskLabels", "PolygonLabels", "RectangleLabels"])
def test_other_mask_controls_are_accepted_and_edited_too(tmp_path: Path, tag: str) -> None:
    kind, mask = tag.lower(), blob(4, 6) | blob(4, 10)
    box = {"x": 12.5, "y": 25.0, "width": 25.0, "height": 50.0, "rotation": 0}
    value: dict[str, Any] = {"points": [[12.5, 25], [37.5, 25], [37.5, 75], [12.5, 75]], "closed": True} if tag == "PolygonLabels" else box
    if tag == "BitmaskLabels":
        [value] = _DRAW[tag](mask)
    drawn = {**region("a", blob(4)), "type": kind, "value": {**value, kind: ["Cup"]}}
    config = CONFIG.replace("BrushLabels", tag)
    [review] = read(tmp_path, created(drawn, config=config), given=[served("a", mask)])
    assert (review.outcome, review.iou) == ("accepted", 1.0)
    (tmp_path / "again").mkdir()
    changed = created({**drawn, "origin": "prediction-changed"}, config=config)
    [review] = read(tmp_path / "again", changed, given=[served("a", blob(4, 6))])
    assert (review.outcome, review.iou) == ("edited", pytest.approx(64 / 96))
    assert (decoded(review.instances[0]) == mask).all()


def test_an_outline_that_was_not_touched_is_as_good_as_the_mask_it_was_made_from(tmp_path: Path) -> None:
    """A rectangle cannot show an object's shape."""
    [value] = _DRAW["RectangleLabels"](blob(4))
    drawn = {**region("a", blob(4)), "type": "rectanglelabels", "value": {**value, "rectanglelabels": ["Cup"]}}
    shape = blob(4) & ~blob(4, 4, 3)
    [review] = read(tmp_path, created(drawn, config=CONFIG.replace("BrushLabels", "RectangleLabels")), given=[served("a", shape)])
    assert (review.outcome, review.iou) == ("accepted", 1.0)
    assert [(decoded(mask) == shape).all() for mask in review.instances] == [True]


def rectangle(number: str, mask: Mask, origin: str = "prediction") -> dict[str, Any]:
    [value] = _DRAW["RectangleLabels"](mask)
    return {**region(number, mask, origin=origin), "type": "rectanglelabels", "value": {**value, "rectanglelabels": ["Cup"]}}


def test_an_outline_that_was_not_touched_stands_for_its_mask_beside_one_that_was(tmp_path: Path) -> None:
    first, second = blob(0) & ~blob(0, 4, 3), blob(16) & ~blob(16, 4, 3)
    regions = [rectangle("a", first), rectangle("b", blob(18), "prediction-changed"), rectangle("h", blob(0, 14), "manual")]
    body = created(*regions, config=CONFIG.replace("BrushLabels", "RectangleLabels"))
    [review] = read(tmp_path, body, given=[served("a", first), served("b", second)])
    assert review.outcome == "edited"
    assert [(decoded(one) == mask).all() for one, mask in zip(review.instances, (first, blob(18), blob(0, 14)), strict=True)] == [True] * 3
    assert review.iou == pytest.approx(mask_iou(first | blob(18) | blob(0, 14), first | second))


def test_a_suggestion_that_was_taken_untouched_stands_for_its_mask(tmp_path: Path) -> None:
    shape = blob(8) & ~blob(8, 4, 3)
    given = [served("a", blob(4)), served("b", shape, interactive=True, time=CREATED - 5)]
    body = created(rectangle("b", shape), config=CONFIG.replace("BrushLabels", "RectangleLabels"))
    [review] = read(tmp_path, body, given=given)
    assert review.outcome == "edited"
    assert review.iou == pytest.approx(mask_iou(shape, blob(4)))
    assert [(decoded(mask) == shape).all() for mask in review.instances] == [True]


def test_the_outlines_of_one_masks_pieces_are_one_instance(tmp_path: Path) -> None:
    shape = (blob(0) & ~blob(3, 7, 2)) | blob(16)
    pieces = polygons("p", shape)
    given = [served(piece["id"], shape) for piece in pieces]
    config = CONFIG.replace("BrushLabels", "PolygonLabels")
    assert len(pieces) == 2
    [review] = read(tmp_path, created(*pieces, config=config), given=given)
    assert (review.outcome, review.iou) == ("accepted", 1.0)
    assert [(decoded(mask) == shape).all() for mask in review.instances] == [True]


@pytest.mark.parametrize("changed", [True, False], ids=["changed", "deleted"])
def test_a_piece_that_was_changed_or_deleted_does_not_come_back_with_another(tmp_path: Path, changed: bool) -> None:
    """The mask that both were made from still has it."""
    shape = blob(0) | blob(16)
    pieces = polygons("p", shape)
    [final] = polygons("q", blob(20, 8, 4))
    left = [pieces[0], {**final, "id": pieces[1]["id"], "origin": "prediction-changed"}] if changed else pieces[:1]
    config = CONFIG.replace("BrushLabels", "PolygonLabels")
    [review] = read(tmp_path, created(*left, config=config), given=[served(piece["id"], shape) for piece in pieces])
    assert review.outcome == "edited"
    union = np.any([decoded(mask) for mask in review.instances], axis=0)
    [kept] = [mask for mask in (blob(0), blob(16)) if (decoded(review.instances[0]) == mask).all()]
    assert (union == (kept | blob(20, 8, 4) if changed else kept)).all()


# -- several annotations -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        pytest.param({"updated": CREATED}, {"updated": CREATED + 9}, 2, id="the newest"),
        pytest.param({"updated": CREATED, "ground_truth": True}, {"updated": CREATED + 9}, 1, id="the ground truth"),
        pytest.param({"updated": CREATED}, {"updated": CREATED + 9, "was_cancelled": True}, 1, id="not the skipped one"),
        pytest.param({"updated": CREATED}, {"updated": CREATED + 9, "result": "x"}, 1, id="not the refused one"),
    ],
)
def test_of_several_annotations_one_counts(tmp_path: Path, first: Any, second: Any, winner: int) -> None:
    given = [region("h", blob(4), "Cup", "manual")]
    log = log_of(tmp_path, created(*given, number=1, **first), created(*given, number=2, **second))
    [review] = read_reviews(log, "description").reviews
    assert review.annotation == winner


def test_a_task_that_was_served_unassisted_is_marked(tmp_path: Path) -> None:
    body = created(region("h", blob(8), "Cup", "manual"), parent_prediction=None)
    [review] = read(tmp_path, body, given=[served("a", blob(4))], withheld=True)
    assert (review.unassisted, review.outcome) == (True, "drawn")
    assert review.iou == pytest.approx(1 / 3)


# -- refused -------------------------------------------------------------------------------------------------------------------------------

MANUAL = region("h", blob(4), "Cup", "manual")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(created(MANUAL, phrase=["a cup", "the cup"]), "'Cup' fits 2 phrases", id="several phrases"),
        pytest.param(created(region("h", blob(4), "Dog", "manual")), "'Dog' fits none of the task's phrases", id="no phrase"),
        pytest.param(created(region("h", blob(4), None, "manual")), "no label", id="no label"),
        pytest.param(created(region("h", blob(4), "Bird", "manual")), "'Bird' is not in the labelling config", id="unknown label"),
        pytest.param(created(region("h", blob(4), "Bird\ud800\n", "manual")), "is not in the labelling config", id="hostile label"),
        pytest.param(created({**MANUAL, "value": BAD_RLE}), "rle is cut short", id="truncated"),
        pytest.param(created({**MANUAL, "value": [1]}), "no value", id="no value"),
        pytest.param(created({**MANUAL, "original_width": WIDTH + 1}), "rle counts", id="wrong size"),
        pytest.param(created({**MANUAL, "original_width": 1 << 30}), "too large", id="huge"),
        pytest.param(created({**MANUAL, "original_height": None}), "how large", id="no size"),
        pytest.param(created({**MANUAL, "image_rotation": 90}), "turned image", id="turned"),
        pytest.param(created(MANUAL, region("i", blob(4)[:, :16])), "different sizes", id="two sizes"),
        pytest.param(created(*[MANUAL] * 201), "at most 200", id="too many"),
        pytest.param(created(result={"a": 1}), "no list of regions", id="no list"),
        pytest.param(created(MANUAL, config="<View/>"), "labelling config", id="no image tag"),
        pytest.param(created(MANUAL, config=""), "not known", id="no config"),
        pytest.param(created(MANUAL, phrase=[True]), "phrase is a text", id="no phrase but a truth"),
        pytest.param(created(MANUAL, typed("x" * 501)), "at most 500", id="too long a phrase"),
        pytest.param(created(MANUAL, last_action="prediction"), "not by a reviewer", id="made by an action"),
        pytest.param(
            created({**MANUAL, "from_name": "poly", "type": "polygonlabels", "value": {"polygonlabels": ["Cup"]}}),
            "drawn with 'poly'",
            id="another control",
        ),
        pytest.param(event("ANNOTATION_CREATED", annotation(MANUAL), image=""), "no image address at '$image'", id="no image"),
        pytest.param(event("ANNOTATION_CREATED", annotation(MANUAL), image=["a", "b"]), "has 2 pictures at '$image'", id="images"),
    ],
)
def test_what_cannot_be_trusted_is_refused_and_kept(tmp_path: Path, body: dict[str, Any], reason: str) -> None:
    [found] = reasons(tmp_path, body)
    assert reason in found


@pytest.mark.parametrize(("phrase", "said"), [(["the cup", None], "the cup"), ([None, 7], "7"), ({"Cup": 7.5}, "7.5")])
def test_empty_cells_and_numbers_do_not_lose_a_review(tmp_path: Path, phrase: object, said: str) -> None:
    [review] = read(tmp_path, created(MANUAL, phrase=phrase))
    assert review.phrase == said


def test_a_mask_of_another_size_than_was_served_is_refused(tmp_path: Path) -> None:
    [reason] = reasons(tmp_path, created(region("a", blob(4)[:, :16])), given=[served("a", blob(4))])
    assert "another size" in reason


def test_a_region_that_moved_to_another_phrases_label_is_refused(tmp_path: Path) -> None:
    given = [served("a", blob(4)), served("b", blob(16), "the dog", "Dog")]
    [reason] = reasons(tmp_path, created(region("a", blob(4), "Dog"), phrase=["the cup", "the dog"]), given=given)
    assert reason == "a region was served for 'the cup' and is now labelled 'Dog'"


def test_a_region_by_hand_beside_a_deleted_one_and_a_typed_phrase_is_refused(tmp_path: Path) -> None:
    """It may be the deleted one drawn anew, or what was typed."""
    [reason] = reasons(tmp_path, created(MANUAL, typed("the spoon"), config=ONE_LABEL), given=[served("a", blob(16))])
    assert "fits 2 phrases" in reason


FIELDS = ("id", "type", "from_name", "origin", "value", "original_width", "original_height", "image_rotation")
PARTS = st.dictionaries(st.sampled_from(("text", "rle", "brushlabels", "labels", "format")), JSON | st.lists(JSON, max_size=3), max_size=4)
NAMES = st.sampled_from(("mask", "prompt", "box", "poly", "textarea", "polygonlabels", "a", "manual", "\ud800"))
REGIONS = st.dictionaries(st.sampled_from(FIELDS), JSON | PARTS | NAMES | st.sampled_from((HEIGHT, WIDTH, 0)), max_size=8)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(REGIONS | st.fixed_dictionaries({"base": st.just(region("a", blob(4)))}, optional={"over": REGIONS}) | JSON, max_size=3),
    st.dictionaries(st.sampled_from(("image", "description")), JSON | NAMES, max_size=2),
    st.dictionaries(st.sampled_from(("lead_time", "completed_by", "parent_prediction", "created_at", "ground_truth")), JSON, max_size=4),
)
def test_a_hostile_annotation_is_read_or_refused(regions: list[Any], data: dict[str, Any], fields: dict[str, Any]) -> None:
    result = [{**one["base"], **one.get("over", {})} if isinstance(one, dict) and "base" in one else one for one in regions]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        log = log_of(Path(folder), event("ANNOTATION_CREATED", annotation(*result, **fields), **data), served=[served("a", blob(4))])
        found = read_reviews(log, "description")
        log.close()
    assert all(len(one.reason.splitlines()) == 1 and "internal" not in one.reason for one in found.refused)
    assert len({one.annotation for one in found.reviews} | {one.annotation for one in found.refused}) <= 1


def test_an_annotation_that_breaks_the_reader_is_refused_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = log_of(tmp_path, created(region("a", blob(4)), number=1, lead_time=77.0), created(region("a", blob(4)), number=2, lead_time=78.0))

    def picky(stored: Any, *rest: Any) -> Any:
        if stored.id == 1:
            raise KeyError("secret")
        return read_annotation(stored, *rest)

    monkeypatch.setattr("backend.corrections.reviews.read_annotation", picky)
    found = read_reviews(log, "description")
    log.close()
    assert [one.annotation for one in found.reviews] == [2]
    assert [one.reason.startswith("internal error (KeyError at") for one in found.refused] == [True]
    assert "annotation 1: internal error" in caplog.text
    assert "secret" not in caplog.text


def test_the_dataset_is_worked_out_anew_when_anything_changes(tmp_path: Path) -> None:
    log = log_of(tmp_path, created(region("a", blob(4))))
    assert [one.iou for one in read_reviews(log, "description").reviews] == [None]
    log.serve([served("a", blob(4))])
    assert [one.iou for one in read_reviews(log, "description").reviews] == [1.0]
    log.withhold(PROJECT, TASK)
    assert [one.unassisted for one in read_reviews(log, "description").reviews] == [True]
    assert read_reviews(log, "description", max_pixels=99).refused
    log.close()


# -- remarks -------------------------------------------------------------------------------------------------------------------------------

REMARKED = CONFIG.replace('<TextArea name="prompt"', '<TextArea name="comment" toName="image"/><TextArea name="prompt"')


def remark(words: str) -> dict[str, Any]:
    return {**typed(words), "id": "c", "from_name": "comment"}


@pytest.mark.parametrize(
    ("result", "control", "phrase"),
    [
        pytest.param([remark("edge is blurry")], "prompt", "the cup", id="a remark alone"),
        pytest.param([remark("edge is blurry"), typed("the mug")], "prompt", "the mug", id="a remark and a phrase"),
        pytest.param([typed("the mug"), remark("edge is blurry")], "prompt", "the mug", id="a phrase and a remark"),
        pytest.param([typed("no"), remark("the mug")], "comment", "the mug", id="the control that a setting names"),
        pytest.param([typed("the mug")], "another", "the cup", id="a control that the config lacks"),
    ],
)
def test_a_remark_is_never_learned(tmp_path: Path, result: list[dict[str, Any]], control: str, phrase: str) -> None:
    log = log_of(tmp_path, created(region("r1", blob(4), origin="manual"), *result, config=REMARKED))
    found = read_reviews(log, "description", prompt_control=control)
    log.close()
    assert [review.phrase for review in found.reviews] == [phrase]
