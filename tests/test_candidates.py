"""The strategies in which the segmenter takes the phrase: alone (concept), and with the MLLM's boxes deciding what is meant (choose)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sam4mllm.clicks import Clicks
from sam4mllm.confidence import NAMES
from sam4mllm.confidence import score as fixed_score
from sam4mllm.errors import ModelError
from sam4mllm.grounding.closer import CloserGrounder
from sam4mllm.grounding.nobody import NoGrounder
from sam4mllm.grounding.remembering import RememberingGrounder
from sam4mllm.options import STRATEGIES, LearnedStrategy, Options, Strategy
from sam4mllm.pipeline import Pipeline
from sam4mllm.segmentation.concept import Candidates
from tests.fakes import FakeConceptSegmenter, FakeGrounder, FakeSegmenter, candidates, grounding

IMAGE = np.zeros((100, 200, 3), np.uint8)
LEFT, MIDDLE, RIGHT = [10.0, 10, 50, 50], [70.0, 10, 110, 50], [140.0, 20, 190, 90]
THREE = candidates([LEFT, MIDDLE, RIGHT], [0.9, 0.8, 0.6])


def near(box: list[float], by: float = 3) -> list[float]:
    """A box some pixels off: it fits its own candidate alone."""
    return [side + by for side in box]


def build(
    told: dict[str, list[list[float]]], known: dict[str, Candidates], strategy: Strategy = "choose", learned: bool = True
) -> tuple[Pipeline, FakeGrounder, FakeConceptSegmenter]:
    grounder = FakeGrounder({phrase: grounding(phrase, boxes) for phrase, boxes in told.items()})
    segmenter = FakeConceptSegmenter(known=known)
    return Pipeline(grounder, segmenter, Options(strategy), learned=learned), grounder, segmenter


def alone(known: dict[str, Candidates], **options: float) -> tuple[Pipeline, FakeConceptSegmenter]:
    segmenter = FakeConceptSegmenter(known=known)
    return Pipeline(NoGrounder(), segmenter, Options(**options), "none", learned=False), segmenter  # type: ignore[arg-type]


def boxes_of(pipeline: Pipeline, phrase: str, clicks: Clicks | None = None) -> list[list[float]]:
    [answer] = pipeline.segment(IMAGE, [phrase], clicks=clicks)
    return [instance.box_px.tolist() for instance in answer.instances]


def clicked(points: list[list[float]], labels: list[int], boxes: list[list[float]] | None = None) -> Clicks:
    return Clicks(np.array(points, np.float32).reshape(-1, 2), np.array(labels, np.int64), np.array(boxes or [], np.float32).reshape(-1, 4))


# -- concept -------------------------------------------------------------------------------------------------------------------------------


def test_concept_takes_every_candidate_with_its_own_mask() -> None:
    pipeline, segmenter = alone({"cup": THREE})
    [answer] = pipeline.segment(IMAGE, ["cup"])
    assert [instance.mask.tolist() for instance in answer.instances] == THREE.masks.tolist()
    assert not segmenter.prompts
    assert segmenter.sought == [("cup",)]
    assert answer.no_target_probability == pytest.approx(0.1)
    assert not answer.note


def test_a_candidates_score_is_the_instances() -> None:
    pipeline, _ = alone({"cup": THREE})
    [answer] = pipeline.segment(IMAGE, ["cup"])
    scores = [instance.score for instance in answer.instances]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3
    for instance, score in zip(answer.instances, THREE.scores, strict=True):
        found = instance.features
        assert (found.box_probability, found.predicted_iou, found.target_probability) == pytest.approx((score, score, 0.9))
        assert (found.support, found.sure, found.agreement, found.box_agreement, found.entropy) == (1, 1, 1, 1, 0)


@pytest.mark.parametrize(("threshold", "count"), [(0.5, 3), (0.6, 3), (0.7, 2), (0.95, 0)])
def test_the_threshold_decides_how_many(threshold: float, count: int) -> None:
    pipeline, _ = alone({"cup": THREE}, threshold=threshold)
    assert len(boxes_of(pipeline, "cup")) == count


def test_the_threshold_is_part_of_the_version_where_it_counts() -> None:
    def version(strategy: Strategy, threshold: float) -> str:
        return Pipeline(FakeGrounder({}), FakeConceptSegmenter(), Options(strategy, threshold=threshold)).version

    changed = {strategy for strategy in STRATEGIES if version(strategy, 0.5) != version(strategy, 0.4)}
    assert changed == {"concept", "choose"}


def test_no_candidate_is_no_such_object() -> None:
    pipeline, _ = alone({})
    [answer] = pipeline.segment(IMAGE, ["dog"])
    assert not answer.instances
    assert answer.no_target_probability == pytest.approx(0.95)
    assert answer.score > 0.5
    assert not answer.note


@pytest.mark.parametrize(
    ("click", "expected"),
    [
        pytest.param(clicked([[20, 20]], [1]), [(1, [1])], id="a click on the first"),
        pytest.param(clicked([[150, 30]], [0]), [(1, [0])], id="a click off in the third"),
        pytest.param(clicked([], [], [near(LEFT)]), [(1, [])], id="a better box for the first"),
        pytest.param(clicked([[125, 90]], [1]), [(0, [1])], id="something that was not found"),
    ],
)
def test_only_what_is_pointed_at_is_drawn_anew(click: Clicks, expected: list[tuple[int, list[int]]]) -> None:
    pipeline, segmenter = alone({"cup": THREE})
    [answer] = pipeline.segment(IMAGE, ["cup"], clicks=click)
    assert [(int(prompt.box_px is not None), prompt.labels.tolist()) for prompt in segmenter.prompts] == expected
    untouched = [instance for instance in answer.instances if not instance.pointed]
    kept = THREE.masks.tolist()
    assert all(instance.mask.tolist() in kept for instance in untouched)
    assert len(untouched) + 1 == len(answer.instances)
    assert all(instance.features.target_probability == 1 for instance in answer.instances)


def test_clicks_alone_need_neither_phrase_nor_model() -> None:
    pipeline, segmenter = alone({})
    [answer] = pipeline.segment(IMAGE, [], clicks=clicked([[20, 20]], [1]))
    assert answer.mask.any()
    assert not segmenter.sought


# -- choose --------------------------------------------------------------------------------------------------------------------------------


CASES = {
    "one of three": ([near(MIDDLE)], [MIDDLE]),
    "two of three": ([near(RIGHT), near(LEFT)], [RIGHT, LEFT]),
    "none, says the MLLM": ([], []),
    "one that no candidate fits": ([[10.0, 60, 40, 95]], [[10.0, 60, 40, 95]]),
    "one that fits and one that does not": ([near(LEFT), [10.0, 60, 40, 95]], [LEFT, [10.0, 60, 40, 95]]),
    "two boxes of one candidate": ([near(LEFT, 8), near(LEFT, 2)], [near(LEFT, 8), LEFT]),
}


@pytest.mark.parametrize(("told", "expected"), CASES.values(), ids=CASES.keys())
def test_the_boxes_say_which_candidates_are_meant(told: list[list[float]], expected: list[list[float]]) -> None:
    pipeline, _, _ = build({"the left cup": told}, {"cup": THREE})
    assert boxes_of(pipeline, "the left cup") == expected


def test_a_chosen_candidate_keeps_its_mask_and_is_not_asked_about() -> None:
    odd = replace(THREE, masks=THREE.masks.copy())
    odd.masks[0, 10:30, 10:50] = False
    pipeline, grounder, segmenter = build({"the left cup": [near(LEFT)]}, {"cup": odd})
    [answer] = pipeline.segment(IMAGE, ["the left cup"])
    assert np.array_equal(answer.mask, odd.masks[0])
    assert not grounder.asked
    assert not segmenter.prompts
    overlap = 37 * 37 / (2 * 40 * 40 - 37 * 37)
    assert answer.instances[0].features.support == pytest.approx(overlap)
    assert answer.instances[0].features.box_probability == pytest.approx(0.8)
    assert answer.instances[0].features.predicted_iou == pytest.approx(0.9)


@pytest.mark.parametrize("learned", [True, False], ids=["with points where they were learned", "else by its box alone"])
def test_a_box_that_nothing_fits_is_drawn_as_without_candidates(learned: bool) -> None:
    told = {"the left cup": [near(LEFT), [10.0, 60, 40, 95]]}
    pipeline, grounder, segmenter = build(told, {"cup": THREE}, learned=learned)
    [answer] = pipeline.segment(IMAGE, ["the left cup"])
    assert len(grounder.asked) == int(learned)
    assert [inquiry.index for inquiry in grounder.asked] == [1] * int(learned)
    assert all(len(inquiry.grounding.boxes_px) == 2 for inquiry in grounder.asked)  # it hears its whole answer
    assert [bool(len(prompt.labels)) for prompt in segmenter.prompts] == [True, False][1 - int(learned) :]
    assert [instance.features.support > 0 for instance in answer.instances] == [True, False]
    for instance in answer.instances:
        whole = fixed_score(replace(instance.features, support=1.0))
        assert instance.score == pytest.approx(whole * (1 + instance.features.support) / 2)


def test_the_phrase_and_its_noun_are_looked_for_at_once_and_each_thing_is_found_once() -> None:
    slightly = candidates([near(LEFT, 1), RIGHT], [0.95, 0.4])
    pipeline, grounder, segmenter = build(
        {"the left cup": [LEFT, near(LEFT, 6)], "all cups": [MIDDLE], "the dog": []},
        {"the left cup": slightly, "cup": THREE, "cups": THREE},
    )
    first, second, none = pipeline.segment(IMAGE, ["the left cup", "all cups", "the dog"])
    assert segmenter.sought == [("the left cup", "all cups", "cup", "cups")]
    assert [instance.box_px.tolist() for instance in first.instances] == [near(LEFT, 1), near(LEFT, 6)]  # the better of the two finds
    assert len(second.instances) == 1
    assert not none.instances
    assert (grounder.opened, segmenter.encoded) == (1, 1)


def test_two_things_in_nearly_one_box_stay_two() -> None:
    masks = np.zeros((2, 100, 200), np.bool_)
    masks[0, 10:30, 10:50] = True
    masks[1, 30:50, 10:50] = True
    both = Candidates(np.array([LEFT, LEFT], np.float32), np.array([0.9, 0.8]), masks, 0.9)
    pipeline, _, _ = build({"all cups": [LEFT, near(LEFT)]}, {"cups": both})
    [answer] = pipeline.segment(IMAGE, ["all cups"])
    assert answer.mask.sum() == 40 * 40


def test_a_candidate_without_a_pixel_is_none() -> None:
    empty = replace(THREE, masks=np.zeros_like(THREE.masks))
    pipeline, _, segmenter = build({"the left cup": [near(LEFT)]}, {"cup": empty})
    assert boxes_of(pipeline, "the left cup") == [near(LEFT)]
    assert len(segmenter.prompts) == 2  # with points, and to compare without


def test_clicks_join_a_chosen_candidate() -> None:
    pipeline, grounder, segmenter = build({"the left cup": [near(LEFT)]}, {"cup": THREE})
    [answer] = pipeline.segment(IMAGE, ["the left cup"], clicks=clicked([[12, 12]], [0]))
    [prompt] = segmenter.prompts
    assert (prompt.box_px is not None and prompt.box_px.tolist(), prompt.labels.tolist()) == (LEFT, [0])
    assert not grounder.asked
    assert answer.instances[0].pointed == "refined"


class NamingGrounder(FakeGrounder):
    """Calls everything a cup, and counts what it was asked to name."""

    named: tuple[str, ...] = ()

    def name(self, scene: object, phrases: object) -> list[str]:
        del scene
        self.named = tuple(phrases)  # type: ignore[arg-type]
        return ["cup" for _ in self.named]


def test_what_the_rule_cannot_tell_the_mllm_is_asked_to_name() -> None:
    phrases = ["the left cup", "the one on the left"]
    grounder = NamingGrounder({phrase: grounding(phrase, [near(LEFT)]) for phrase in phrases})
    pipeline = Pipeline(grounder, FakeConceptSegmenter(known={"cup": THREE}), Options("choose"))
    answers = pipeline.segment(IMAGE, phrases)
    assert grounder.named == ("the one on the left",)
    assert [answer.instances[0].box_px.tolist() for answer in answers] == [LEFT, LEFT]


@pytest.mark.parametrize("wrap", [RememberingGrounder, CloserGrounder], ids=["remembering", "closer"])
def test_a_wrapped_model_names_things_too(wrap: type[RememberingGrounder] | type[CloserGrounder]) -> None:
    inner = NamingGrounder({})
    grounder = wrap(inner)
    scene = grounder.open(IMAGE)
    assert grounder.name(scene, ["left", "right", "left"]) == ["cup", "cup", "cup"]
    assert grounder.name(scene, []) == []


# -- what cannot be done -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["concept", "choose"])
def test_a_segmenter_without_phrases_is_refused_in_one_line(strategy: Strategy) -> None:
    needs = rf"^strategy {strategy} needs a segmenter that takes phrases: SAM 3, or grounding-dino\+SEGMENTER; this one takes .*only$"
    with pytest.raises(ModelError, match=needs):
        Pipeline(FakeGrounder({}), FakeSegmenter(), Options(strategy))
    pipeline = Pipeline(FakeGrounder({}), FakeSegmenter())
    with pytest.raises(ModelError, match=needs):
        pipeline.segment(IMAGE, ["the cup"], strategy)


@pytest.mark.parametrize("strategy", ["box", "ppg", "pqpp", "reason", "choose"])
def test_without_an_mllm_only_concept_answers(strategy: LearnedStrategy) -> None:
    refused = f"^strategy {strategy} asks an MLLM, and the model is none: name a model, or use strategy concept$"
    with pytest.raises(ModelError, match=refused):
        Pipeline(NoGrounder(), FakeConceptSegmenter(), Options(strategy), learned=False)
    pipeline, _ = alone({})
    assert pipeline.strategy == "concept"
    with pytest.raises(ModelError, match=refused):
        pipeline.segment(IMAGE, ["the cup"], strategy)


def test_nobody_stays_nobody_behind_what_remembers() -> None:
    pipeline, _ = alone({"cup": THREE})
    wrapped = pipeline.through(RememberingGrounder(pipeline.grounder))
    assert not wrapped.has_model
    assert wrapped.version == pipeline.version
    assert len(boxes_of(wrapped, "cup")) == 3
    scene = wrapped.grounder.open(IMAGE)
    for ask in (lambda: wrapped.grounder.ground(scene, ["cup"]), lambda: wrapped.grounder.name(scene, ["cup"])):
        with pytest.raises(ModelError, match="nobody can be asked"):
            ask()


def test_a_feature_that_came_later_changes_no_other_strategy() -> None:
    assert "support" in NAMES
    pipeline = Pipeline(FakeGrounder({"the cup": grounding("the cup", [LEFT])}), FakeSegmenter())
    [answer] = pipeline.segment(IMAGE, ["the cup"])
    assert answer.instances[0].features.support == 1.0
