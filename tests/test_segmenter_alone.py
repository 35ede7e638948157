"""A server without an MLLM: the segmenter takes the phrase, clicks are drawn, what reviewers do is kept, and no LoRA is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from backend.corrections.log_file import SOON
from backend.corrections.log_records import Served
from backend.corrections.reviews import Reviews
from backend.learning.snapshot import HOLDOUT
from backend.service import Service, build, version_file
from backend.serving.leases import Leases, remembering
from backend.web.app import create_app
from benchmarks.waiting import wait_for
from sam4mllm.adapters.registry import Registry
from sam4mllm.confidence import FIT_FROM
from sam4mllm.errors import ModelError
from sam4mllm.loading import Variants
from sam4mllm.options import Options
from sam4mllm.segmentation.concept import Candidates
from tests.adapter_files import ORIGIN, adapter
from tests.backend_fakes import CONFIG, settings, task
from tests.fakes import FakeConceptSegmenter
from tests.learning_fakes import FAKE_TRAINER
from tests.test_calibration import judged
from tests.test_learning import ManyImages, correct, ended, event
from tests.test_predictor import keypoint, rectangle, text

BASE_URL = "http://127.0.0.1"
NO_LORA = "no LoRA is trained: it changes an MLLM, and the model is none; reviews are kept, and the score goes on learning from them"
LONG = "the segmenter reads 32 tokens of a phrase, and this one has 40: say it in fewer words"


def seen(*boxes: tuple[int, int, int, int], presence: float = 0.9, note: str = "") -> Candidates:
    """Candidates in an image of 80 x 100 that fill their boxes, the best first."""
    masks = np.zeros((len(boxes), 80, 100), np.bool_)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return Candidates(np.array(boxes, np.float32).reshape(-1, 4), 0.8 - 0.1 * np.arange(len(boxes)), masks, presence, note)


CUPS = seen((10, 10, 30, 30), (60, 10, 80, 30))
KNOWN = {"the left cup": seen((10, 10, 40, 40)), "cups": CUPS, "glass": seen(), "a long one": seen((10, 10, 30, 30), note=LONG)}
KNOWN |= {"a long one of nothing": seen(note=LONG)}


class Alone:
    """A running service whose segmenter takes phrases, and a browser of its pages."""

    def __init__(self, home: Path, **given: Any) -> None:
        self.segmenter = FakeConceptSegmenter(known=KNOWN)

        def load(chosen: Any) -> Leases:
            variants = Variants(None, self.segmenter, chosen.options, "none")
            return Leases(remembering(variants.base), variants)

        chosen = settings(home, **{"model": "none", "segmenter": "sam3", **given})
        self.service: Service = build(chosen, load, ManyImages(), FAKE_TRAINER)
        self.service.start()
        wait_for("the models", lambda: self.service.engine.state != "loading", 30, 0.002)
        self.client: FlaskClient = create_app(self.service).test_client()

    def ask(self, *context: dict[str, Any], **data: Any) -> dict[str, Any]:
        """The prediction of a task; interactive if there is a context."""
        params = {"params": {"context": {"result": list(context)}}} if context else {}
        body = {"tasks": [task(1, **data)], "project": "1.1", "label_config": CONFIG, **params}
        answer: Any = self.client.post("/predict", json=body, base_url=BASE_URL).json
        [prediction] = answer["results"]
        return prediction or {}

    def page(self) -> str:
        return self.client.get("/", base_url=BASE_URL).text


Start = Callable[..., Alone]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Alone] = []

    def make(**given: Any) -> Alone:
        started.append(Alone(tmp_path, **given))
        return started[-1]

    yield make
    for place in started:
        place.service.close(5)


def masks(prediction: dict[str, Any]) -> list[dict[str, Any]]:
    return [region for region in prediction["result"] if region["type"] == "brushlabels"]


def line(prediction: dict[str, Any]) -> str:
    [found] = [region["value"]["text"][0] for region in prediction["result"] if region["type"] == "textarea"]
    return str(found)


# -- answers -------------------------------------------------------------------------------------------------------------------------------


def test_it_is_ready_and_says_what_serves(start: Start) -> None:
    place = start()
    version = place.service.version
    assert version.startswith("none-0-")
    assert place.client.post("/setup", json={"project": "1.1", "schema": CONFIG}, base_url=BASE_URL).json == {"model_version": version}
    assert place.client.get("/health", base_url=BASE_URL).status_code == 200
    assert place.client.get("/versions", base_url=BASE_URL).json == {"versions": [version]}
    assert place.client.get("/metrics", base_url=BASE_URL).status_code == 200
    assert "Model none (no MLLM), segmenter sam3, strategy concept" in place.page()
    assert NO_LORA in place.page()
    assert "None yet: the segmenter alone serves." in place.page()


def test_phrases_of_a_task_are_the_segmenters(start: Start) -> None:
    place = start()
    prediction = place.ask(description="cups")
    assert len(masks(prediction)) == 2
    assert prediction["model_version"] == place.service.version
    assert [region["value"]["brushlabels"] for region in masks(prediction)] == [["Cup"], ["Cup"]]
    assert place.segmenter.prompts == []


@pytest.mark.parametrize(
    ("phrase", "says"),
    [
        pytest.param("cups", "cups: 2 found by the segmenter", id="some"),
        pytest.param("zebra", "zebra: no such object", id="none"),
        pytest.param(
            "glass",
            "glass: nothing with a score of 0.5 or more, though the segmenter sees some; SAM4MLLM_THRESHOLD sets it",
            id="none that is sure",
        ),
        pytest.param("a long one", f"a long one: 1 found by the segmenter ({LONG})", id="some for a part"),
        pytest.param("a long one of nothing", f"a long one of nothing: {LONG}", id="none for a part"),
    ],
)
def test_an_annotator_reads_what_the_segmenter_says(start: Start, phrase: str, says: str) -> None:
    assert line(start().ask(text(phrase))) == says


def test_a_phrase_that_was_cut_and_found_nothing_is_left_open(start: Start) -> None:
    place = start()
    assert place.ask(description="a long one of nothing") == {}
    assert LONG in place.page()


@pytest.mark.parametrize(
    ("pointing", "point"),
    [pytest.param(keypoint(20, 25), (20.0, 20.0), id="click"), pytest.param(rectangle(10, 12.5, 20, 25, "Cup"), None, id="rectangle")],
)
def test_what_an_annotator_points_at_is_drawn(start: Start, pointing: dict[str, Any], point: tuple[float, float] | None) -> None:
    place = start()
    assert len(masks(place.ask(pointing))) == 1
    [prompt] = place.segmenter.prompts
    assert [tuple(one) for one in prompt.points_px] == ([point] if point else [])
    assert (prompt.box_px is None) is (point is not None)


def test_a_click_draws_the_touched_one_anew_and_takes_no_image_in_again(start: Start) -> None:
    place = start()
    place.ask(description="cups")
    [refined] = masks(place.ask(keypoint(20, 25), description="cups"))
    assert refined
    [prompt] = place.segmenter.prompts
    assert prompt.box_px is not None
    assert prompt.box_px.tolist() == [10, 10, 30, 30]
    assert prompt.points_px.tolist() == [[20, 20]]
    assert place.segmenter.encoded == 1


# -- learning ------------------------------------------------------------------------------------------------------------------------------


def test_start_training_says_why_no_lora_is_trained(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.learning.conductor.Child", lambda *_: pytest.fail("a process was started"))
    caplog.set_level(logging.INFO)
    place = start()
    correct(place.service, 20)
    answer = place.client.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 1}}, base_url=BASE_URL)
    assert (answer.status_code, answer.json and answer.json["note"]) == (201, NO_LORA)
    assert "note" not in (place.client.post("/webhook", json=event(1), base_url=BASE_URL).json or {})
    run = ended(place.service)
    assert (run.state, run.message) == ("postponed", NO_LORA)
    assert run.counts["train"] + run.counts[HOLDOUT] == 20
    assert run.counts[HOLDOUT] > 0

    def told() -> list[str]:
        return [record.message for record in caplog.records if NO_LORA in record.message]

    wait_for("the line about the run", lambda: len(told()) == 2, 30)  # which is written once its record is
    assert told() == [NO_LORA, f"{run.id}: postponed, {NO_LORA}"]
    asked = place.client.post("/api/runs", json={}, base_url=BASE_URL)
    assert asked.json is not None
    assert asked.json["message"] == NO_LORA


def test_corrections_start_no_run_by_themselves(start: Start) -> None:
    place = start(train_after=5)
    correct(place.service, 20)
    for _ in range(3):
        place.service.learner._count()
    assert place.service.learner.count_new() == 20
    assert place.service.learner.runs.all() == []


def test_a_run_that_an_mllm_began_waits_for_it(start: Start) -> None:
    place = start()
    runs = place.service.learner.runs
    begun = runs.save(runs.create("of before"), state="training", champion="demo-0-00000000")
    correct(place.service, 1)
    place.service.learner.ask("test")
    assert ended(place.service, 2).message == NO_LORA
    assert runs.load(begun.id) == begun


def test_the_score_learns_from_reviews(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    place = start()
    before = place.ask(description="cups")["score"]
    learner = place.service.learner
    monkeypatch.setattr(learner._book, "read", lambda: Reviews(judged(2 * FIT_FROM), []))
    correct(place.service, 1)
    learner._next_look = 0.0
    learner._look_at_reviews()
    leases = place.service.engine.model
    assert leases is not None
    assert leases.current.calibration is not None
    place.service.predictor.answers.clear()
    assert place.ask(description="cups")["score"] != before


def test_what_is_served_is_noted_with_what_the_score_learns_from(start: Start) -> None:
    place = start()
    place.ask(description="cups")
    records: list[Served] = place.service.corrections.served(1, 1, SOON)
    assert len(records) == 2
    assert sorted(one.features["box_probability"] for one in records) == pytest.approx([0.7, 0.8])


def test_strategy_concept_asks_no_mllm_either(tmp_path: Path) -> None:
    assert settings(tmp_path, strategy="concept").untrained.startswith("no LoRA is trained: it changes an MLLM, and strategy concept asks")
    assert settings(tmp_path).untrained == ""
    assert settings(tmp_path, strategy="choose").untrained == ""


# -- versions ------------------------------------------------------------------------------------------------------------------------------


def test_a_champion_waits_and_is_not_lost(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(tmp_path)
    first, second = (registry.add(adapter(value), **ORIGIN).version for value in (0.1, 0.2))
    registry.promote(first)
    registry.promote(second)
    place = start()
    versions = place.service.versions
    for _ in range(3):
        versions.sync()
    [told] = [record.message for record in caplog.records if second in record.message]
    assert told == f"{second} waits: it serves with an MLLM, and the model is none; it serves again when its model does"
    assert place.ask(description="cups")["model_version"] == place.service.version
    for change in (lambda: versions.promote(first), versions.rollback, lambda: versions.rollback(second)):
        with pytest.raises(ModelError, match="the model is none"):
            change()
    assert registry.serving() == second
    page = place.page()
    assert "Roll back" not in page
    assert ">serves<" not in page
    assert page.count("of another model") == 2
    assert "sam4mllm_promoted_timestamp_seconds" not in place.client.get("/metrics", base_url=BASE_URL).text


def test_reviews_without_an_mllm_roll_no_champion_back(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    registry.promote(registry.add(adapter(), **ORIGIN).version)
    place = start()
    monkeypatch.setattr(place.service.learner.watch, "look", lambda *_: pytest.fail("the champion was judged"))
    correct(place.service, 1)
    place.service.learner._next_look = 0.0
    place.service.learner._look_at_reviews()


@pytest.mark.parametrize("given", [{}, {"strategy": "box"}, {"pattern": "unsure"}, {"model": "some/model"}], ids=str)
def test_the_threshold_renames_no_version_of_before(tmp_path: Path, given: dict[str, Any]) -> None:
    assert version_file(settings(tmp_path, threshold=0.3, **given)) == version_file(settings(tmp_path, **given))


@pytest.mark.parametrize("given", [{"model": "none"}, {"strategy": "concept"}, {"strategy": "choose"}], ids=str)
def test_the_threshold_is_part_of_the_version_where_it_counts(tmp_path: Path, given: dict[str, Any]) -> None:
    assert version_file(settings(tmp_path, threshold=0.3, **given)) != version_file(settings(tmp_path, **given))


@pytest.mark.parametrize(("model", "name"), [("demo", "version-851a10018b35.txt"), ("some/model", "version-00c58543f0ca.txt")])
def test_the_note_of_the_release_before_thresholds_is_found(tmp_path: Path, model: str, name: str) -> None:
    assert version_file(settings(tmp_path, model=model)).name == name


def test_the_noted_version_is_known_before_the_models_are(start: Start, tmp_path: Path) -> None:
    version = start().service.version
    again = build(settings(tmp_path, model="none", segmenter="sam3"), lambda _: pytest.fail("loaded"), ManyImages())
    assert again.version == version
    again.close(1)


def test_the_threshold_reaches_the_models(tmp_path: Path) -> None:
    assert settings(tmp_path, strategy="choose", threshold=0.3).options == Options("choose", threshold=0.3)
