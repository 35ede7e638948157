"""From tasks to predictions: phrases, labels, clicks, regions of each kind, and nothing that spoils a batch."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from backend import brush
from backend.corrections.log import CorrectionLog
from backend.errors import QueueFullError
from backend.label_studio.wire import PredictRequest
from backend.label_studio.write_regions import UNCALIBRATED
from backend.support.places import place_of
from sam4mllm.confidence import score_empty
from sam4mllm.grounding.protocol import Question
from sam4mllm.grounding.remembering import RememberingGrounder
from sam4mllm.images import image_sha256
from tests.backend_fakes import CONFIG, PROJECT, House, house, task
from tests.fakes import grounding
from tests.test_confidence import TYPICAL


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Callable[..., House]]:
    opened: list[House] = []

    def make(**given: Any) -> House:
        opened.append(house(tmp_path, **given))
        return opened[-1]

    yield make
    for one in opened:
        one.service.close(5.0)


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


def test_a_described_task_gets_a_brush_mask(home: Callable[..., House]) -> None:
    where = home()
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
def test_phrases_of_the_task_field(home: Callable[..., House], description: object, labels: list[list[str]]) -> None:
    [answer] = ask(home(), task(description=description))
    assert [region["value"]["brushlabels"] for region in answer["result"]] == labels
    if labels:
        assert answer["score"] == min(region["score"] for region in answer["result"])
    assert len({region["id"] for region in answer["result"]}) == len(answer["result"])


def test_the_field_is_a_setting(home: Callable[..., House]) -> None:
    [answer] = ask(home(phrase_field="what"), task(what="the dog", description="the left cup"))
    assert answer["result"][0]["value"]["brushlabels"] == ["Dog"]


def test_no_such_object_is_an_empty_result_with_its_probability(home: Callable[..., House]) -> None:
    [answer] = ask(home(), task(description="the moon"))
    assert answer["result"] == []
    assert answer["score"] == score_empty(0.95)


def test_a_score_says_that_it_is_not_calibrated_until_it_is(home: Callable[..., House]) -> None:
    where = home()
    [answer] = ask(where, task(description="the left cup"))
    assert [region["meta"] for region in answer["result"]] == [{"score": UNCALIBRATED, "text": ["for: the left cup"]}]
    leases = where.service.engine.model
    assert leases is not None
    leases.calibrate(TYPICAL)
    [answer] = ask(where, task(number=2, description="the left cup"))
    assert [region["meta"] for region in answer["result"]] == [{"text": ["for: the left cup"]}]


def test_an_annotator_reads_that_nothing_was_found(home: Callable[..., House]) -> None:
    [answer] = ask(home(), task(), context=[text("the moon")])
    [region] = answer["result"]
    assert (region["from_name"], region["value"]["text"]) == ("answer", ["the moon: no such object"])


def test_typed_text_comes_before_the_field_and_is_remembered_for_clicks(home: Callable[..., House]) -> None:
    where = home()
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
def test_several_phrases_in_one_field(home: Callable[..., House], data: dict[str, Any], said: str) -> None:
    [answer] = ask(home(), task(**data), context=[text(said)] if said else None)
    told = [(region["value"]["brushlabels"], region["meta"]["text"]) for region in drawn(answer)]
    assert told == [(["Cup"], ["for: the left cup"]), (["Dog"], ["for: the dog"])]
    lines = [region["value"]["text"] for region in answer["result"] if "text" in region["value"]]
    assert lines == ([["the left cup: 1 found; the dog: 1 found"]] if said else [])


def test_a_click_is_about_the_one_of_several_typed_phrases_that_it_touches(home: Callable[..., House]) -> None:
    where = home()
    ask(where, task(), context=[text("the left cup; the dog")])
    [clicked] = ask(where, task(), context=[keypoint(50, 60)])
    assert [region["meta"]["text"][0].startswith("for: the dog") for region in drawn(clicked)] == [True]


def test_a_click_beside_several_typed_phrases_is_about_the_one_that_it_touches(home: Callable[..., House]) -> None:
    where, typed = home(), text("the left cup; the dog")
    ask(where, task(), context=[typed])
    [clicked] = ask(where, task(), context=[typed, keypoint(50, 60)])
    assert [region["meta"]["text"][0].split(";")[0] for region in drawn(clicked)] == ["for: the dog"]


def test_too_many_phrases_at_once_are_one_line(home: Callable[..., House]) -> None:
    [answer] = ask(home(), task(), context=[text(";".join(f"cup {number}" for number in range(40)))])
    assert answer["result"][0]["value"]["text"] == ["40 descriptions were typed; at most 32 are answered"]


def test_an_annotator_reads_how_many_were_found(home: Callable[..., House]) -> None:
    [answer] = ask(home(), task(), context=[text("all cups")])
    assert answer["result"][-1]["value"]["text"] == ["all cups: 2 found"]


def test_an_empty_context_asks_for_nothing(home: Callable[..., House]) -> None:
    where = home()
    [answer] = ask(where, task(description="the dog"), context=[])
    assert answer["result"] == []
    assert where.grounder.opened == 0


REMARK = {"type": "textarea", "from_name": "comment", "to_name": "image", "value": {"text": ["the left cup"]}}
COMMENT_FIRST = CONFIG.replace('<TextArea name="prompt"', '<TextArea name="comment" toName="image"/><TextArea name="prompt"')


@pytest.mark.parametrize(
    "config", [COMMENT_FIRST, COMMENT_FIRST.replace('<TextArea name="prompt" toName="image"/>', "")], ids=["both", "alone"]
)
def test_a_remark_is_no_phrase(home: Callable[..., House], config: str) -> None:
    where = home()
    [answer] = ask(where, task(description="the dog"), context=[REMARK], config=config)
    assert answer["result"] == []
    drafted = {**task(description="the dog"), "drafts": [{"result": [REMARK]}]}
    ask(where, drafted, context=[REMARK, keypoint(50, 60)], config=config)
    assert where.segmenter.prompts[-1].box_px.tolist() == [40, 40, 60, 60]  # type: ignore[union-attr]


def test_what_is_typed_beside_a_remark_is_the_phrase(home: Callable[..., House]) -> None:
    [answer] = ask(home(), task(), context=[text("the dog"), REMARK], config=COMMENT_FIRST)
    assert drawn(answer)[0]["value"]["brushlabels"] == ["Dog"]


def test_the_prompt_may_have_another_name(home: Callable[..., House]) -> None:
    [answer] = ask(home(prompt_control="comment"), task(), context=[text("the dog"), REMARK], config=COMMENT_FIRST)
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
def test_odd_values_in_a_context_are_no_errors(home: Callable[..., House], made: dict[str, Any], odd: object, caplog: Any) -> None:
    """Each field of a region, and of its value, of any type: an answer comes, and an unhashable label is no label."""
    where = home()
    spoilt = [{**made, name: odd} for name in made] + [{**made, "value": {**made["value"], name: odd}} for name in made["value"]]
    for region in spoilt:
        [answer] = ask(where, task(description="the dog"), context=[region])
        assert "internal error" not in json.dumps(answer)
    assert "failed" not in caplog.text


def test_an_unhashable_label_leaves_the_others(home: Callable[..., House]) -> None:
    clicked = keypoint(50, 50)
    clicked["value"]["keypointlabels"] = [["Cup"], {"Cup": "Dog"}, None, "Dog"]
    [answer] = ask(home(), task(), context=[clicked])
    assert drawn(answer)[0]["value"]["brushlabels"] == ["Dog"]


def test_a_draft_holds_the_current_phrase_too(home: Callable[..., House]) -> None:
    where = home()
    drafted = {**task(description="the dog"), "drafts": [{"result": [text("the left cup")]}]}
    ask(where, drafted, context=[keypoint(20, 20)])
    assert where.segmenter.prompts[-1].box_px.tolist() == [10, 10, 30, 30]  # type: ignore[union-attr]


def test_a_click_with_no_phrase_stands_alone(home: Callable[..., House]) -> None:
    where = home()
    [answer] = ask(where, task(), context=[keypoint(50, 50, label="Dog"), keypoint(90, 90, positive=False, label="Dog")])
    prompt = where.segmenter.prompts[-1]
    assert prompt.box_px is None
    assert prompt.points_px.tolist() == [[50.0, 40.0], [90.0, 72.0]]
    assert prompt.labels.tolist() == [1, 0]
    assert answer["result"][0]["value"]["brushlabels"] == ["Dog"]


def test_a_click_answers_with_the_instance_that_it_touched(home: Callable[..., House]) -> None:
    [answer] = ask(home(), task(description="all cups"), context=[keypoint(70, 20)])
    [region] = drawn(answer)
    assert mask(region)[20, 70]
    assert not mask(region)[20, 20]


def test_a_rectangle_is_a_prompt_of_its_own(home: Callable[..., House]) -> None:
    where = home()
    [answer] = ask(where, task(), context=[rectangle(40, 50, 10, 20)])
    [region] = drawn(answer)
    assert mask(region)[40:56, 40:50].all()
    assert mask(region).sum() == 160
    assert region["value"]["brushlabels"] == ["Dog"]


def test_a_turned_rectangle_is_boxed(home: Callable[..., House]) -> None:
    where = home()
    ask(where, task(size="100x100"), context=[rectangle(50, 50, 20, 10, rotation=90)])
    assert np.allclose(where.segmenter.prompts[-1].box_px, [40, 50, 50, 70])  # type: ignore[arg-type]


def test_a_second_click_costs_no_language_model(home: Callable[..., House]) -> None:
    where = home()
    assert where.service.engine.model is not None
    where.service.engine.model.current.grounder = RememberingGrounder(where.grounder)
    ask(where, task(description="the dog"), context=[keypoint(50, 60)])
    asked = len(where.grounder.asked)
    ask(where, task(description="the dog"), context=[keypoint(50, 60), keypoint(52, 62, positive=False)])
    assert len(where.grounder.asked) == asked > 0
    assert where.grounder.opened == 1


@pytest.mark.parametrize("tag", ["BitmaskLabels", "PolygonLabels", "RectangleLabels"])
def test_regions_follow_the_config(home: Callable[..., House], tag: str) -> None:
    config = f'<View><Image name="i" value="$image"/><{tag} name="m" toName="i"><Label value="Cup"/></{tag}></View>'
    [answer] = ask(home(), task(description="the left cup"), config=config)
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
def test_a_bad_task_spoils_only_itself(home: Callable[..., House], bad: object) -> None:
    where = home()
    answers = ask(where, task(1, description="the dog"), bad, task(2, description="the dog"))
    assert answers[1] == []
    assert answers[0]["result"]
    assert answers[2]["result"]
    assert where.service.metrics.recent[0].message
    assert b'sam4mllm_tasks_total{outcome="failed"} 1.0' in where.service.metrics.text()


@pytest.mark.parametrize("config", ["", "<View/>", '<View><Image name="image" value="$image"/></View>'])
def test_a_bad_config_fails_each_task_and_an_annotator_still_gets_a_prediction(home: Callable[..., House], config: str) -> None:
    where = home()
    assert ask(where, task(1), task(2), config=config) == [[], []]
    [answer] = ask(where, task(1), context=[text("the dog")], config=config)
    assert answer["result"] == []


def test_an_annotator_reads_what_went_wrong(home: Callable[..., House]) -> None:
    [answer] = ask(home(), {"id": 1, "data": {"image": "dead"}}, context=[text("the dog")])
    assert answer["result"][0]["value"]["text"] == ["the image host does not answer"]


def test_two_requests_at_once_for_a_task_are_one_inference(home: Callable[..., House], tmp_path: Path) -> None:
    shared: list[tuple[int, str]] = []
    where = home()
    where.service.predictor._shared = lambda number, version: shared.append((number, version))
    where.images.delay = 0.1
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: ask(where, task(description="the dog")), range(2))
    assert first == second
    assert (where.grounder.opened, where.images.loads) == (1, 1)
    assert ask(where, task(description="the dog")) == first
    assert where.grounder.opened == 1
    assert shared == [(1, where.service.version)]


def test_what_is_not_ready_in_time_is_left_to_be_asked_again_and_is_then_there(home: Callable[..., House]) -> None:
    where = home(deadline=0.3)
    slow, segment = threading.Event(), where.segmenter.encode

    def encode(image: Any) -> Any:
        if image.shape[1] == 90:
            slow.wait(5)
        return segment(image)

    where.segmenter.encode = encode  # type: ignore[method-assign]
    tasks = [task(1, description="the dog"), task(2, size="90x90", description="the dog"), task(3, description="the dog")]
    began = time.monotonic()
    answers = ask(where, *tasks)
    assert time.monotonic() - began < 2
    assert len(answers) == 3
    assert answers[1] == []
    slow.set()
    assert all(one["result"] for one in ask(where, *tasks))
    assert where.grounder.opened == 3


@pytest.mark.parametrize("meanwhile", [False, True], ids=["asked again when it is there", "asked again before it is there"])
def test_what_comes_late_is_noted_once(home: Callable[..., House], monkeypatch: pytest.MonkeyPatch, meanwhile: bool) -> None:
    where = home(deadline=0.5)
    slow, encode, noted = threading.Event(), where.segmenter.encode, []
    notes = where.service.corrections
    serve = notes.serve

    def late(image: Any) -> Any:
        slow.wait(5)
        return encode(image)

    def note(records: Any) -> None:
        noted.append([one.phrase for one in records])
        serve(records)

    monkeypatch.setattr(where.segmenter, "encode", late)
    monkeypatch.setattr(notes, "serve", note)
    asked = task(description=["the dog", "the moon"])
    assert ask(where, asked) == [[]]
    assert notes.served(3, 1) == []
    engine = where.service.engine
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(ask, where, asked) if meanwhile else None
        while again is not None and not again.done() and not engine.waiting:
            time.sleep(0.002)
        slow.set()
    engine.run(lambda _: None, False, time.monotonic() + 5)
    answers = ask(where, asked)
    assert {one.region for one in notes.served(3, 1)} == {answers[0]["result"][0]["id"], ""}
    assert ask(where, asked) == answers
    assert noted == [["the dog", "the moon"]]
    assert where.grounder.opened == 1


def test_a_slow_image_host_does_not_break_the_deadline(home: Callable[..., House]) -> None:
    where = home(deadline=0.4)
    where.images.delay = 5.0
    began = time.monotonic()
    assert ask(where, *(task(number, description="the dog") for number in range(9))) == [[]] * 9
    assert time.monotonic() - began < 2.5


def test_a_failing_model_fails_its_task_and_serves_the_next(home: Callable[..., House]) -> None:
    where = home()
    encode = where.segmenter.encode

    def broken(image: Any) -> Any:
        raise MemoryError("a secret that nobody may read")

    where.segmenter.encode = broken  # type: ignore[method-assign]
    assert ask(where, task(description="the dog")) == [[]]
    where.segmenter.encode = encode  # type: ignore[method-assign]
    assert ask(where, task(description="the dog"))[0]["result"]


@dataclasses.dataclass
class Device:
    """Memory for so many phrases at once, next to so many images; what does not fit is an error that keeps its tensors."""

    where: House
    phrases: int
    images: int = 9
    refused: list[weakref.ref[Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._ground = self.where.grounder.ground
        self.where.grounder.ground = self.ground  # type: ignore[method-assign]

    def ground(self, scene: Any, phrases: Any, question: Question = "box") -> Any:
        if len(phrases) > self.phrases or self.where.service.predictor.answerer.opened.nbytes > self.images * 3 * scene.nbytes:
            tensor = torch.zeros(1)
            self.refused.append(weakref.ref(tensor))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        assert all(one() is None for one in self.refused), "what was refused takes up memory still"
        return self._ground(scene, phrases, question)


def test_phrases_that_do_not_fit_together_are_asked_one_by_one(home: Callable[..., House]) -> None:
    where = home()
    [answer] = ask(where, task(description=["the left cup", "the dog", "the moon"]))
    device = Device(where, phrases=1)
    [again] = ask(where, task(2, description=["the left cup", "the dog", "the moon"]))
    assert [region["value"] for region in again["result"]] == [region["value"] for region in answer["result"]]
    assert len(device.refused) == 1
    assert {one.phrase for one in where.service.corrections.served(3, 2)} == {"the left cup", "the dog", "the moon"}
    assert where.service.metrics.recent == []


def test_images_that_are_open_make_room_for_another(home: Callable[..., House]) -> None:
    where = home()
    device = Device(where, phrases=9, images=2)
    for number in range(1, 4):
        assert ask(where, task(number, description=["the left cup", "the dog"]))[0]["result"]
    assert len(device.refused) == 1
    assert where.grounder.opened == 4
    assert len(where.service.predictor.answerer.opened) == 1


def test_a_phrase_that_does_not_fit_fails_its_task_with_advice_and_the_next_is_served(home: Callable[..., House]) -> None:
    where = home()
    device = Device(where, phrases=0)
    assert ask(where, task(description=["the left cup", "the dog"])) == [[]]
    [failure] = where.service.metrics.recent
    assert failure.message.startswith("out of memory")
    assert "SAM4MLLM_MAX_PIXELS" in failure.message
    assert len(where.service.predictor.answerer.opened) == 0
    [read] = ask(where, task(), context=[text("the dog")])
    assert read["result"][0]["value"]["text"] == [failure.message]
    device.phrases = 1
    assert ask(where, task(description="the dog"))[0]["result"]


def test_a_click_that_does_not_fit_at_first_is_tried_again_alone(home: Callable[..., House]) -> None:
    where = home()
    decode, failing = where.segmenter.decode, [torch.cuda.OutOfMemoryError("CUDA out of memory")]

    def once(embedding: Any, prompts: Any) -> Any:
        if failing:
            raise failing.pop()
        return decode(embedding, prompts)

    where.segmenter.decode = once  # type: ignore[method-assign]
    [answer] = ask(where, task(), context=[keypoint(50, 50)])
    assert len(drawn(answer)) == 1


def test_a_pause_closes_all_images(home: Callable[..., House]) -> None:
    where = home()
    ask(where, task(description="the dog"))
    assert len(where.service.predictor.answerer.opened) == 1
    where.service.engine.pause("a training needs the room", 5.0)
    assert len(where.service.predictor.answerer.opened) == 0
    where.service.engine.resume()


@pytest.mark.parametrize("context", [None, [text("the dog")]], ids=["a task that is to be withheld", "a typed phrase"])
def test_on_a_full_disk_there_is_an_answer_and_a_line(
    home: Callable[..., House],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    context: list[dict[str, Any]] | None,
) -> None:
    def full(*_: object) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    where = home(unassisted=0.5)
    notes = where.service.corrections
    noted, new, *_ = [number for number in range(1, 20) if ask(where, task(number, description="the dog")) == [[]]]
    notes._connection.execute("DELETE FROM withheld WHERE task = ?", (new,))
    notes._connection.commit()
    monkeypatch.setattr(CorrectionLog, "_take", full)
    [answer] = ask(where, task(new, description="the dog"), context=context)
    assert drawn(answer)
    lines = [record.getMessage() for record in caplog.records if "could not be noted" in record.getMessage()]
    assert len(lines) == 2
    assert all(f"task {new}" in line for line in lines)
    assert where.service.metrics.recent == []
    assert ask(where, task(noted, description="the dog")) == [[]], "what was noted before holds"


def test_tasks_without_our_help_are_those_of_held_out_pictures(home: Callable[..., House]) -> None:
    """Whatever their numbers: the same picture is drawn without help in each of its tasks, and in no bulk run."""
    where = home(unassisted=0.2)
    places = {number: place_of(image_sha256(where.images.read(task(number)["data"]["image"], number))) for number in range(1, 60)}
    alone = [number for number in places if ask(where, task(number, description="the dog")) == [[]]]
    assert alone == [number for number, place in places.items() if place < 0.2]
    assert 3 < len(alone) < 25
    again = {**task(alone[0], description="the dog"), "id": 1_000}
    assert ask(where, again) == [[]]
    assert [drawn(answer) != [] for answer in ask(where, again, task(alone[1], description="the dog"))] == [True, True]
    assert drawn(ask(where, again, context=[text("the dog")])[0])


def test_of_several_pages_the_first_decides(home: Callable[..., House]) -> None:
    where, paged = home(unassisted=0.2), CONFIG.replace('value="$image"', 'valueList="$images"')

    def alone(reference: str) -> bool:
        return place_of(image_sha256(where.images.read(reference, None))) < 0.2

    pictures = [f"/{number}-100x80" for number in range(60)]
    low, high = next(filter(alone, pictures)), next(one for one in pictures if not alone(one))
    for number, pages in ((1, [low, high]), (2, [high, low])):
        [answer] = ask(where, {"id": number, "data": {"images": pages, "description": "the dog"}}, config=paged)
        assert (answer == []) == (number == 1)


def test_a_picture_that_cannot_be_had_is_no_reason_to_hold_back(home: Callable[..., House]) -> None:
    where = home(unassisted=0.5)
    assert ask(where, task(1, "dead", description="the dog")) == [[]]
    assert where.service.metrics.recent
    assert not where.service.corrections.withheld(3, 1)


def test_a_failure_leaves_one_line_in_the_log_without_its_text(home: Callable[..., House], caplog: pytest.LogCaptureFixture) -> None:
    where = home()

    def broken(image: Any) -> Any:
        raise RuntimeError("a secret that nobody may read")

    where.segmenter.encode = broken  # type: ignore[method-assign]
    ask(where, {"id": "1\nforged", "data": {"image": "/100x80", "description": "the dog"}})
    [line] = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert "RuntimeError at " in line
    assert "secret" not in caplog.text
    assert "\nforged" not in line


def test_an_unreadable_answer_is_not_stored_as_no_such_object(home: Callable[..., House]) -> None:
    where = home()
    where.grounder.known = {"the dog": dataclasses.replace(grounding("the dog", []), note="the model's answer could not be read")}
    assert ask(where, task(description="the dog")) == [[]]
    [answer] = ask(where, task(), context=[text("the dog")])
    assert answer["result"][0]["value"]["text"] == ["the dog: the model's answer could not be read"]


def test_a_note_stands_beside_the_regions_and_in_the_answers_line(home: Callable[..., House]) -> None:
    where, note = home(), "the model gave percent of the image's sides; they were rescaled"
    where.grounder.known = {"the dog": dataclasses.replace(grounding("the dog", [[40, 40, 60, 60]]), note=note)}
    [answer] = ask(where, task(description="the dog"))
    assert [region["meta"]["text"] for region in drawn(answer)] == [[f"for: the dog; {note}"]]
    [answer] = ask(where, task(), context=[text("the dog")])
    [line] = [region["value"]["text"] for region in answer["result"] if "text" in region["value"]]
    assert line == [f"the dog: 1 found ({note})"]


@pytest.mark.parametrize(
    ("thought", "beside", "in_line"),
    [
        pytest.param("The dog is\nthe brown one.", "The dog is the brown one.", "The dog is the brown one.", id="short"),
        pytest.param("word " * 100, ("word " * 100).strip(), "word " * 23 + "word…", id="shortened in the line"),
        pytest.param("word " * 1000, "word " * 199 + "word…", "word " * 23 + "word…", id="bounded beside the region"),
        pytest.param("<b>dog</b>\x00\u202e", r"<b>dog</b>\x00\u202e", r"<b>dog</b>\x00\u202e", id="markup and control characters"),
    ],
)
def test_a_thought_stands_beside_the_regions_and_in_short_in_the_answers_line(
    home: Callable[..., House], thought: str, beside: str, in_line: str
) -> None:
    where = home(strategy="reason")
    where.grounder.known = {
        "the dog": dataclasses.replace(grounding("the dog", [[40, 40, 60, 60]]), thought=thought),
        "the cat": dataclasses.replace(grounding("the cat", []), thought=thought),
    }
    [answer] = ask(where, task(description="the dog"))
    assert [region["meta"]["text"] for region in drawn(answer)] == [[f"for: the dog; thought: {beside}"]]
    for phrase, count in (("the dog", "1 found"), ("the cat", "no such object")):
        [answer] = ask(where, task(), context=[text(phrase)])
        [line] = [region["value"]["text"] for region in answer["result"] if "text" in region["value"]]
        assert line == [f"{phrase}: {count}; thought: {in_line}"]


def test_a_note_comes_before_the_thought(home: Callable[..., House]) -> None:
    where, note = home(), "the thought was cut off at 512 tokens"
    where.grounder.known = {"the dog": dataclasses.replace(grounding("the dog", [[40, 40, 60, 60]]), note=note, thought="It is")}
    [answer] = ask(where, task(description="the dog"))
    assert [region["meta"]["text"] for region in drawn(answer)] == [[f"for: the dog; {note}; thought: It is"]]


def test_what_is_served_with_a_note_can_be_corrected(home: Callable[..., House]) -> None:
    where = home()
    where.grounder.known = {
        "the dog": dataclasses.replace(grounding("the dog", [[40, 40, 60, 60]]), note="the model's answer was cut off; there may be more"),
        "the cat": dataclasses.replace(grounding("the cat", []), note="the model's answer could not be read"),
    }
    [answer] = ask(where, task(description=["the dog", "the cat"]))
    served = where.service.corrections.served(3, 1)
    assert [(one.phrase, one.region) for one in served] == [("the dog", region["id"]) for region in drawn(answer)]


def test_a_typed_phrase_stays_with_its_task_and_project(home: Callable[..., House]) -> None:
    where = home()
    ask(where, task(1), context=[text("the dog")])
    for other in (task(2), {"data": {"image": "/100x80"}}):
        ask(where, other, context=[keypoint(90, 90)])
        assert where.segmenter.prompts[-1].box_px is None or where.segmenter.prompts[-1].box_px.tolist() != [40, 40, 60, 60]


def test_a_click_on_a_task_with_a_bad_description_stands_alone(home: Callable[..., House]) -> None:
    [answer] = ask(home(), task(description="x" * 501), context=[keypoint(50, 50)])
    assert len(drawn(answer)) == 1


def test_a_config_without_labels_and_a_task_without_a_phrase(home: Callable[..., House]) -> None:
    where = home()
    config = '<View><Image name="i" value="$image"/><BrushLabels name="m" toName="i" value="$labels"/></View>'
    assert ask(where, task(), config=config) == [[]]
    assert "nothing to look for" in where.service.metrics.recent[0].message
    [answer] = ask(where, task(description="the dog"), config=config)
    assert answer["result"][0]["value"]["brushlabels"] == []


def test_more_requests_than_places_are_refused_at_once(home: Callable[..., House]) -> None:
    where = home(queue=2)
    where.images.delay = 0.3
    with ThreadPoolExecutor(7) as pool:
        asked = [pool.submit(ask, where, task(number, description="the dog")) for number in range(7)]
        refused = [isinstance(one.exception(), QueueFullError) for one in asked]
    assert sum(refused) == 5


@examples(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fails=st.lists(st.sampled_from(["fine", "dead", "small", "model", "phrase"]), min_size=1, max_size=12))
def test_one_result_a_task_in_order_whatever_fails(home: Callable[..., House], fails: list[str]) -> None:
    where = home()
    segment, ran = where.segmenter.decode, []

    def decode(embedding: Any, prompts: Any) -> Any:
        ran.append(embedding.width)
        if embedding.width == 77:
            raise RuntimeError("the model broke")
        return segment(embedding, prompts)

    where.segmenter.decode = decode  # type: ignore[method-assign]
    made = {
        "fine": lambda number: task(number, size=f"{100 + number}x80", description="the dog"),
        "dead": lambda number: task(number, size="dead", description="the dog"),
        "small": lambda number: task(number, size="2x2", description="the dog"),
        "model": lambda number: task(number, size="77x80", description="the dog"),
        "phrase": lambda number: task(number, description=["x" * 501]),
    }
    answers = ask(where, *(made[kind](number) for number, kind in enumerate(fails)))
    assert len(answers) == len(fails)
    for number, (kind, answer) in enumerate(zip(fails, answers, strict=True)):
        if kind == "fine":
            assert answer["result"][0]["original_width"] == 100 + number
        else:
            assert answer == []
    where.service.close(5.0)
