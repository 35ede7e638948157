"""What an answer is named and scored by: versions, patterns of points, and the choice of the mask."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

import sam4mllm
from sam4mllm.errors import ImageError
from sam4mllm.grounding.remembering import RememberingGrounder
from sam4mllm.options import PATTERNS, STRATEGIES, Choice, Options, Pattern, Strategy
from sam4mllm.pipeline import Pipeline
from sam4mllm.points import Answers, beside, interior, spread, unsure
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import MAX_PHRASE, Masks, Prompt
from tests.fakes import FakeConceptSegmenter, FakeGrounder, FakeSegmenter, grounding
from tests.test_pipeline import CUP, CUPS, IMAGE, build, clicks


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
    assert sam4mllm.load(device="cpu", options=Options()).version == "demo-0-c519765d"


def test_another_default_number_of_points_is_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def named() -> str:
        return Pipeline(FakeGrounder({}), FakeSegmenter(), Options()).version

    monkeypatch.setattr("sam4mllm.options.COUNT", 30)
    before = named()
    monkeypatch.setattr("sam4mllm.options.COUNT", 20)
    assert named() == Pipeline(FakeGrounder({}), FakeSegmenter(), Options(count=20)).version != before


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
