"""The strategies on fakes: what is asked, what is kept, what reaches the segmenter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

import sam4mllm
from sam4mllm.clicks import Clicks
from sam4mllm.confidence import score_empty
from sam4mllm.errors import ImageError, PhraseError, PromptError
from sam4mllm.grounding.protocol import Inquiry, Replies, Scene
from sam4mllm.grounding.remembering import RememberingGrounder
from sam4mllm.masks import box_of
from sam4mllm.options import PATTERNS, STRATEGIES, Choice, Options, Pattern, Strategy
from sam4mllm.pipeline import Pipeline
from sam4mllm.points import Answers, beside, interior, spread, unsure
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import MAX_PHRASE, Masks, Prompt, SpokenPoints
from tests.fakes import FakeConceptSegmenter, FakeGrounder, FakeSegmenter, grounding, said

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


def test_the_longest_phrase_is_accepted() -> None:
    pipeline, _, _ = build()
    pipeline.segment(IMAGE, ["a" * MAX_PHRASE])


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(np.zeros((1, 1, 3), np.uint8), id="one pixel"),
        pytest.param(np.zeros((100, 100), np.uint8), id="grey"),
        pytest.param(np.zeros((100, 100, 3), np.float32), id="float"),
        pytest.param(np.zeros((100, 100, 4), np.uint8), id="with alpha"),
    ],
)
def test_images_of_another_kind_are_refused(image: NDArray[np.uint8]) -> None:
    pipeline, _, _ = build(CUP)
    with pytest.raises(ImageError):
        pipeline.segment(image, ["the cup"])


def test_an_unknown_strategy_is_refused() -> None:
    pipeline, _, _ = build(CUP)
    with pytest.raises(ValueError, match="box, ppg, pqpp"):
        pipeline.segment(IMAGE, ["the cup"], "magic")


def test_an_answer_has_the_version_of_the_strategy_that_gave_it() -> None:
    grounder, segmenter = FakeGrounder({"the cup": CUP}), FakeConceptSegmenter()
    pipeline = Pipeline(grounder, segmenter, Options("box"))
    versions = {strategy: Pipeline(grounder, segmenter, Options(strategy)).version for strategy in STRATEGIES}
    assert len(set(versions.values())) == len(STRATEGIES)
    assert pipeline.version == versions["box"]
    assert pipeline.segment(IMAGE, ["the cup"])[0].version == versions["box"]
    for strategy in STRATEGIES:
        assert pipeline.segment(IMAGE, ["the cup"], strategy)[0].version == versions[strategy]
    assert pipeline.version == versions["box"]


def test_a_pipeline_without_an_argument_goes_by_its_own_strategy() -> None:
    pipeline, grounder, _ = build(CUP, strategy="box")
    pipeline.segment(IMAGE, ["the cup"])
    assert not grounder.asked


def test_the_version_changes_with_what_shapes_a_prediction() -> None:
    first, grounder, segmenter = build(CUP)
    versions = {
        first.version,
        Pipeline(grounder, segmenter, Options("box")).version,
        Pipeline(grounder, segmenter, Options(joint=True)).version,
    }
    grounder.identity = "other"
    versions.add(first.version)
    assert len(versions) == 4
    assert all(version.startswith("custom-0-") and len(version.rsplit("-", 1)[1]) == 8 for version in versions)


def test_the_demo_keeps_its_version() -> None:
    pipeline = sam4mllm.load(device="cpu", options=Options(pattern="spread", choice="predicted"))
    assert pipeline.version == "demo-0-66426ada"


def test_patterns_and_choices_are_part_of_the_version() -> None:
    options = [Options(pattern=pattern) for pattern in PATTERNS] + [Options(choice="single"), Options(choice="agreement")]
    assert len({Pipeline(FakeGrounder({}), FakeSegmenter(), one).version for one in options}) == len(options)


@pytest.mark.parametrize("given", [{"pattern": "magic"}, {"choice": "magic"}], ids=str)
def test_unknown_options_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"must be one of .*, not 'magic'"):
        Options(**given)  # type: ignore[arg-type]


# -- where points fall ---------------------------------------------------------------------------------------------------------------------


class RoundSegmenter(FakeSegmenter):
    """Draws the middle half of the box, whatever the points say."""

    def _draw(self, embedding: Embedding, prompt: Prompt) -> Masks:
        masks = super()._draw(embedding, prompt)
        assert prompt.box_px is not None
        middle, side = (prompt.box_px[:2] + prompt.box_px[2:]) / 2, (prompt.box_px[2:] - prompt.box_px[:2]) / 4
        (left, top), (right, bottom) = (middle - side).astype(int), (middle + side).astype(int)
        masks.masks[1] = False
        masks.masks[1, top:bottom, left:right] = True
        return masks


@pytest.mark.parametrize("joint", [False, True], ids=["packed", "joint"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_asks_every_box_of_every_phrase(pattern: Pattern, joint: bool) -> None:
    pipeline, grounder, segmenter = build(CUP, CUPS, pattern=pattern, joint=joint)
    one, many, none = pipeline.segment(IMAGE, ["the cup", "all cups", "the dog"])
    assert (len(one.instances), len(many.instances), len(none.instances)) == (1, 2, 0)
    for instance, inquiry in zip([*one.instances, *many.instances], grounder.asked, strict=False):
        assert len(instance.points_px) == (15 if joint else 30)
        low, high = instance.box_px[:2], instance.box_px[2:]
        assert ((instance.points_px >= low) & (instance.points_px <= high)).all()
        assert np.array_equal(inquiry.points_px, instance.points_px[: len(inquiry.points_px)])
        assert np.array_equal(inquiry.grounding.boxes_px[inquiry.index], instance.box_px)
        answered = np.where(instance.points_px[:, 0] < (low[0] + high[0]) / 2, 0.99, 0.01)
        sure = np.abs(instance.inside - answered) < 0.01
        assert sure.all() if pattern != "second-look" else sure.mean() > 0.8
    assert {len(prompt.points_px) for prompt in segmenter.prompts[-6:]} <= {0, *range(10, 31)}


def test_interior_points_follow_the_mask_of_the_box_alone() -> None:
    pipeline, grounder, _ = build(CUP, pattern="interior", count=10)
    segmenter = RoundSegmenter()
    pipeline.segmenter = segmenter
    pipeline.segment(IMAGE, ["the cup"])
    first = segmenter.prompts[0]
    assert len(first.labels) == 0
    box = CUP.boxes_px[0]
    [drawn] = segmenter.decode(segmenter.encode(IMAGE), [Prompt(box, np.zeros((0, 2), np.float32), np.zeros(0, np.int64))])
    assert np.array_equal(grounder.asked[0].points_px, interior(box, drawn.masks[1], 10))


def test_unsure_points_follow_the_first_answers() -> None:
    pipeline, grounder, _ = build(CUP, pattern="unsure", count=9)
    [answer] = pipeline.segment(IMAGE, ["the cup"])
    first, second = (inquiry.points_px for inquiry in grounder.asked)
    box = CUP.boxes_px[0]
    assert np.array_equal(first, spread(box, 4))
    assert np.array_equal(second, unsure(box, Answers(first, np.where(first[:, 0] < 40, 0.99, 0.01)), 5))
    assert np.abs(second[:, 0] - 40).mean() < np.abs(first[:, 0] - 40).mean()  # the fake's answers change there
    assert np.array_equal(answer.instances[0].points_px, np.concatenate([first, second]))


def test_a_second_look_is_taken_beside_what_the_mask_contradicts() -> None:
    pipeline, grounder, _ = build(CUP, pattern="second-look")
    pipeline.segmenter = RoundSegmenter()
    [answer] = pipeline.segment(IMAGE, ["the cup"])
    first, second = (inquiry.points_px for inquiry in grounder.asked)
    x, y = first.T
    contradicted = (x < 40) != ((x >= 30) & (x < 50) & (y >= 20) & (y < 40))
    assert 0 < contradicted.sum() < 30
    assert np.array_equal(second, beside(CUP.boxes_px[0], first[contradicted]))
    assert np.array_equal(answer.instances[0].points_px, first)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_click_does_not_move_the_points(pattern: Pattern) -> None:
    """What is remembered of a scene answers for them, so that a click costs the segmenter alone."""
    pipeline, grounder, _ = build(CUP, pattern=pattern)
    remembering = Pipeline(RememberingGrounder(grounder), RoundSegmenter(), pipeline.options)
    opened = remembering.open(IMAGE)
    remembering.segment(opened, ["the cup"])
    asked = len(grounder.asked)
    remembering.segment(opened, ["the cup"], clicks=clicks([[25, 15], [55, 45]], [1, 0]))
    assert len(grounder.asked) == asked


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_box_of_no_extent_is_asked_about_once(pattern: Pattern) -> None:
    pipeline, grounder, _ = build(grounding("the dot", [[20, 10, 20, 10]]), pattern=pattern)
    pipeline.segment(IMAGE, ["the dot"])
    assert grounder.asked[0].points_px.tolist() == [[20, 10]]


# -- which mask ----------------------------------------------------------------------------------------------------------------------------


class HalvesSegmenter(FakeSegmenter):
    """The left half of the image predicted at 0.8, all of it at 0.9; of a clear prompt only the upper half."""

    def _draw(self, embedding: Embedding, prompt: Prompt) -> Masks:
        left, whole, upper = np.zeros((3, embedding.height, embedding.width), np.bool_)
        left[:, :40], whole[:], upper[:30] = True, True, True
        if prompt.single:
            return Masks(upper[None], np.array([0.5]), np.array([1.0]))
        return Masks(np.stack([left, whole]), np.array([0.8, 0.9]), np.ones(2))


@pytest.mark.parametrize(
    ("choice", "strategy", "columns", "rows"),
    [
        pytest.param("predicted", "pqpp", 200, 100, id="predicted IoU"),
        pytest.param("agreement", "pqpp", 40, 100, id="the answers say yes on the left only"),
        pytest.param("agreement", "box", 200, 100, id="no answers, no say"),
        pytest.param("single", "pqpp", 200, 30, id="a box with points is clear"),
        pytest.param("single", "box", 200, 100, id="a box alone is not"),
    ],
)
def test_the_choice_of_the_mask(choice: Choice, strategy: Strategy, columns: int, rows: int) -> None:
    pipeline, _, _ = build(CUP, choice=choice)
    pipeline.segmenter = HalvesSegmenter()
    [answer] = pipeline.segment(IMAGE, ["the cup"], strategy)
    assert (answer.mask.any(0).sum(), answer.mask.any(1).sum()) == (columns, rows)


def test_scores_are_probabilities_and_fall_with_disagreement() -> None:
    pipeline, _, _ = build(CUP)
    [good] = pipeline.segment(IMAGE, ["the cup"], "box")
    [bad] = pipeline.segment(IMAGE, ["the cup"], "pqpp")  # the fake draws the whole box though half its points were denied
    assert 0 <= bad.score < good.score <= 1


def test_threads_do_not_mix_images() -> None:
    boxes = {f"thing {index}": grounding(f"thing {index}", [[index, index, index + 20, index + 30]]) for index in range(8)}
    pipeline = Pipeline(FakeGrounder(boxes), FakeSegmenter())

    def work(index: int) -> bool:
        [answer] = pipeline.segment(IMAGE, [f"thing {index % 8}"])
        expected = np.zeros((100, 200), np.bool_)
        expected[index % 8 : index % 8 + 30, index % 8 : index % 8 + 20] = True
        return bool(np.array_equal(answer.mask, expected))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
