"""The simulated reviewer: where it clicks, when it stops, and what that costs the MLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sam4mllm.clicks import Clicks
from sam4mllm.data.examples import Example, ExampleInstance
from sam4mllm.evaluation.clicking import MOST_CLICKS, Correction, correct, next_click
from sam4mllm.evaluation.sharing import SharingGrounder
from sam4mllm.grounding.protocol import Inquiry, Question, Scene
from sam4mllm.masks import box_of
from sam4mllm.options import Options
from sam4mllm.pipeline import Pipeline
from sam4mllm.run_lengths import to_rle
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Grounding, Masks, Prompt, Segmentation, SpokenPoints
from tests.fakes import FakeGrounder, FakeSegmenter, NotedScene, grounding

HEIGHT, WIDTH = 60, 100


def block(x1: int, y1: int, x2: int, y2: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[y1:y2, x1:x2] = True
    return mask


@pytest.mark.parametrize(
    ("truth", "mask", "ignored", "point_px", "label"),
    [
        pytest.param(block(10, 10, 21, 21), block(0, 0, 0, 0), None, (15.5, 15.5), 1, id="nothing drawn: the middle of what is there"),
        pytest.param(block(10, 10, 41, 21), block(10, 10, 30, 21), None, (35.5, 15.5), 1, id="a part is missing"),
        pytest.param(block(10, 10, 30, 21), block(10, 10, 41, 21), None, (35.5, 15.5), 0, id="there is too much"),
        pytest.param(block(0, 0, 9, 9) | block(50, 0, 71, 21), block(80, 40, 99, 59), None, (60.5, 10.5), 1, id="the largest region"),
        pytest.param(block(0, 0, 11, 60), block(0, 0, 0, 0), None, (5.5, 5.5), 1, id="the image's edge counts as an edge"),
        pytest.param(
            block(10, 10, 31, 31), block(60, 10, 71, 21), block(10, 10, 31, 31), (65.5, 15.5), 0, id="what is ignored is no error"
        ),
    ],
)
def test_the_next_click_is_in_the_middle_of_the_largest_error(
    truth: NDArray[np.bool_], mask: NDArray[np.bool_], ignored: NDArray[np.bool_] | None, point_px: tuple[float, float], label: int
) -> None:
    click = next_click(truth, mask, ignored)
    assert click is not None
    assert (tuple(click[0].tolist()), click[1]) == (point_px, label)


@pytest.mark.parametrize("ignored", [None, block(0, 0, 50, 50)], ids=["right", "right but for what is ignored"])
def test_what_is_right_needs_no_click(ignored: NDArray[np.bool_] | None) -> None:
    truth = block(10, 10, 30, 30)
    assert next_click(truth, truth if ignored is None else block(0, 0, 0, 0), ignored) is None


@dataclass
class GrowingSegmenter(FakeSegmenter):
    """Draws the left of its box, a tenth of it more for each positive point; without a box, the image's first corner."""

    clicks: list[Prompt] = field(default_factory=list)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        self.clicks += prompts
        return [self._grow(embedding, prompt) for prompt in prompts]

    def _grow(self, embedding: Embedding, prompt: Prompt) -> Masks:
        x1, y1, x2, y2 = (0, 0, 9, 9) if prompt.box_px is None else prompt.box_px.astype(int)
        mask = np.zeros((1, embedding.height, embedding.width), np.bool_)
        mask[0, y1:y2, x1 : x1 + round((x2 - x1) * min(1.0, 0.55 + 0.1 * int((prompt.labels == 1).sum())))] = True
        return Masks(mask, np.ones(1), np.ones(1))


@dataclass
class CountingBoxes(FakeGrounder):
    """Counts the calls that ask for boxes."""

    grounded: int = 0

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        self.grounded += 1
        return super().ground(scene, phrases, question)


def an_example(mask: NDArray[np.bool_]) -> Example:
    return Example("images/a.png", "00", WIDTH, HEIGHT, "the cup", (ExampleInstance(box_of(mask), to_rle(mask)),), "test", "")


def corrected(truth: NDArray[np.bool_], found: Sequence[Sequence[float]]) -> tuple[Correction, CountingBoxes, GrowingSegmenter]:
    grounder, segmenter = CountingBoxes({"the cup": grounding("the cup", found)}), GrowingSegmenter()
    pipeline = Pipeline(SharingGrounder(grounder), segmenter, Options("box"))
    opened = pipeline.open(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    [answer] = pipeline.segment(opened, ["the cup"])
    return correct(pipeline, opened, an_example(truth), answer), grounder, segmenter


@pytest.mark.parametrize(
    ("truth", "found", "clicks", "reached"),
    [
        pytest.param(block(20, 10, 40, 30), [20, 10, 60, 30], 0, True, id="0.91 at once"),
        pytest.param(block(20, 10, 60, 30), [20, 10, 60, 30], 3, True, id="0.55, then a tenth a click"),
        pytest.param(block(70, 40, 90, 50), [20, 10, 60, 30], MOST_CLICKS, False, id="never"),
    ],
)
def test_clicks_are_counted_until_the_mask_fits(truth: NDArray[np.bool_], found: list[float], clicks: int, reached: bool) -> None:
    assert corrected(truth, [found])[0] == Correction(clicks, reached)


def test_all_clicks_cost_one_question_and_join_each_other() -> None:
    correction, grounder, segmenter = corrected(block(20, 10, 60, 30), [[20, 10, 60, 30]])
    assert (correction.clicks, grounder.grounded) == (3, 1)
    assert [len(prompt.labels) for prompt in segmenter.clicks] == [0, 1, 2, 3]
    assert all((prompt.labels == 1).all() for prompt in segmenter.clicks)


def test_clicks_are_about_the_answer_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Clicks] = []

    def record(self: Pipeline, *arguments: Any, clicks: Clicks | None = None, **more: Any) -> list[Segmentation]:
        made.extend([] if clicks is None else [clicks])
        return segment(self, *arguments, clicks=clicks, **more)

    segment = Pipeline.segment
    monkeypatch.setattr(Pipeline, "segment", record)
    corrected(block(20, 10, 60, 30), [[20, 10, 60, 30]])
    assert [len(clicks.labels) for clicks in made] == [1, 2, 3]
    assert [[one.box_px.tolist() for one in clicks.shown] for clicks in made] == [[[20, 10, 60, 30]]] * 3


def test_a_comparison_has_an_image_read_before_its_first_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the setting that asks first would be charged with it."""
    fake, notes = FakeGrounder({}), list[str]()
    monkeypatch.setattr(fake, "open", lambda image: NotedScene(60, 60, 1, notes))
    monkeypatch.setattr(fake, "ground", lambda *_: [notes.append("asked")])
    shared = SharingGrounder(fake)
    shared.ground(shared.open(np.zeros((60, 60, 3), np.uint8)), ["cup"])
    assert notes == ["read", "asked"]


def test_points_that_were_said_before_are_part_of_a_question() -> None:
    """Of a model that answers with points: the turn before a question about a box spells them."""
    fake = FakeGrounder({})
    shared = SharingGrounder(fake)
    scene = shared.open(np.zeros((60, 60, 3), np.uint8))
    none = np.zeros((0, 2), np.float32)
    for place in (10, 30, 10):
        said = SpokenPoints(np.full((1, 2), place, np.float32), none)
        known = replace(grounding("cup", [[5, 5, 40, 40]]), points=(said,))
        shared.ask(scene, [Inquiry(known, 0, np.array([[20, 20]], np.float32))])
    assert len(fake.asked) == 2
