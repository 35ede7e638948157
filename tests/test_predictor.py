"""From tasks to predictions: phrases, labels, clicks, regions of each kind, and nothing that spoils a batch."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend import brush
from backend.label_studio.wire import PredictRequest
from backend.label_studio.write_regions import UNCALIBRATED
from sam4mllm.confidence import score_empty
from sam4mllm.grounding.remembering import RememberingGrounder
from tests.backend_fakes import CONFIG, PROJECT, House, task
from tests.test_confidence import TYPICAL


def ask(where: House, *tasks: object, context: list[dict[str, Any]] | None = None, config: str = CONFIG) -> list[Any]:
    request = PredictRequest(list(tasks), PROJECT, config, None if context is None else tuple(context))
    return [json.loads(answer) for answer in where.service.predictor.predict(request)]


def text(phrase: str) -> dict[str, Any]:
    return {"type": "textarea", "from_name": "prompt", "to_name": "image", "value": {"text": [phrase]}}


def keypoint(x: float, y: float, positive: bool = True, label: str = "Cup") -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 0.2, "keypointlabels": [label]}
    return {"type": "keypointlabels", "from_name": "click", "to_name": "image", "is_positive": positive, "value": value}


def rectangle(x: float, y: float, width: float, height: float, label: str = "Dog", rotation: float = 0.0) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation, "rectanglelabels": [label]}
    return {"type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value}


def drawn(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The regions but the line for the annotator."""
    return [region for region in answer["result"] if region["type"] != "textarea"]


def mask(region: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return brush.decode(region["value"]["rle"], region["original_height"], region["original_width"]) > 127


def test_a_described_task_gets_a_brush_mask(houses: Callable[..., House]) -> None:
    where = houses()
    [answer] = ask(where, task(description="the left cup"))
    [region] = answer["result"]
    assert region["value"]["brushlabels"] == ["Cup"]
    assert {key: region[key] for key in ("type", "from_name", "to_name", "origin", "original_width", "original_height")} == {
        "type": "brushlabels",
        "from_name": "mask",
        "to_name": "image",
        "origin": "prediction",
        "original_width": 100,
        "original_height": 80,
    }
    expected = np.zeros((80, 100), bool)
    expected[10:30, 10:30] = True
    assert (mask(region) == expected).all()
    assert answer["model_version"] == where.service.version
    assert answer["score"] == region["score"]


@pytest.mark.parametrize(
    ("description", "labels"),
    [
        pytest.param("all cups", [["Cup"], ["Cup"]], id="several instances"),
        pytest.param(["the left cup", "the thing"], [["Cup"]], id="a phrase that finds nothing"),
        pytest.param(["the left cup", "the dog"], [["Cup"], ["Dog"]], id="list"),
        pytest.param(["the left cup", None, ""], [["Cup"]], id="empty cells"),
        pytest.param([None, 7], [], id="a number that finds nothing"),
        pytest.param({"Dog": "the left cup"}, [["Dog"]], id="label named"),
        pytest.param({"Cup": ["the left cup", "all cups"]}, [["Cup"]] * 3, id="several phrases of a label"),
        pytest.param(None, [["Cup"]], id="none: the label names are phrases"),
        pytest.param("", [["Cup"]], id="empty: the same"),
        pytest.param(" ", [["Cup"]], id="blank: the same"),
        pytest.param(["the left cup", "the left cup"], [["Cup"]], id="twice the same"),
        pytest.param({"Cup": "the left cup", "Dog": "the left cup"}, [["Cup"], ["Dog"]], id="one phrase for two labels"),
    ],
)
def test_phrases_of_the_task_field(houses: Callable[..., House], description: object, labels: list[list[str]]) -> None:
    [answer] = ask(houses(), task(description=description))
    assert [region["value"]["brushlabels"] for region in answer["result"]] == labels
    if labels:
        assert answer["score"] == min(region["score"] for region in answer["result"])
    assert len({region["id"] for region in answer["result"]}) == len(answer["result"])


def test_the_field_is_a_setting(houses: Callable[..., House]) -> None:
    [answer] = ask(houses(phrase_field="what"), task(what="the dog", description="the left cup"))
    assert answer["result"][0]["value"]["brushlabels"] == ["Dog"]


def test_no_such_object_is_an_empty_result_with_its_probability(houses: Callable[..., House]) -> None:
    [answer] = ask(houses(), task(description="the moon"))
    assert answer["result"] == []
    assert answer["score"] == score_empty(0.95)


def test_a_score_says_that_it_is_not_calibrated_until_it_is(houses: Callable[..., House]) -> None:
    where = houses()
    [answer] = ask(where, task(description="the left cup"))
    assert [region["meta"] for region in answer["result"]] == [{"score": UNCALIBRATED, "text": ["for: the left cup"]}]
    leases = where.service.engine.model
    assert leases is not None
    leases.calibrate(TYPICAL)
    [answer] = ask(where, task(number=2, description="the left cup"))
    assert [region["meta"] for region in answer["result"]] == [{"text": ["for: the left cup"]}]


def test_an_annotator_reads_that_nothing_was_found(houses: Callable[..., House]) -> None:
    [answer] = ask(houses(), task(), context=[text("the moon")])
    [region] = answer["result"]
    assert (region["from_name"], region["value"]["text"]) == ("answer", ["the moon: no such object"])


def test_typed_text_comes_before_the_field_and_is_remembered_for_clicks(houses: Callable[..., House]) -> None:
    where = houses()
    [typed] = ask(where, task(description="the dog"), context=[text("the left cup")])
    assert typed["result"][0]["value"]["brushlabels"] == ["Cup"]
    [clicked] = ask(where, task(description="the dog"), context=[keypoint(20, 20)])
    prompt = where.segmenter.prompts[-1]
    assert prompt.box_px is not None
    assert prompt.box_px.tolist() == [10, 10, 30, 30]
    assert [20.0, 16.0] in prompt.points_px.tolist()
    assert len(prompt.points_px) > 10
    assert len(drawn(clicked)) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param({}, "the left cup; the dog", id="typed with a semicolon"),
        pytest.param({}, "the left cup\n the dog\n", id="typed in lines"),
        pytest.param({"description": "the left cup; the dog;"}, "", id="in the task"),
        pytest.param({"description": ["the left cup； the dog", "the dog"]}, "", id="in a list in the task, once each"),
    ],
)
def test_several_phrases_in_one_field(houses: Callable[..., House], data: dict[str, Any], said: str) -> None:
    [answer] = ask(houses(), task(**data), context=[text(said)] if said else None)
    told = [(region["value"]["brushlabels"], region["meta"]["text"]) for region in drawn(answer)]
    assert told == [(["Cup"], ["for: the left cup"]), (["Dog"], ["for: the dog"])]
    lines = [region["value"]["text"] for region in answer["result"] if "text" in region["value"]]
    assert lines == ([["the left cup: 1 found; the dog: 1 found"]] if said else [])


