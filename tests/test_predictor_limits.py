"""Predictions at their limits: time, memory, a full disk, withheld tasks, notes and thoughts."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from backend.corrections.log import CorrectionLog
from backend.errors import QueueFullError
from backend.support.places import place_of
from sam4mllm.grounding.protocol import Question
from sam4mllm.images import image_sha256
from tests.backend_fakes import CONFIG, House, task
from tests.fakes import grounding
from tests.test_predictor import ask, drawn, keypoint, text


def test_what_is_not_ready_in_time_is_left_to_be_asked_again_and_is_then_there(houses: Callable[..., House]) -> None:
    where = houses(deadline=0.3)
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
def test_what_comes_late_is_noted_once(houses: Callable[..., House], monkeypatch: pytest.MonkeyPatch, meanwhile: bool) -> None:
    where = houses(deadline=0.5)
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


def test_a_slow_image_host_does_not_break_the_deadline(houses: Callable[..., House]) -> None:
    where = houses(deadline=0.4)
    where.images.delay = 5.0
    began = time.monotonic()
    assert ask(where, *(task(number, description="the dog") for number in range(9))) == [[]] * 9
    assert time.monotonic() - began < 2.5


def test_a_failing_model_fails_its_task_and_serves_the_next(houses: Callable[..., House]) -> None:
    where = houses()
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


def test_phrases_that_do_not_fit_together_are_asked_one_by_one(houses: Callable[..., House]) -> None:
    where = houses()
    [answer] = ask(where, task(description=["the left cup", "the dog", "the moon"]))
    device = Device(where, phrases=1)
    [again] = ask(where, task(2, description=["the left cup", "the dog", "the moon"]))
    assert [region["value"] for region in again["result"]] == [region["value"] for region in answer["result"]]
    assert len(device.refused) == 1
    assert {one.phrase for one in where.service.corrections.served(3, 2)} == {"the left cup", "the dog", "the moon"}
    assert where.service.metrics.recent == []


def test_images_that_are_open_make_room_for_another(houses: Callable[..., House]) -> None:
    where = houses()
    device = Device(where, phrases=9, images=2)
    for number in range(1, 4):
        assert ask(where, task(number, description=["the left cup", "the dog"]))[0]["result"]
    assert len(device.refused) == 1
    assert where.grounder.opened == 4
    assert len(where.service.predictor.answerer.opened) == 1


def test_a_phrase_that_does_not_fit_fails_its_task_with_advice_and_the_next_is_served(houses: Callable[..., House]) -> None:
    where = houses()
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


def test_a_click_that_does_not_fit_at_first_is_tried_again_alone(houses: Callable[..., House]) -> None:
    where = houses()
    decode, failing = where.segmenter.decode, [torch.cuda.OutOfMemoryError("CUDA out of memory")]

    def once(embedding: Any, prompts: Any) -> Any:
        if failing:
            raise failing.pop()
        return decode(embedding, prompts)

    where.segmenter.decode = once  # type: ignore[method-assign]
    [answer] = ask(where, task(), context=[keypoint(50, 50)])
    assert len(drawn(answer)) == 1


def test_a_pause_closes_all_images(houses: Callable[..., House]) -> None:
    where = houses()
    ask(where, task(description="the dog"))
    assert len(where.service.predictor.answerer.opened) == 1
    where.service.engine.pause("a training needs the room", 5.0)
    assert len(where.service.predictor.answerer.opened) == 0
    where.service.engine.resume()


@pytest.mark.parametrize("context", [None, [text("the dog")]], ids=["a task that is to be withheld", "a typed phrase"])
def test_on_a_full_disk_there_is_an_answer_and_a_line(
    houses: Callable[..., House],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    context: list[dict[str, Any]] | None,
) -> None:
    def full(*_: object) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    where = houses(unassisted=0.5)
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


def test_tasks_without_our_help_are_those_of_held_out_pictures(houses: Callable[..., House]) -> None:
    """Whatever their numbers: the same picture is drawn without help in each of its tasks, and in no bulk run."""
    where = houses(unassisted=0.2)
    places = {number: place_of(image_sha256(where.images.read(task(number)["data"]["image"], number))) for number in range(1, 60)}
    alone = [number for number in places if ask(where, task(number, description="the dog")) == [[]]]
    assert alone == [number for number, place in places.items() if place < 0.2]
    assert 3 < len(alone) < 25
    again = {**task(alone[0], description="the dog"), "id": 1_000}
    assert ask(where, again) == [[]]
    assert [drawn(answer) != [] for answer in ask(where, again, task(alone[1], description="the dog"))] == [True, True]
    assert drawn(ask(where, again, context=[text("the dog")])[0])


def test_of_several_pages_the_first_decides(houses: Callable[..., House]) -> None:
    where, paged = houses(unassisted=0.2), CONFIG.replace('value="$image"', 'valueList="$images"')

    def alone(reference: str) -> bool:
        return place_of(image_sha256(where.images.read(reference, None))) < 0.2

    pictures = [f"/{number}-100x80" for number in range(60)]
    low, high = next(filter(alone, pictures)), next(one for one in pictures if not alone(one))
    for number, pages in ((1, [low, high]), (2, [high, low])):
        [answer] = ask(where, {"id": number, "data": {"images": pages, "description": "the dog"}}, config=paged)
        assert (answer == []) == (number == 1)


def test_a_picture_that_cannot_be_had_is_no_reason_to_hold_back(houses: Callable[..., House]) -> None:
    where = houses(unassisted=0.5)
    assert ask(where, task(1, "dead", description="the dog")) == [[]]
    assert where.service.metrics.recent
    assert not where.service.corrections.withheld(3, 1)


def test_a_failure_leaves_one_line_in_the_log_without_its_text(houses: Callable[..., House], caplog: pytest.LogCaptureFixture) -> None:
    where = houses()

    def broken(image: Any) -> Any:
        raise RuntimeError("a secret that nobody may read")

    where.segmenter.encode = broken  # type: ignore[method-assign]
    ask(where, {"id": "1\nforged", "data": {"image": "/100x80", "description": "the dog"}})
    [line] = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert "RuntimeError at " in line
    assert "secret" not in caplog.text
    assert "\nforged" not in line


def test_an_unreadable_answer_is_not_stored_as_no_such_object(houses: Callable[..., House]) -> None:
    where = houses()
    where.grounder.known = {"the dog": dataclasses.replace(grounding("the dog", []), note="the model's answer could not be read")}
    assert ask(where, task(description="the dog")) == [[]]
    [answer] = ask(where, task(), context=[text("the dog")])
    assert answer["result"][0]["value"]["text"] == ["the dog: the model's answer could not be read"]


def test_a_note_stands_beside_the_regions_and_in_the_answers_line(houses: Callable[..., House]) -> None:
    where, note = houses(), "the model gave percent of the image's sides; they were rescaled"
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
    houses: Callable[..., House], thought: str, beside: str, in_line: str
) -> None:
    where = houses(strategy="reason")
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


def test_a_note_comes_before_the_thought(houses: Callable[..., House]) -> None:
    where, note = houses(), "the thought was cut off at 512 tokens"
    where.grounder.known = {"the dog": dataclasses.replace(grounding("the dog", [[40, 40, 60, 60]]), note=note, thought="It is")}
    [answer] = ask(where, task(description="the dog"))
    assert [region["meta"]["text"] for region in drawn(answer)] == [[f"for: the dog; {note}; thought: It is"]]


def test_what_is_served_with_a_note_can_be_corrected(houses: Callable[..., House]) -> None:
    where = houses()
    where.grounder.known = {
        "the dog": dataclasses.replace(grounding("the dog", [[40, 40, 60, 60]]), note="the model's answer was cut off; there may be more"),
        "the cat": dataclasses.replace(grounding("the cat", []), note="the model's answer could not be read"),
    }
    [answer] = ask(where, task(description=["the dog", "the cat"]))
    served = where.service.corrections.served(3, 1)
    assert [(one.phrase, one.region) for one in served] == [("the dog", region["id"]) for region in drawn(answer)]


def test_a_typed_phrase_stays_with_its_task_and_project(houses: Callable[..., House]) -> None:
    where = houses()
    ask(where, task(1), context=[text("the dog")])
    for other in (task(2), {"data": {"image": "/100x80"}}):
        ask(where, other, context=[keypoint(90, 90)])
        assert where.segmenter.prompts[-1].box_px is None or where.segmenter.prompts[-1].box_px.tolist() != [40, 40, 60, 60]


def test_a_click_on_a_task_with_a_bad_description_stands_alone(houses: Callable[..., House]) -> None:
    [answer] = ask(houses(), task(description="x" * 501), context=[keypoint(50, 50)])
    assert len(drawn(answer)) == 1


def test_a_config_without_labels_and_a_task_without_a_phrase(houses: Callable[..., House]) -> None:
    where = houses()
    config = '<View><Image name="i" value="$image"/><BrushLabels name="m" toName="i" value="$labels"/></View>'
    assert ask(where, task(), config=config) == [[]]
    assert "nothing to look for" in where.service.metrics.recent[0].message
    [answer] = ask(where, task(description="the dog"), config=config)
    assert answer["result"][0]["value"]["brushlabels"] == []


def test_more_requests_than_places_are_refused_at_once(houses: Callable[..., House]) -> None:
    where = houses(queue=2)
    where.images.delay = 0.3
    with ThreadPoolExecutor(7) as pool:
        asked = [pool.submit(ask, where, task(number, description="the dog")) for number in range(7)]
        refused = [isinstance(one.exception(), QueueFullError) for one in asked]
    assert sum(refused) == 5


@examples(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fails=st.lists(st.sampled_from(["fine", "dead", "small", "model", "phrase"]), min_size=1, max_size=12))
def test_one_result_a_task_in_order_whatever_fails(houses: Callable[..., House], fails: list[str]) -> None:
    where = houses()
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
