"""The strategies on fakes: what is asked, what is kept, what reaches the segmenter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from sam4mllm.clicks import Clicks
from sam4mllm.confidence import score_empty
from sam4mllm.errors import PhraseError, PromptError
from sam4mllm.grounding.protocol import Inquiry, Replies, Scene
from sam4mllm.masks import box_of
from sam4mllm.options import Choice, Options
from sam4mllm.pipeline import Pipeline
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Masks, Prompt, SpokenPoints
from tests.fakes import FakeGrounder, FakeSegmenter, grounding, said

IMAGE = np.zeros((100, 200, 3), np.uint8)
CUP = grounding("the cup", [[20, 10, 60, 50]])
CUPS = grounding("all cups", [[20, 10, 60, 50], [100, 30, 180, 90]])
SPOKEN = SpokenPoints(np.array([[30, 20]], np.float32), np.array([[55, 45], [58, 12]], np.float32))
MARKED = grounding("the cup", [[20, 10, 60, 50]], points=(SPOKEN,))


def build(*known: object, **options: object) -> tuple[Pipeline, FakeGrounder, FakeSegmenter]:
    grounder = FakeGrounder({one.phrase: one for one in known})  # type: ignore[attr-defined]
    segmenter = FakeSegmenter()
    return Pipeline(grounder, segmenter, Options(**options)), grounder, segmenter  # type: ignore[arg-type]


def clicks(points: list[list[float]], labels: list[int], boxes: list[list[float]] | None = None) -> Clicks:
    return Clicks(np.array(points, np.float32).reshape(-1, 2), np.array(labels, np.int64), np.array(boxes or [], np.float32).reshape(-1, 4))


def test_box_prompts_with_the_box_alone() -> None:
    pipeline, grounder, segmenter = build(CUP)
    [answer] = pipeline.segment(IMAGE, ["the cup"], "box")
    assert not grounder.asked
    assert len(segmenter.prompts[0].labels) == 0
    assert answer.mask.sum() == 40 * 40


class NearSightedSegmenter(FakeSegmenter):
    """Draws nothing in a small box."""

    def _draw(self, embedding: Embedding, prompt: Prompt) -> Masks:
        drawn = super()._draw(embedding, prompt)
        drawn.coarse[...] &= prompt.box_px is None or (prompt.box_px[2:] - prompt.box_px[:2]).max() >= 8
        return drawn


@pytest.mark.parametrize(
    ("box", "points", "drawn"),
    [
        pytest.param([38, 28, 42, 32], [], [35, 25, 45, 35], id="too small to be seen: a click on its middle"),
        pytest.param([38, 28, 42, 32], [[41, 31]], [36, 26, 46, 36], id="or on the reviewer's point in it"),
        pytest.param([36, 26, 43, 33], [], None, id="not so small"),
    ],
)
def test_a_small_box_in_which_nothing_is_drawn(box: list[float], points: list[list[float]], drawn: list[float] | None) -> None:
    pipeline = Pipeline(FakeGrounder({"the cup": grounding("the cup", [box])}), NearSightedSegmenter(), Options("box"))
    [answer] = pipeline.segment(IMAGE, ["the cup"], clicks=clicks(points, [1] * len(points)) if points else None)
    assert [box_of(instance.mask).tolist() for instance in answer.instances] == ([] if drawn is None else [drawn])
    assert bool(answer.note) == (drawn is None)


class DenyingGrounder(FakeGrounder):
    """Says of every point that it is off the thing."""

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        return [said(np.full(len(inquiry.points_px), 0.01)) for inquiry in inquiries]


@pytest.mark.parametrize("choice", ["predicted", "agreement"])
@pytest.mark.parametrize(
    ("box", "count"),
    [pytest.param([22, 12, 58, 48], 1, id="in place of the model's"), pytest.param([62, 12, 80, 48], 2, id="of one more")],
)
def test_a_reviewer_who_draws_a_box_knows_that_the_thing_is_in_it(box: list[float], count: int, choice: Choice) -> None:
    pipeline = Pipeline(DenyingGrounder({"the cup": CUP}), FakeSegmenter(), Options("pqpp", choice=choice))
    [answer] = pipeline.segment(IMAGE, ["the cup"], clicks=clicks([], [], [box]))
    assert len(answer.instances) == count or choice == "agreement"
    [own] = [instance for instance in answer.instances if instance.pointed]
    assert box_of(own.mask).tolist() == box
    assert not len(own.labels)


def test_points_off_the_thing_may_leave_a_box_empty() -> None:
    grounder = FakeGrounder({"the cup": grounding("the cup", [[38, 28, 42, 32]])})
    pipeline = Pipeline(grounder, NearSightedSegmenter(), Options("pqpp"))
    [answer] = pipeline.segment(IMAGE, ["the cup"])
    assert answer.instances == ()
    assert answer.note


def test_pqpp_asks_the_pattern_and_keeps_the_sure_answers() -> None:
    pipeline, grounder, segmenter = build(CUP)
    [answer] = pipeline.segment(IMAGE, ["the cup"], "pqpp")
    [inquiry] = grounder.asked
    assert inquiry.points_px.shape == (30, 2)
    prompt = segmenter.prompts[0]
    assert np.array_equal(prompt.labels == 1, prompt.points_px[:, 0] < 40)  # as the fake answered
    assert len(answer.instances[0].points_px) == 30


@pytest.mark.parametrize(
    ("inside", "label"),
    [
        pytest.param(0.99, 1, id="sure of inside"),
        pytest.param(0.76, 1, id="just above 0.75"),
        pytest.param(0.75, -1, id="at the threshold"),
        pytest.param(0.5, -1, id="unsure"),
        pytest.param(0.11, -1, id="not sure enough of outside"),
        pytest.param(0.05, 0, id="sure of outside"),
    ],
)
def test_thresholds_decide_what_prompts(inside: float, label: int) -> None:
    pipeline, grounder, segmenter = build(CUP)
    grounder.ask = lambda scene, inquiries, joint=False: [said(np.full(len(one.points_px), inside)) for one in inquiries]  # type: ignore[method-assign]
    [answer] = pipeline.segment(IMAGE, ["the cup"], "pqpp")
    assert set(answer.instances[0].labels.tolist()) == {label}
    assert set(segmenter.prompts[0].labels.tolist()) == ({label} if label >= 0 else set())


def test_ppg_prompts_with_the_points_that_the_model_wrote() -> None:
    pipeline, grounder, segmenter = build(MARKED)
    pipeline.segment(IMAGE, ["the cup"], "ppg")
    assert not grounder.asked
    assert segmenter.prompts[0].labels.tolist() == [1, 0, 0]


def test_joint_asks_fifteen_points_as_published() -> None:
    pipeline, grounder, _ = build(CUP, joint=True)
    pipeline.segment(IMAGE, ["the cup"])
    assert len(grounder.asked[0].points_px) == 15


@pytest.mark.parametrize("strategy", ["box", "ppg", "pqpp"])
def test_several_instances_and_no_target(strategy: str) -> None:
    pipeline, _, _ = build(CUPS)
    many, none = pipeline.segment(IMAGE, ["all cups", "the dog"], strategy)
    assert len(many.instances) == 2
    assert many.mask.sum() == 40 * 40 + 80 * 60
    assert none.instances == ()
    assert none.no_target_probability == pytest.approx(0.95)
    assert none.score == score_empty(0.95)
    assert not none.calibrated
    assert none.mask.shape == (100, 200)
    assert not none.mask.any()


def test_all_phrases_share_one_opening_and_one_question() -> None:
    pipeline, grounder, _ = build(CUP, CUPS)
    pipeline.segment(IMAGE, ["the cup", "all cups", "the cup"])
    assert grounder.opened == 1
    assert len(grounder.asked) == 4


def test_an_opened_image_is_not_opened_again() -> None:
    pipeline, grounder, _ = build(CUP)
    opened = pipeline.open(IMAGE)
    pipeline.segment(opened, ["the cup"])
    pipeline.segment(opened, ["the cup"])
    assert grounder.opened == 1


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        pytest.param(clicks([[25, 15]], [1]), [("box", [1])], id="a click in the box joins it"),
        pytest.param(clicks([[55, 45]], [0]), [("box", [0])], id="a negative click in the box"),
        pytest.param(clicks([[150, 80]], [1]), [("box", []), ("point", [1])], id="a click far away is another object"),
        pytest.param(clicks([[150, 80], [152, 82]], [1, 0]), [("box", []), ("point", [1, 0])], id="and a negative one beside it shapes it"),
        pytest.param(clicks([[190, 95]], [0]), [("box", [0])], id="a negative click never makes an object"),
        pytest.param(clicks([], [], [[22, 12, 62, 52]]), [("box", [])], id="a box over the found one replaces it"),
        pytest.param(clicks([], [], [[120, 40, 160, 90]]), [("box", []), ("box", [])], id="a box elsewhere is another object"),
        pytest.param(clicks([], [], [[62, 52, 22, 12]]), [("box", [])], id="a box drawn from its other corner"),
        pytest.param(clicks([], [], [[100, 0, 190, 90], [110, 0, 199, 90]]), 3 * [("box", [])], id="two boxes of the reviewer stay two"),
    ],
)
def test_clicks_join_the_prompt(given: Clicks, prompts: list[tuple[str, list[int]]]) -> None:
    pipeline, _, segmenter = build(CUP)
    pipeline.segment(IMAGE, ["the cup"], "box", clicks=given)
    assert [("box" if prompt.box_px is not None else "point", prompt.labels.tolist()) for prompt in segmenter.prompts] == prompts


def test_a_reviewers_box_is_asked_about_too() -> None:
    pipeline, grounder, _ = build(CUP)
    pipeline.segment(IMAGE, ["the cup"], "pqpp", clicks=clicks([], [], [[22, 12, 70, 60]]))
    assert grounder.asked[0].grounding.boxes_px.tolist() == [[22, 12, 70, 60]]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: clicks([[1, 2]], [7]), id="unknown label"),
        pytest.param(lambda: clicks([[1, 2]], [1, 0]), id="more labels than points"),
        pytest.param(lambda: clicks([[1, float("nan")]], [1]), id="not a number"),
    ],
)
def test_malformed_clicks_are_refused(make: Callable[[], Clicks]) -> None:
    with pytest.raises(PromptError):
        make()


def test_what_went_wrong_is_said_and_scored_as_unsure() -> None:
    garbled = replace(grounding("the cup", [], 0.9), note="the model's answer could not be read")
    pipeline, _, _ = build(garbled)
    [answer] = pipeline.segment(IMAGE, ["the cup"])
    assert answer.note == "the model's answer could not be read"
    assert answer.score == 0


def test_clicks_alone_need_no_phrase() -> None:
    pipeline, grounder, segmenter = build()
    [answer] = pipeline.segment(IMAGE, [], clicks=clicks([[50, 50]], [1]))
    assert answer.phrase == ""
    assert len(answer.instances) == 1
    assert segmenter.prompts[0].box_px is None
    assert not grounder.asked


def test_no_phrase_and_no_click_is_no_answer() -> None:
    pipeline, _, _ = build()
    assert pipeline.segment(IMAGE, []) == []


@pytest.mark.parametrize(
    "phrase",
    [
        pytest.param("", id="empty"),
        pytest.param(" \n\t", id="blank"),
        pytest.param("a" * 10_000, id="10,000 letters"),
        pytest.param("a \ud800", id="half a character"),
    ],
)
def test_bad_phrases_are_refused_before_any_model_runs(phrase: str) -> None:
    pipeline, grounder, _ = build(CUP)
    with pytest.raises(PhraseError):
        pipeline.segment(IMAGE, ["the cup", phrase])
    assert grounder.opened == 0