def test_a_click_is_about_the_one_of_several_typed_phrases_that_it_touches(houses: Callable[..., House]) -> None:
    where = houses()
    ask(where, task(), context=[text("the left cup; the dog")])
    [clicked] = ask(where, task(), context=[keypoint(50, 60)])
    assert [region["meta"]["text"][0].startswith("for: the dog") for region in drawn(clicked)] == [True]


def test_a_click_beside_several_typed_phrases_is_about_the_one_that_it_touches(houses: Callable[..., House]) -> None:
    where, typed = houses(), text("the left cup; the dog")
    ask(where, task(), context=[typed])
    [clicked] = ask(where, task(), context=[typed, keypoint(50, 60)])
    assert [region["meta"]["text"][0].split(";")[0] for region in drawn(clicked)] == ["for: the dog"]


def test_too_many_phrases_at_once_are_one_line(houses: Callable[..., House]) -> None:
    [answer] = ask(houses(), task(), context=[text(";".join(f"cup {number}" for number in range(40)))])
    assert answer["result"][0]["value"]["text"] == ["40 descriptions were typed; at most 32 are answered"]


def test_an_annotator_reads_how_many_were_found(houses: Callable[..., House]) -> None:
    [answer] = ask(houses(), task(), context=[text("all cups")])
    assert answer["result"][-1]["value"]["text"] == ["all cups: 2 found"]


def test_an_empty_context_asks_for_nothing(houses: Callable[..., House]) -> None:
    where = houses()
    [answer] = ask(where, task(description="the dog"), context=[])
    assert answer["result"] == []
    assert where.grounder.opened == 0


REMARK = {"type": "textarea", "from_name": "comment", "to_name": "image", "value": {"text": ["the left cup"]}}
COMMENT_FIRST = CONFIG.replace('<TextArea name="prompt"', '<TextArea name="comment" toName="image"/><TextArea name="prompt"')


