"""What is learnt from an annotation, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend import brush
from backend.corrections.log_records import Served
from backend.corrections.reviews import Review, read_reviews
from backend.label_studio.read_regions import EMPTY
from backend.label_studio.write_regions import _DRAW
from sam4mllm.masks import mask_iou
from sam4mllm.run_lengths import from_rle, to_rle
from tests.review_fakes import (
    CONFIG,
    CREATED,
    HEIGHT,
    PROJECT,
    TASK,
    WIDTH,
    Mask,
    blob,
    created,
    decoded,
    log_of,
    recorded,
    region,
    served,
    typed,
)

ONE_LABEL = CONFIG.replace('<Label value="Dog"/>', "")


def read(folder: Path, *events: dict[str, Any], given: list[Served] | None = None, withheld: bool = False) -> list[Review]:
    log = log_of(folder, *events, served=given or [])
    if withheld:
        log.withhold(PROJECT, TASK)
    found = read_reviews(log, "description")
    log.close()
    assert found.refused == []
    return found.reviews


# -- accepted, edited, drawn ---------------------------------------------------------------------------------------------------------------


def test_an_untouched_region_is_accepted(tmp_path: Path) -> None:
    record = served("a", blob(4), score=0.7, features={"stability": 0.6, "sure": 1.0})
    [review] = read(tmp_path, created(region("a", blob(4)), lead_time=3.2, updated_by=8), given=[record])
    assert review == Review(
        annotation=1,
        project=PROJECT,
        task=TASK,
        phrase="the cup",
        label="Cup",
        instances=(review.instances[0],),
        width=WIDTH,
        height=HEIGHT,
        outcome="accepted",
        iou=1.0,
        version="demo-0-00000000",
        features={"stability": 0.6, "sure": 1.0},
        lead_time=3.2,
        reviewer=8,
        updated=CREATED,
        image="/data/upload/3/a.png",
        unassisted=False,
        score=0.7,
        served=(to_rle(blob(4)),),
        served_label="Cup",
    )
    assert (decoded(review.instances[0]) == blob(4)).all()


@pytest.mark.parametrize(
    ("mask", "origin", "outcome"),
    [
        pytest.param(blob(6), "prediction-changed", "edited", id="edited in the page"),
        pytest.param(blob(4), "prediction-changed", "edited", id="touched, and as it was"),
        pytest.param(blob(6), "prediction", "edited", id="edited over the API"),
        pytest.param(blob(6), None, "edited", id="edited, and its origin lost"),
        pytest.param(blob(4), None, "accepted", id="as it was, and its origin lost"),
    ],
)
def test_a_served_region_that_came_back(tmp_path: Path, mask: Any, origin: str | None, outcome: str) -> None:
    [review] = read(tmp_path, created(region("a", mask, origin=origin)), given=[served("a", blob(4))])
    assert review.outcome == outcome
    assert review.iou == pytest.approx(mask_iou(mask, blob(4)))


def test_a_region_by_hand_is_drawn_and_compared_with_what_was_served(tmp_path: Path) -> None:
    [review] = read(tmp_path, created(region("h", blob(8), origin="manual")), given=[served("a", blob(4))])
    assert (review.outcome, review.version) == ("drawn", "demo-0-00000000")
    assert review.iou == pytest.approx(1 / 3)


def test_a_region_by_hand_where_none_was_served(tmp_path: Path) -> None:
    [review] = read(tmp_path, created(region("h", blob(8), origin="manual")), given=[served("", None)])
    assert (review.outcome, review.iou, review.features) == ("drawn", 0.0, {})


def test_without_a_served_record_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    [review] = read(tmp_path, created(region("h", blob(8), origin="manual")))
    assert (review.outcome, review.iou, review.version, review.features) == ("drawn", None, "", {})


@pytest.mark.parametrize(
    ("result", "outcome", "iou", "left"),
    [
        pytest.param([region("a", blob(0)), region("b", blob(16))], "accepted", 1.0, 2, id="both"),
        pytest.param([region("a", blob(0))], "edited", 0.5, 1, id="one deleted"),
        pytest.param(
            [region("a", blob(0)), region("b", blob(16)), region("h", blob(8), origin="manual")], "edited", 2 / 3, 3, id="one added"
        ),
        pytest.param([region("h", blob(0), origin="manual"), region("i", blob(16), origin="manual")], "drawn", 1.0, 2, id="both anew"),
    ],
)
def test_several_instances(tmp_path: Path, result: list[Any], outcome: str, iou: float, left: int) -> None:
    [review] = read(tmp_path, created(*result), given=[served("a", blob(0), score=0.9), served("b", blob(16), score=0.2)])
    assert (review.outcome, review.iou, len(review.instances)) == (outcome, pytest.approx(iou), left)


def test_the_recorded_corrected_and_unchanged_annotations(tmp_path: Path) -> None:
    corrected, unchanged = recorded("46"), recorded("47")
    final = read(tmp_path, corrected, unchanged)
    assert [(one.phrase, one.outcome, one.iou, one.width, one.height) for one in final] == [
        ("second", "accepted", None, 640, 480),
        ("third", "edited", None, 640, 480),
    ]
    assert [one.lead_time for one in final] == [9.367, 10.129]
    size = {"project": 21, "width": 640, "height": 480, "label": None}
    records = [
        served("m36", from_rle(final[0].instances[0], 480, 640), "second", **size | {"task": 36}),
        served("m37", from_rle(final[0].instances[0], 480, 640), "third", **size | {"task": 37}),
    ]
    (tmp_path / "again").mkdir()
    again = read(tmp_path / "again", corrected, unchanged, given=records)
    assert [(one.outcome, one.version) for one in again] == [("accepted", "demo-0-00000000"), ("edited", "demo-0-00000000")]
    assert again[0].iou == 1.0
    assert again[1].iou is not None
    assert 0.0 < again[1].iou < 1.0


# -- no such object ------------------------------------------------------------------------------------------------------------------------


def test_an_empty_annotation_alone_proves_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, created()) == []


def test_a_deleted_region_is_the_answer_no_such_object(tmp_path: Path) -> None:
    [review] = read(tmp_path, created(), given=[served("a", blob(4), score=0.6)])
    assert (review.outcome, review.iou, review.instances, review.label) == ("none", 0.0, (), "Cup")
    assert (review.width, review.height, review.features) == (WIDTH, HEIGHT, {"stability": 0.9})


@pytest.mark.parametrize("config", [CONFIG, CONFIG.replace("BrushLabels", "PolygonLabels")], ids=["brush", "polygons"])
@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("origin", ["manual", "prediction-changed"])
def test_a_mask_that_decodes_to_nothing_is_refused_and_never_none(tmp_path: Path, config: str, others: int, origin: str) -> None:
    """Alone it would be "no such object", beside another mask its object would lack in the truth."""
    empty = region("a", np.zeros((HEIGHT, WIDTH), np.bool_), origin=origin)
    given = [served("a", blob(4)), served("b", blob(16))]
    log = log_of(tmp_path, created(empty, *[region("b", blob(16))] * others, config=config), served=given)
    found = read_reviews(log, "description")
    log.close()
    assert found.reviews == []
    assert [one.reason for one in found.refused] == [EMPTY]


def test_a_faint_mask_is_learnt_as_what_it_shows(tmp_path: Path) -> None:
    faint = region("h", blob(8), origin="manual")
    faint["value"]["rle"] = brush.encode(blob(8) * np.uint8(100))
    [review] = read(tmp_path, created(faint), given=[served("a", blob(4))])
    assert (review.outcome, len(review.instances)) == ("drawn", 1)
    assert (decoded(review.instances[0]) == blob(8)).all()


def test_where_no_pre_annotation_was_loaded_nothing_was_deleted(tmp_path: Path) -> None:
    assert read(tmp_path, created(parent_prediction=None), given=[served("a", blob(4))]) == []


@pytest.mark.parametrize("parent", [41, None])
def test_a_served_none_that_stands_is_confirmed(tmp_path: Path, parent: int | None) -> None:
    [review] = read(tmp_path, created(parent_prediction=parent), given=[served("", None, score=0.9)])
    assert (review.outcome, review.iou, review.version) == ("none", 1.0, "demo-0-00000000")


def test_what_was_served_after_the_annotation_proves_nothing(tmp_path: Path) -> None:
    late = served("", None, time=CREATED + 3600)
    assert read(tmp_path, created(parent_prediction=None), given=[late]) == []


def test_a_later_version_is_not_what_the_reviewer_saw(tmp_path: Path) -> None:
    late = served("", None, version="demo-1-00000000", time=CREATED + 3600)
    [review] = read(tmp_path, created(), given=[served("a", blob(4)), late])
    assert (review.outcome, review.iou, review.version) == ("none", 0.0, "demo-0-00000000")


def test_clocks_that_differ_by_an_hour_do_not_hide_what_was_shown(tmp_path: Path) -> None:
    [review] = read(tmp_path, created(), given=[served("a", blob(4), time=CREATED + 3600)])
    assert (review.outcome, review.iou) == ("none", 0.0)


def test_a_suggestion_that_was_not_taken_proves_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, created(typed("the cup")), given=[served("a", blob(4), interactive=True)]) == []


def test_a_none_to_a_typed_phrase_that_stands_is_confirmed(tmp_path: Path) -> None:
    given = [
        served("", None, "the saucer", None, interactive=True, time=CREATED - 1),
        served("", None, "the plate", None, interactive=True),
    ]
    [review] = read(tmp_path, created(typed("the saucer"), parent_prediction=None), given=given)
    assert (review.phrase, review.outcome, review.iou) == ("the saucer", "none", 1.0)


def test_of_two_phrases_one_may_be_there_and_one_not(tmp_path: Path) -> None:
    given = [served("a", blob(4)), served("b", blob(16), "the dog", "Dog"), served("", None, "a fork", None)]
    reviews = read(tmp_path, created(region("a", blob(4)), phrase=["the cup", "the dog", "a fork"]), given=given)
    assert [(one.phrase, one.outcome, one.iou) for one in reviews] == [
        ("a fork", "none", 1.0),
        ("the cup", "accepted", 1.0),
        ("the dog", "none", 0.0),
    ]


def test_a_skipped_annotation_teaches_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, created(was_cancelled=True), given=[served("a", blob(4))]) == []


# -- regions and phrases -------------------------------------------------------------------------------------------------------------------


def test_regions_by_hand_go_to_the_phrase_of_their_label(tmp_path: Path) -> None:
    body = created(
        region("h", blob(4), "Cup", "manual"), region("i", blob(16), "Dog", "manual"), phrase={"Cup": "the left one", "Dog": "a hound"}
    )
    reviews = read(tmp_path, body)
    assert [(one.phrase, one.label, (decoded(one.instances[0]) == blob(x)).all()) for one, x in zip(reviews, (16, 4), strict=True)] == [
        ("a hound", "Dog", True),
        ("the left one", "Cup", True),
    ]


def test_an_alias_is_written_in_the_place_of_its_label(tmp_path: Path) -> None:
    [review] = read(tmp_path, created(region("h", blob(4), "mug, beaker", "manual")))
    assert review.label == "Cup"


def test_a_phrase_that_fits_no_label_takes_what_the_reviewer_chose(tmp_path: Path) -> None:
    [review] = read(tmp_path, created(region("h", blob(4), "Dog", "manual"), phrase="the thing"))
    assert (review.phrase, review.label) == ("the thing", "Dog")


def test_the_served_id_comes_before_the_label(tmp_path: Path) -> None:
    """Two phrases of one label: only the ids tell which is which."""
    given = [served("a", blob(4), "the left cup"), served("b", blob(16), "the right cup")]
    reviews = read(tmp_path, created(region("b", blob(16)), region("a", blob(4)), phrase=["the left cup", "the right cup"]), given=given)
    assert [(one.phrase, one.outcome) for one in reviews] == [("the left cup", "accepted"), ("the right cup", "accepted")]


def test_a_label_that_was_changed_by_accident_does_not_matter(tmp_path: Path) -> None:
    [review] = read(tmp_path, created(region("a", blob(4), "Dog")), given=[served("a", blob(4))])
    assert (review.phrase, review.label, review.outcome) == ("the cup", "Dog", "accepted")


def test_a_typed_phrase_takes_the_place_of_the_tasks_own(tmp_path: Path) -> None:
    [review] = read(tmp_path, created(region("h", blob(4), "Cup", "manual"), typed(" the  left cup "), parent_prediction=None))
    assert review.phrase == "the left cup"


@pytest.mark.parametrize("kept", [True, False], ids=["the line is saved", "the line is never saved"])
def test_the_label_that_the_editor_gives_the_answers_line_is_no_mask(tmp_path: Path, kept: bool) -> None:
    line = {"id": "w", "type": "textarea", "from_name": "answer", "to_name": "image", "value": {"text": ["the cup: 1 refined"]}}
    label = {"id": "w", "type": "brushlabels", "from_name": "mask", "to_name": "image", "value": {"brushlabels": ["Cup"]}}
    [review] = read(tmp_path, created(region("a", blob(4)), label, *[line] * kept), given=[served("a", blob(4))])
    assert (review.outcome, len(review.instances)) == ("accepted", 1)


def test_several_typed_phrases_are_reviewed_each(tmp_path: Path) -> None:
    given = [served("a", blob(4), "the left cup", interactive=True), served("", None, "the saucer", interactive=True)]
    body = created(region("a", blob(8), "Cup", "prediction-changed"), typed("the left cup; the saucer"), parent_prediction=None)
    assert [(one.phrase, one.outcome) for one in read(tmp_path, body, given=given)] == [("the left cup", "edited"), ("the saucer", "none")]


@pytest.mark.parametrize("words", ["the cup; it has a handle", "the cup\nleft of the dog"])
@pytest.mark.parametrize("where", ["typed", "in the task"])
def test_a_text_that_an_earlier_release_asked_for_as_one_phrase_stays_one(tmp_path: Path, words: str, where: str) -> None:
    whole = " ".join(words.split())
    asked = [typed(words)] if where == "typed" else []
    field = "the cup" if where == "typed" else words
    body = created(region("a", blob(4)), region("h", blob(16), "Cup", "manual"), *asked, config=ONE_LABEL, phrase=field)
    [review] = read(tmp_path, body, given=[served("a", blob(4), whole)])
    assert (review.phrase, review.outcome, len(review.instances)) == (whole, "edited", 2)


def test_a_pre_annotation_that_was_not_loaded_does_not_compete_with_a_typed_phrase(tmp_path: Path) -> None:
    body = created(region("h", blob(4), "Cup", "manual"), typed("the spoon"), parent_prediction=None, config=ONE_LABEL)
    assert [one.phrase for one in read(tmp_path, body, given=[served("a", blob(16))])] == ["the spoon"]


def test_a_phrase_that_the_task_no_longer_has_does_not_compete_with_its_new_one(tmp_path: Path) -> None:
    given = [served("", None, "the old cup", time=CREATED - 99), served("", None, "the cup")]
    [review] = read(tmp_path, created(region("h", blob(4), "Cup", "manual")), given=given)
    assert (review.phrase, review.outcome) == ("the cup", "drawn")


def test_what_was_served_for_the_tasks_phrase_stays_beside_a_typed_one(tmp_path: Path) -> None:
    given = [served("a", blob(4)), served("b", blob(16), "the spoon", None, interactive=True, time=CREATED - 5)]
    reviews = read(tmp_path, created(region("a", blob(4)), region("b", blob(16)), typed("the spoon")), given=given)
    assert [(one.phrase, one.outcome, one.iou) for one in reviews] == [("the cup", "accepted", 1.0), ("the spoon", "accepted", 1.0)]


@pytest.mark.parametrize(
    ("first", "final", "outcome"),
    [
        pytest.param(served("a", blob(4)), region("b", blob(16)), "accepted", id="deleted and taken"),
        pytest.param(served("", None), region("b", blob(16)), "accepted", id="not found and taken"),
        pytest.param(served("", None), region("h", blob(16), origin="manual"), "drawn", id="not found and drawn"),
    ],
)
def test_a_phrase_that_was_put_in_other_words_is_not_missing(tmp_path: Path, first: Served, final: dict[str, Any], outcome: str) -> None:
    """The reviewer had no answer, or a wrong one, and found the same thing by better words or drew it."""
    given = [first, served("b", blob(16), "the mug", interactive=True, time=CREATED - 5)]
    [review] = read(tmp_path, created(final, typed("the mug")), given=given)
    assert (review.phrase, review.outcome, review.iou) == ("the mug", outcome, 1.0)


@pytest.mark.parametrize(("first", "iou"), [(served("a", blob(4)), 1 / 3), (served("", None), 0.0)], ids=["wrong", "none"])
def test_what_took_clicks_is_compared_with_what_was_served_without(tmp_path: Path, first: Served, iou: float) -> None:
    given = [first, served("b", blob(8), interactive=True, time=CREATED - 5, version="v2")]
    [review] = read(tmp_path, created(region("b", blob(8))), given=given)
    assert (review.outcome, review.iou, review.version) == ("edited", pytest.approx(iou), "demo-0-00000000")


def polygons(number: str, mask: Mask) -> list[dict[str, Any]]:
    """A polygon for each piece."""
    return [
        {**region(f"{number}{index}", mask), "type": "polygonlabels", "value": {**value, "polygonlabels": ["Cup"]}}
        for index, value in enumerate(_DRAW["PolygonLabels"](mask))
    ]
