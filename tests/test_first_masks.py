"""From points to masks and boxes: what the strategies make of a model that answers with points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sam4mllm.clicks import Clicks
from sam4mllm.first_masks import NOTHING_DRAWN
from sam4mllm.options import Options, Strategy
from sam4mllm.pipeline import Pipeline
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Grounding, Masks, Prompt, SpokenPoints
from tests.fakes import FakeConceptSegmenter, FakeGrounder, FakeSegmenter, candidates

IMAGE = np.zeros((100, 200, 3), np.uint8)


def pointed(points: Sequence[Sequence[float]], note: str = "") -> Grounding:
    """As a model that answers with points says it."""
    points_px = np.array(points, np.float32).reshape(-1, 2)
    spoken = tuple(SpokenPoints(one[None]) for one in points_px)
    return Grounding("cups", np.tile(points_px, 2), np.full(len(spoken), 0.7), 0.1, spoken, note, boxless=True)


def build(told: Grounding, segmenter: FakeSegmenter | None = None, *, learned: bool = True) -> tuple[Pipeline, FakeGrounder, FakeSegmenter]:
    grounder, draws = FakeGrounder({told.phrase: told}), segmenter or FakeSegmenter()
    return Pipeline(grounder, draws, Options(), learned=learned), grounder, draws


class Blind(FakeSegmenter):
    """It draws nothing."""

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        return [Masks(np.zeros((1, embedding.height, embedding.width), np.bool_), np.ones(1), np.ones(1)) for _ in prompts]


@pytest.mark.parametrize("strategy", ["box", "ppg"])
def test_each_point_is_drawn_and_nothing_else_is_asked(strategy: Strategy) -> None:
    pipeline, grounder, segmenter = build(pointed([[30, 20], [150, 60]]))
    [answer] = pipeline.segment(IMAGE, ["cups"], strategy)
    assert [instance.box_px.tolist() for instance in answer.instances] == [[25, 15, 35, 25], [145, 55, 155, 65]]
    assert [instance.mask.sum() for instance in answer.instances] == [100, 100]
    assert [(prompt.box_px, prompt.points_px.tolist(), prompt.labels.tolist()) for prompt in segmenter.prompts] == [
        (None, [[30, 20]], [1]),
        (None, [[150, 60]], [1]),
    ]
    assert not grounder.asked
    features = answer.instances[0].features
    assert (features.box_probability, features.predicted_iou, features.stability, features.agreement) == (0.7, 0.9, 0.95, 1.0)


def test_pqpp_asks_about_points_in_the_box_of_the_first_mask() -> None:
    pipeline, grounder, segmenter = build(pointed([[30, 20]]))
    [answer] = pipeline.segment(IMAGE, ["cups"], "pqpp")
    [inquiry] = grounder.asked
    assert inquiry.grounding.boxes_px.tolist() == [[25, 15, 35, 25]]
    assert inquiry.grounding.points[0].inside_px.tolist() == [[30, 20]]
    drawn = segmenter.prompts[1]
    assert drawn.box_px is not None
    assert drawn.box_px.tolist() == [25, 15, 35, 25]
    assert drawn.points_px[0].tolist() == [30, 20]
    assert len(drawn.points_px) > 1
    assert len(answer.instances) == 1


@pytest.mark.parametrize(("learned", "asked"), [pytest.param(True, 1, id="learned"), pytest.param(False, 0, id="not learned")])
def test_reason_asks_about_points_only_where_they_were_learned(learned: bool, asked: int) -> None:
    pipeline, grounder, _ = build(pointed([[30, 20]]), learned=learned)
    [answer] = pipeline.segment(IMAGE, ["cups"], "reason")
    assert len(grounder.asked) == asked
    assert len(answer.instances) == 1


def test_choose_matches_the_box_of_the_first_mask() -> None:
    finder = FakeConceptSegmenter(known={"cups": candidates([[24, 14, 36, 26], [100, 30, 180, 90]])})
    pipeline, _, _ = build(pointed([[30, 20]]), finder, learned=False)
    [answer] = pipeline.segment(IMAGE, ["cups"], "choose")
    assert [instance.box_px.tolist() for instance in answer.instances] == [[24, 14, 36, 26]]


def test_points_of_one_thing_are_one_instance() -> None:
    pipeline, _, _ = build(pointed([[30, 20], [30.4, 20.2], [150, 60]]))
    [answer] = pipeline.segment(IMAGE, ["cups"])
    assert len(answer.instances) == 2


def test_a_click_draws_anew_from_box_point_and_click() -> None:
    pipeline, _, segmenter = build(pointed([[30, 20]]))
    click = Clicks(np.array([[33, 22]], np.float32), np.array([0]))
    [answer] = pipeline.segment(IMAGE, ["cups"], "box", click)
    prompt = segmenter.prompts[1]
    assert prompt.box_px is not None
    assert prompt.box_px.tolist() == [25, 15, 35, 25]
    assert (prompt.points_px.tolist(), prompt.labels.tolist()) == ([[30, 20], [33, 22]], [1, 0])
    assert answer.instances[0].pointed == "refined"


def test_more_points_than_a_batch_holds_are_all_drawn() -> None:
    pipeline, _, segmenter = build(pointed([[6 + 12 * (index % 15), 6 + 12 * (index // 15)] for index in range(50)]))
    [answer] = pipeline.segment(IMAGE, ["cups"], "box")
    assert len(answer.instances) == len(segmenter.prompts) == 50


@pytest.mark.parametrize(
    ("told", "note"),
    [
        pytest.param(pointed([[30, 20]]), NOTHING_DRAWN, id="nothing is drawn"),
        pytest.param(pointed([[30, 20]], "cut off"), "cut off", id="what the answer's reader said comes first"),
        pytest.param(pointed([]), "", id="no such object"),
    ],
)
@pytest.mark.parametrize("strategy", ["box", "pqpp"])
def test_when_nothing_is_drawn(told: Grounding, note: str, strategy: Strategy) -> None:
    pipeline, grounder, _ = build(told, Blind())
    [answer] = pipeline.segment(IMAGE, ["cups"], strategy)
    assert (answer.instances, answer.note) == ((), note)
    assert not grounder.asked