@pytest.mark.parametrize(
    "config", [COMMENT_FIRST, COMMENT_FIRST.replace('<TextArea name="prompt" toName="image"/>', "")], ids=["both", "alone"]
)
def test_a_remark_is_no_phrase(houses: Callable[..., House], config: str) -> None:
    where = houses()
    [answer] = ask(where, task(description="the dog"), context=[REMARK], config=config)
    assert answer["result"] == []
    drafted = {**task(description="the dog"), "drafts": [{"result": [REMARK]}]}
    ask(where, drafted, context=[REMARK, keypoint(50, 60)], config=config)
    assert where.segmenter.prompts[-1].box_px.tolist() == [40, 40, 60, 60]  # type: ignore[union-attr]


def test_what_is_typed_beside_a_remark_is_the_phrase(houses: Callable[..., House]) -> None:
    [answer] = ask(houses(), task(), context=[text("the dog"), REMARK], config=COMMENT_FIRST)
    assert drawn(answer)[0]["value"]["brushlabels"] == ["Dog"]


def test_the_prompt_may_have_another_name(houses: Callable[..., House]) -> None:
    [answer] = ask(houses(prompt_control="comment"), task(), context=[text("the dog"), REMARK], config=COMMENT_FIRST)
    assert drawn(answer)[0]["value"]["brushlabels"] == ["Cup"]


ODD: tuple[Any, ...] = (
    None,
    True,
    5,
    -1e308,
    10**400,
    "Cup",
    [],
    {},
    [[]],
    [{}],
    [["Cup"]],
    [None, 5, "Cup"],
    {"Cup": 1},
    [[["Cup"]], {"a": []}],
)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: ascii(odd)[:40])
@pytest.mark.parametrize("made", [keypoint(20, 20), rectangle(10, 10, 20, 20), text("the left cup")], ids=["keypoint", "rectangle", "text"])
def test_odd_values_in_a_context_are_no_errors(houses: Callable[..., House], made: dict[str, Any], odd: object, caplog: Any) -> None:
    """Each field of a region, and of its value, of any type: an answer comes, and an unhashable label is no label."""
    where = houses()
    spoilt = [{**made, name: odd} for name in made] + [{**made, "value": {**made["value"], name: odd}} for name in made["value"]]
    for region in spoilt:
        [answer] = ask(where, task(description="the dog"), context=[region])
        assert "internal error" not in json.dumps(answer)
    assert "failed" not in caplog.text


def test_an_unhashable_label_leaves_the_others(houses: Callable[..., House]) -> None:
    clicked = keypoint(50, 50)
    clicked["value"]["keypointlabels"] = [["Cup"], {"Cup": "Dog"}, None, "Dog"]
    [answer] = ask(houses(), task(), context=[clicked])
    assert drawn(answer)[0]["value"]["brushlabels"] == ["Dog"]


def test_a_draft_holds_the_current_phrase_too(houses: Callable[..., House]) -> None:
    where = houses()
    drafted = {**task(description="the dog"), "drafts": [{"result": [text("the left cup")]}]}
    ask(where, drafted, context=[keypoint(20, 20)])
    assert where.segmenter.prompts[-1].box_px.tolist() == [10, 10, 30, 30]  # type: ignore[union-attr]


def test_a_click_with_no_phrase_stands_alone(houses: Callable[..., House]) -> None:
    where = houses()
    [answer] = ask(where, task(), context=[keypoint(50, 50, label="Dog"), keypoint(90, 90, positive=False, label="Dog")])
    prompt = where.segmenter.prompts[-1]
    assert prompt.box_px is None
    assert prompt.points_px.tolist() == [[50.0, 40.0], [90.0, 72.0]]
    assert prompt.labels.tolist() == [1, 0]
    assert answer["result"][0]["value"]["brushlabels"] == ["Dog"]


def test_a_click_answers_with_the_instance_that_it_touched(houses: Callable[..., House]) -> None:
    [answer] = ask(houses(), task(description="all cups"), context=[keypoint(70, 20)])
    [region] = drawn(answer)
    assert mask(region)[20, 70]
    assert not mask(region)[20, 20]


def test_a_rectangle_is_a_prompt_of_its_own(houses: Callable[..., House]) -> None:
    where = houses()
    [answer] = ask(where, task(), context=[rectangle(40, 50, 10, 20)])
    [region] = drawn(answer)
    assert mask(region)[40:56, 40:50].all()
    assert mask(region).sum() == 160
    assert region["value"]["brushlabels"] == ["Dog"]


