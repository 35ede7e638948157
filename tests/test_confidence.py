"""The score: its features, the fixed formula, the fit on judgements, and how the pipeline uses them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4mllm.clicks import Clicks
from sam4mllm.confidence import (
    FIT_EMPTY_FROM,
    FIT_FROM,
    NAMES,
    PRIOR,
    PRIOR_STRENGTH,
    Calibration,
    Features,
    agreement,
    entropy,
    fit,
    fit_empty,
    score,
    score_empty,
)
from sam4mllm.drawing import PROMPTS_AT_ONCE
from sam4mllm.options import Strategy
from sam4mllm.pipeline import Pipeline
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Masks, Prompt
from tests.fakes import FakeGrounder, FakeSegmenter, grounding, said

IMAGE = np.zeros((100, 200, 3), np.uint8)
SURE = Features(0.9, 0.9, 0.95, 0.9, 0.95, 0.2, 0.95, 0.99)
FEATURES = st.builds(Features, *[st.floats(0, 1)] * len(NAMES))
HELPFUL = [name for name in NAMES if name != "entropy"]


def sample(count: int, seed: int = 0, weights: Sequence[float] = (0, 0, 0, 4, 0, -4, 0, 0, 0, 0, 0)) -> tuple[list[Features], list[bool]]:
    """Features of instances, each accepted with a probability that follows from them."""
    rng = np.random.default_rng(seed)
    table = rng.uniform(0, 1, (count, len(NAMES)))
    chances = 1 / (1 + np.exp(-(table - 0.5) @ np.array(weights)))
    return [Features(*row) for row in table.tolist()], (rng.uniform(size=count) < chances).tolist()


def fitted(count: int = 200, **given: Any) -> Calibration:
    calibration = fit(*sample(count, **given), "demo-0-00000000")
    assert calibration is not None
    return calibration


@pytest.mark.parametrize(
    ("inside", "bits"),
    [
        pytest.param([], 0.0, id="no point"),
        pytest.param([0.5], 1.0, id="a coin"),
        pytest.param([0.0, 1.0], 0.0, id="certain"),
        pytest.param([0.5, 1.0], 0.5, id="the mean"),
        pytest.param([0.11], 0.49992, id="by the formula"),
        pytest.param([5e-324, 1 - 2**-53], 0.0, id="the smallest doubts"),
    ],
)
def test_entropy_is_in_bits(inside: list[float], bits: float) -> None:
    assert entropy(np.array(inside)) == pytest.approx(bits, abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "share"),
    [
        pytest.param([1, 0], 1.0, id="both as answered"),
        pytest.param([0, 0], 0.5, id="one against its answer"),
        pytest.param([0, 1], 0.0, id="both against"),
        pytest.param([], 1.0, id="no point"),
    ],
)
def test_agreement_of_mask_and_answers(labels: list[int], share: float) -> None:
    mask = np.zeros((4, 4), np.bool_)
    mask[:2, :2] = True
    points = np.array([[1, 1], [3, 3]], np.float32)[: len(labels)]
    assert agreement(mask, points, np.array(labels, np.int64)) == share


@given(features=FEATURES, name=st.sampled_from(HELPFUL), more=st.floats(0, 1))
def test_the_formula_is_a_share_and_falls_with_nothing_that_is_good(features: Features, name: str, more: float) -> None:
    better = replace(features, **{name: max(more, getattr(features, name))})
    assert 0 <= score(features) <= score(better) + 1e-12 <= 1 + 1e-12


@pytest.mark.parametrize(
    ("features", "accepted"),
    [
        pytest.param([], [], id="none"),
        pytest.param(*sample(FIT_FROM - 1), id="one too few"),
        pytest.param(sample(100)[0], [True] * 100, id="all accepted"),
        pytest.param(sample(100)[0], [False] * 100, id="all rejected"),
    ],
)
def test_too_little_is_no_calibration(features: list[Features], accepted: list[bool]) -> None:
    assert fit(features, accepted, "v") is None


def test_fifty_judgements_are_enough() -> None:
    calibration = fit(*sample(FIT_FROM), "demo-0-00000000")
    assert calibration is not None
    assert (calibration.count, calibration.version) == (FIT_FROM, "demo-0-00000000")


@pytest.mark.parametrize(
    "features",
    [
        pytest.param([replace(SURE, entropy=math.nan)] * 60, id="not a number"),
        pytest.param([replace(SURE, entropy=1.5)] * 60, id="not a share"),
        pytest.param([SURE] * 59, id="not as many"),
    ],
)
def test_wrong_judgements_are_refused(features: list[Features]) -> None:
    with pytest.raises(ValueError, match=r"features lie|one judgement"):
        fit(features, [True, False] * 30, "v")


def test_the_fit_is_where_the_penalised_loss_is_least() -> None:
    features, accepted = sample(300)
    calibration = fit(features, accepted, "v")
    assert calibration is not None
    table = (np.array([astuple(one) for one in features]) - calibration.means) / np.array(calibration.scales)
    labels = np.array(accepted, float)

    def loss(at: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        chances = 1 / (1 + np.exp(-(at[0] + table @ at[1:])))
        likelihood = (labels * np.log(chances) + (1 - labels) * np.log(1 - chances)).sum()
        return float(-likelihood + PRIOR_STRENGTH / 2 * ((at[1:] - PRIOR) ** 2).sum())

    found = np.array([calibration.bias, *calibration.weights])
    for direction in np.eye(len(found)):
        assert loss(found) < min(loss(found + 1e-3 * direction), loss(found - 1e-3 * direction))


def test_the_fit_finds_what_counts_and_is_right_on_average() -> None:
    features, accepted = sample(2000)
    calibration = fit(features, accepted, "v")
    assert calibration is not None
    weights = dict(zip(NAMES, calibration.weights, strict=True))
    assert min(weights["predicted_iou"], -weights["entropy"]) > 0.8  # 4 times the spread of 0.29
    assert max(abs(weights[name]) for name in NAMES if name not in ("predicted_iou", "entropy")) < 0.2
    scores = np.array([score(one, calibration) for one in features])
    assert scores.mean() == pytest.approx(np.mean(accepted), abs=1e-6)
    others, judged = sample(2000, seed=1)
    scores = np.array([score(one, calibration) for one in others])
    for low in np.arange(0, 1, 0.2):
        some = (scores >= low) & (scores < low + 0.2)
        assert scores[some].mean() == pytest.approx(np.array(judged)[some].mean(), abs=0.06)


def test_a_handful_of_judgements_does_not_turn_a_feature_around() -> None:
    features, _ = sample(60, seed=3)
    unlucky = [index >= 3 for index in np.argsort([-one.predicted_iou for one in features]).argsort()]
    calibration = fit(features, unlucky, "v")  # the three with the highest predicted IoU were rejected
    assert calibration is not None
    rising = [replace(SURE, **dict.fromkeys(HELPFUL, share), entropy=1 - share) for share in (0.2, 0.5, 0.8)]
    scores = [score(one, calibration) for one in rising]
    assert scores == sorted(scores)


@pytest.mark.parametrize(
    ("features", "accepted"),
    [
        pytest.param([SURE] * 60, [True] * 59 + [False], id="all the same"),
        pytest.param([SURE] * 59 + [Features(*[0.0] * 8)], [True] * 59 + [False], id="one far away"),
        pytest.param([Features(*[share / 999] * 8) for share in range(1000)], [share > 500 for share in range(1000)], id="told apart"),
        pytest.param(
            [Features(*[share / 999] * 8) for share in range(1000)], [share != 7 for share in range(1000)], id="one of a thousand"
        ),
        pytest.param([Features(*[1 - share / 99] * 8) for share in range(100)], [share > 50 for share in range(100)], id="all wrong"),
    ],
)
def test_odd_judgements_still_give_numbers(features: list[Features], accepted: list[bool]) -> None:
    calibration = fit(features, accepted, "v")
    assert calibration is not None
    assert all(map(math.isfinite, (*calibration.weights, calibration.bias)))
    mean = np.mean([score(one, calibration) for one in features])
    assert mean == pytest.approx(np.mean(accepted), abs=1e-6)


@settings(max_examples=50)
@given(features=FEATURES)
def test_a_calibrated_score_is_a_probability(features: Features) -> None:
    assert 0 <= score(features, TYPICAL) <= 1


TYPICAL = fitted()


def test_the_same_judgements_give_the_same_calibration() -> None:
    assert fitted() == TYPICAL
    assert fitted().id == TYPICAL.id
    assert len(TYPICAL.id) == 8
    assert len({TYPICAL.id, fitted(seed=1).id, replace(TYPICAL, version="w").id, replace(TYPICAL, count=51).id}) == 4


@given(seed=st.integers(0, 1000), version=st.text(max_size=20))
@settings(max_examples=20, deadline=None)
def test_a_calibration_survives_json(seed: int, version: str) -> None:
    calibration = replace(fitted(60, seed=seed), version=version)
    again = Calibration.from_json(calibration.to_json())
    assert again == calibration
    assert again.id == calibration.id


def changed(*path: str, value: object) -> str:
    top = json.loads(TYPICAL.to_json())
    inner = top
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(top)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("[]", id="a list"),
        pytest.param("{}", id="no keys"),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param(changed("more", value=1), id="an unknown key"),
        pytest.param(changed("features", "more", value={}), id="an unknown feature"),
        pytest.param(changed("features", "sure", "more", value=1), id="an unknown key of a feature"),
        pytest.param(changed("features", "sure", value=None), id="no feature"),
        pytest.param(changed("features", value=[1]), id="features as a list"),
        pytest.param(changed("bias", value=math.nan), id="not a number"),
        pytest.param(changed("bias", value=math.inf), id="infinite"),
        pytest.param(changed("bias", value="1"), id="text"),
        pytest.param(changed("bias", value=True), id="a truth value"),
        pytest.param(changed("bias", value=10**400), id="larger than any float"),
        pytest.param(changed("features", "sure", "weight", value=-math.inf), id="an infinite weight"),
        pytest.param(changed("features", "sure", "scale", value=0.0), id="scale 0"),
        pytest.param(changed("features", "sure", "scale", value=-1.0), id="scale below 0"),
        pytest.param(changed("count", value=49), id="too few"),
        pytest.param(changed("count", value=50.0), id="not a whole number"),
        pytest.param(changed("version", value=7), id="a number for a version"),
    ],
)
def test_what_is_no_calibration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="this is no calibration"):
        Calibration.from_json(text)


# -- in the pipeline -----------------------------------------------------------------------------------------------------------------------


@dataclass
class HalfSegmenter(FakeSegmenter):
    """Points leave of a box its left half."""

    batches: list[int] = field(default_factory=list)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        self.batches.append(len(prompts))
        return super().decode(embedding, prompts)

    def _draw(self, embedding: Embedding, prompt: Prompt) -> Masks:
        masks = super()._draw(embedding, prompt)
        if prompt.box_px is not None and len(prompt.labels):
            masks.masks[1, :, int(prompt.box_px[::2].mean()) :] = False
        return masks


def build(count: int = 1) -> tuple[Pipeline, HalfSegmenter]:
    boxes = [[index * 2, 10, index * 2 + 40, 50] for index in range(count)]
    segmenter = HalfSegmenter()
    return Pipeline(FakeGrounder({"the cup": grounding("the cup", boxes)}), segmenter), segmenter


def test_the_mask_is_compared_with_that_of_its_box() -> None:
    pipeline, segmenter = build()
    [answer] = pipeline.segment(IMAGE, ["the cup"])
    [instance] = answer.instances
    assert instance.features.box_agreement == pytest.approx(0.5)
    assert instance.features.entropy == pytest.approx(entropy(np.array([0.01])))
    assert instance.features.target_probability == pytest.approx(0.9)
    assert [len(prompt.labels) > 0 for prompt in segmenter.prompts] == [True, False]
    assert instance.mask.sum() == 20 * 40  # the box alone is only compared with


@pytest.mark.parametrize(
    ("strategy", "clicks"),
    [
        pytest.param("box", None, id="box"),
        pytest.param("ppg", None, id="ppg without points"),
        pytest.param("pqpp", Clicks(np.array([[25, 15]], np.float32), np.array([1])), id="with a reviewer's click"),
    ],
)
def test_nothing_is_drawn_for_comparison_where_there_is_none(strategy: Strategy, clicks: Clicks | None) -> None:
    pipeline, segmenter = build()
    [answer] = pipeline.segment(IMAGE, ["the cup"], strategy, clicks)
    assert len(segmenter.prompts) == 1
    assert answer.instances[0].features.box_agreement == 1.0


def test_unsure_points_leave_nothing_to_compare() -> None:
    pipeline, segmenter = build()
    pipeline.grounder.ask = lambda scene, inquiries, joint=False: [said(np.full(len(one.points_px), 0.5)) for one in inquiries]  # type: ignore[method-assign]
    [answer] = pipeline.segment(IMAGE, ["the cup"])
    assert len(segmenter.prompts) == 1
    assert answer.instances[0].features.entropy == 1.0


def test_batches_stay_within_their_bound() -> None:
    pipeline, segmenter = build(count=50)
    [answer] = pipeline.segment(IMAGE, ["the cup"])
    assert len(answer.instances) == 50
    assert all(instance.features.box_agreement == pytest.approx(0.5) for instance in answer.instances)
    assert sum(segmenter.batches) == 100
    assert max(segmenter.batches) <= PROMPTS_AT_ONCE


def test_what_a_reviewer_points_at_is_there_whatever_the_model_says() -> None:
    pipeline, _ = build()
    box = Clicks(boxes_px=np.array([[20, 20, 60, 60]], np.float32))
    [answer] = pipeline.segment(IMAGE, ["the moon"], clicks=box)
    assert answer.no_target_probability == 0.95
    assert answer.instances[0].features.target_probability == 1.0


def test_a_calibration_can_be_set_and_taken_back_at_any_time() -> None:
    pipeline, _ = build()
    version = pipeline.version
    [plain] = pipeline.segment(IMAGE, ["the cup"])
    pipeline.calibration = TYPICAL
    [calibrated] = pipeline.segment(IMAGE, ["the cup"])
    [none] = pipeline.segment(IMAGE, ["the moon"])
    pipeline.calibration = None
    [again] = pipeline.segment(IMAGE, ["the cup"])
    assert calibrated.score == calibrated.instances[0].score == TYPICAL.probability(calibrated.instances[0].features)
    assert plain.score == again.score == score(plain.instances[0].features) != calibrated.score
    assert none.score == score_empty(0.95, TYPICAL)
    assert (none.calibrated, again.calibrated) == (True, False)
    assert pipeline.version == calibrated.version == version
    assert np.array_equal(plain.mask, calibrated.mask)


def test_one_call_scores_by_one_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, segmenter = build(count=20)
    pipeline.calibration = TYPICAL
    decode = segmenter.decode

    def replacing(embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        pipeline.calibration = None
        return decode(embedding, prompts)

    monkeypatch.setattr(segmenter, "decode", replacing)
    [answer] = pipeline.segment(IMAGE, ["the cup"])
    assert {instance.score for instance in answer.instances} == {TYPICAL.probability(one.features) for one in answer.instances}
    assert len(segmenter.batches) > 1


def test_empty_answers_that_were_all_right_are_not_beyond_doubt() -> None:
    assert fit_empty([0.9] * (FIT_EMPTY_FROM - 1), [True] * (FIT_EMPTY_FROM - 1)) is None
    fitted = fit_empty([0.9, 0.99] * 10, [True] * 20)
    assert fitted is not None
    assert 0.9 < fitted.probability(0.95) < 0.99
    assert fitted.probability(0.0) < fitted.probability(1.0) < 1
    shuffled = fit_empty([0.6, 0.99] * 100, [True, True, False, False] * 50)
    assert shuffled is not None
    assert abs(shuffled.probability(0.99) - shuffled.probability(0.6)) < 0.1, "a probability that says nothing moves nothing"


@pytest.mark.parametrize(
    "empty",
    [None, {}, {"mean": 0, "scale": 0, "weight": 1, "bias": 0, "count": 20}, {"mean": 0, "scale": 1, "weight": 1, "bias": 0, "count": 1}],
)
def test_a_calibration_of_empty_answers_that_cannot_be_is_none(empty: object) -> None:
    text = json.dumps(json.loads(TYPICAL.to_json()) | {"empty": empty})
    with pytest.raises(ValueError, match="this is no calibration"):
        Calibration.from_json(text)