def test_a_turned_rectangle_is_boxed(houses: Callable[..., House]) -> None:
    where = houses()
    ask(where, task(size="100x100"), context=[rectangle(50, 50, 20, 10, rotation=90)])
    assert np.allclose(where.segmenter.prompts[-1].box_px, [40, 50, 50, 70])  # type: ignore[arg-type]


def test_a_second_click_costs_no_language_model(houses: Callable[..., House]) -> None:
    where = houses()
    assert where.service.engine.model is not None
    where.service.engine.model.current.grounder = RememberingGrounder(where.grounder)
    ask(where, task(description="the dog"), context=[keypoint(50, 60)])
    asked = len(where.grounder.asked)
    ask(where, task(description="the dog"), context=[keypoint(50, 60), keypoint(52, 62, positive=False)])
    assert len(where.grounder.asked) == asked > 0
    assert where.grounder.opened == 1


@pytest.mark.parametrize("tag", ["BitmaskLabels", "PolygonLabels", "RectangleLabels"])
def test_regions_follow_the_config(houses: Callable[..., House], tag: str) -> None:
    config = f'<View><Image name="i" value="$image"/><{tag} name="m" toName="i"><Label value="Cup"/></{tag}></View>'
    [answer] = ask(houses(), task(description="the left cup"), config=config)
    [region] = answer["result"]
    assert region["type"] == tag.lower()
    value = region["value"]
    assert value[tag.lower()] == ["Cup"]
    if tag == "BitmaskLabels":
        alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(value["imageDataURL"].split(",")[1]))))[..., 3]
        assert (alpha > 0).sum() == 400
        assert (alpha[10:30, 10:30] == 255).all()
    elif tag == "PolygonLabels":
        assert value["closed"]
        assert sorted(map(tuple, value["points"])) == [(10, 12.5), (10, 37.5), (30, 12.5), (30, 37.5)]
    else:
        assert [value[side] for side in ("x", "y", "width", "height")] == [10, 12.5, 20, 25]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(None, id="no object"),
        pytest.param({"id": 9}, id="no data"),
        pytest.param({"id": 9, "data": {"description": "the dog"}}, id="no image"),
        pytest.param({"id": 9, "data": {"image": "s3://dead/image.png"}}, id="dead host"),
        pytest.param(task(9, description={"Cup": [["the cup"]]}), id="phrase no text"),
        pytest.param(task(9, description=list(map(str, range(33)))), id="too many phrases"),
        pytest.param(task(9, description="x" * 501), id="phrase too long"),
        pytest.param(task(9, description="\ud800"), id="half a character"),
        pytest.param(task(9, size="3x3", description="the dog"), id="image too small"),
    ],
)
def test_a_bad_task_spoils_only_itself(houses: Callable[..., House], bad: object) -> None:
    where = houses()
    answers = ask(where, task(1, description="the dog"), bad, task(2, description="the dog"))
    assert answers[1] == []
    assert answers[0]["result"]
    assert answers[2]["result"]
    assert where.service.metrics.recent[0].message
    assert b'sam4mllm_tasks_total{outcome="failed"} 1.0' in where.service.metrics.text()


@pytest.mark.parametrize("config", ["", "<View/>", '<View><Image name="image" value="$image"/></View>'])
def test_a_bad_config_fails_each_task_and_an_annotator_still_gets_a_prediction(houses: Callable[..., House], config: str) -> None:
    where = houses()
    assert ask(where, task(1), task(2), config=config) == [[], []]
    [answer] = ask(where, task(1), context=[text("the dog")], config=config)
    assert answer["result"] == []


def test_an_annotator_reads_what_went_wrong(houses: Callable[..., House]) -> None:
    [answer] = ask(houses(), {"id": 1, "data": {"image": "dead"}}, context=[text("the dog")])
    assert answer["result"][0]["value"]["text"] == ["the image host does not answer"]


def test_two_requests_at_once_for_a_task_are_one_inference(houses: Callable[..., House], tmp_path: Path) -> None:
    shared: list[tuple[int, str]] = []
    where = houses()
    where.service.predictor._shared = lambda number, version: shared.append((number, version))
    where.images.delay = 0.1
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: ask(where, task(description="the dog")), range(2))
    assert first == second
    assert (where.grounder.opened, where.images.loads) == (1, 1)
    assert ask(where, task(description="the dog")) == first
    assert where.grounder.opened == 1
    assert shared == [(1, where.service.version)]
