"""A former mask in the prompt: which clicks show the segmenter the mask that they correct, and how clicks are measured with and without."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from backend.service import build
from backend.serving.leases import Leases
from benchmarks.waiting import wait_for
from sam4mllm import loading
from sam4mllm.cli import main as cli
from sam4mllm.clicks import Clicks, ShownInstance
from sam4mllm.data.examples import Example
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.errors import EvaluationError
from sam4mllm.evaluation.click_curves import WITH, WITHOUT, ClickCurve, measure_clicks
from sam4mllm.evaluation.clicking import MOST_CLICKS
from sam4mllm.evaluation.run import choose
from sam4mllm.options import Options
from sam4mllm.pipeline import Pipeline
from sam4mllm.segmentation.detection import DetectingSegmenter
from sam4mllm.segmentation.former import mask_logits_of
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Masks, Prompt
from tests.backend_fakes import KNOWN, FakeImages, House, settings, task
from tests.fakes import FakeGrounder, FakeSegmenter, grounding
from tests.test_pointing import ask, opened
from tests.test_predictor import keypoint, rectangle

IMAGE = np.zeros((100, 200, 3), np.uint8)
BOX = (20, 10, 60, 50)


class FakeMaskTaker(FakeSegmenter):
    """Takes masks as they are; draws the left half of its box, and with a former mask what that has and a quarter of the box more."""

    def as_logits(self, embedding: Embedding, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        return np.where(mask, 1.0, -1.0).astype(np.float32)[None]

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        self.prompts.extend(prompts)
        return [self._half(embedding, prompt) for prompt in prompts]

    def _half(self, embedding: Embedding, prompt: Prompt) -> Masks:
        mask = np.zeros((1, embedding.height, embedding.width), np.bool_)
        x1, y1, x2, y2 = (prompt.box_px if prompt.box_px is not None else np.array(BOX)).astype(int)
        right = (x1 + x2) // 2
        if prompt.mask_logits is not None and prompt.mask_logits.shape == mask.shape:
            right = min(x2, int(np.flatnonzero((prompt.mask_logits[0] > 0).any(0))[-1]) + 1 + (x2 - x1) // 4)
        mask[0, y1:y2, x1:right] = True
        return Masks(mask, np.ones(1), np.ones(1))


def shown(*box: int) -> tuple[ShownInstance, ...]:
    mask = np.zeros(IMAGE.shape[:2], np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return (ShownInstance(np.array(box, np.float32), mask),)


def pointed(points: list[list[float]], boxes: list[list[float]], seen: tuple[ShownInstance, ...]) -> Clicks:
    places = np.array(points, np.float32).reshape(-1, 2)
    return Clicks(places, np.ones(len(places), np.int64), np.array(boxes, np.float32).reshape(-1, 4), seen)


@pytest.mark.parametrize(
    ("given", "takes"),
    [
        pytest.param(pointed([[25, 15]], [], shown(*BOX)), True, id="a click on what is shown"),
        pytest.param(pointed([[25, 15]], [], ()), False, id="nothing is shown"),
        pytest.param(pointed([[25, 15]], [[22, 12, 62, 52]], shown(*BOX)), False, id="the box is drawn anew"),
        pytest.param(pointed([[150, 80]], [], shown(*BOX)), False, id="a click elsewhere"),
    ],
)
def test_a_click_shows_the_mask_that_it_corrects(given: Clicks, takes: bool) -> None:
    segmenter = FakeMaskTaker()
    pipeline = Pipeline(FakeGrounder({"the cup": grounding("the cup", [BOX])}), segmenter, Options("box"))
    pipeline.segment(IMAGE, ["the cup"], clicks=given)
    former = [prompt.mask_logits for prompt in segmenter.prompts if prompt.mask_logits is not None]
    assert len(former) == takes
    for logits in former:
        np.testing.assert_array_equal(logits[0] > 0, given.shown[0].mask)


@pytest.mark.parametrize(
    ("segmenter", "options"),
    [
        pytest.param(FakeMaskTaker(), Options("box", former_mask=False), id="turned off"),
        pytest.param(FakeSegmenter(), Options("box"), id="a segmenter that takes none"),
    ],
)
def test_no_former_mask(segmenter: FakeSegmenter, options: Options) -> None:
    pipeline = Pipeline(FakeGrounder({"the cup": grounding("the cup", [BOX])}), segmenter, options)
    pipeline.segment(IMAGE, ["the cup"], clicks=pointed([[25, 15]], [], shown(*BOX)))
    assert [prompt.mask_logits for prompt in segmenter.prompts] == [None]


def test_a_former_mask_renames_no_version() -> None:
    assert Options(former_mask=False).shaping() == Options().shaping()


@pytest.mark.parametrize(("behind", "takes"), [(FakeMaskTaker(), True), (FakeSegmenter(), False)], ids=["SAM", "another"])
def test_behind_a_detector_the_segmenter_decides(behind: FakeSegmenter, takes: bool) -> None:
    both = DetectingSegmenter(FakeSegmenter(), behind)  # type: ignore[arg-type]
    assert (mask_logits_of(both, both.encode(IMAGE), shown(*BOX)[0].mask) is not None) == takes


# -- how it is measured --------------------------------------------------------------------------------------------------------------------


def test_a_curve_says_what_clicks_came_to() -> None:
    curve = ClickCurve((0.5, 0.6, 0.86, 0.80, 0.92))
    assert [curve.after(clicks) for clicks in (1, 2, 3, 5)] == [0.6, 0.86, 0.80, 0.92]
    assert [curve.clicks_to(goal) for goal in (0.4, 0.85, 0.9, 0.95)] == [0, 2, 4, MOST_CLICKS]
    assert curve.terms()["harm"] == (1.0, 4.0)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    mask = np.zeros((1, 100, 200), np.bool_)
    mask[0, 10:50, 20:60] = True
    with ExampleWriter(tmp_path / "data") as writer:
        record = writer.add_image(IMAGE)
        writer.add(record, "the cup", mask, "test", "", boxes=[BOX])
        writer.add(record, "the dog", mask[:0], "test", "")
    return tmp_path / "data"


def clicked(dataset: Path, segmenter: FakeSegmenter, examples: list[Example] | None = None) -> dict[str, dict[str, float | None]]:
    pipeline = Pipeline(FakeGrounder({"the cup": grounding("the cup", [BOX])}), segmenter, Options("box"))
    found = measure_clicks(pipeline, dataset, choose(dataset) if examples is None else examples, lambda images, _: images)
    return {name: sums.figures() for name, sums in found.items()}


def test_clicks_are_measured_with_and_without(dataset: Path) -> None:
    found = clicked(dataset, FakeMaskTaker())
    without, with_former = found[WITHOUT], found[WITH]
    assert [without[f"after {count}"] for count in (1, 2, 3, 5)] == [0.5] * 4
    assert [with_former[f"after {count}"] for count in (1, 2, 3, 5)] == [0.75, 1, 1, 1]
    assert (without["clicks to 0.85"], with_former["clicks to 0.85"]) == (MOST_CLICKS, 2)


def test_who_takes_no_masks_is_measured_without(dataset: Path) -> None:
    assert set(clicked(dataset, FakeSegmenter())) == {WITHOUT}


def test_clicks_need_a_target(dataset: Path) -> None:
    with pytest.raises(EvaluationError, match="clicks need phrases with a target"):
        clicked(dataset, FakeMaskTaker(), [one for one in choose(dataset) if not one.has_target])


@pytest.mark.parametrize("segmenter", [FakeMaskTaker(), FakeSegmenter()], ids=["takes masks", "takes none"])
def test_the_command_tells_of_clicks(dataset: Path, segmenter: FakeSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(FakeGrounder({"the cup": grounding("the cup", [BOX])}), segmenter, Options("box"))
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: pipeline)
    told = CliRunner().invoke(cli.make_app(), ["evaluate", str(dataset), "--clicks"])
    assert told.exit_code == 0, told.output
    assert ("difference" in told.output) == isinstance(segmenter, FakeMaskTaker)
    answer: dict[str, Any] = json.loads(CliRunner().invoke(cli.make_app(), ["evaluate", str(dataset), "--clicks", "--json"]).stdout)
    assert answer["clicks"]["without"]["figures"]["after 5"] is not None
    assert ("gain" in answer["clicks"]) == isinstance(segmenter, FakeMaskTaker)


# -- in the backend ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("click", "takes"),
    [
        pytest.param(keypoint(20, 20), True, id="on the mask"),
        pytest.param(keypoint(90, 90), False, id="elsewhere"),
        pytest.param(rectangle(8, 9, 30, 32, "Cup"), False, id="a box"),
    ],
)
@pytest.mark.parametrize("former_mask", [True, False], ids=["on", "off"])
def test_a_refinement_passes_the_served_mask(tmp_path: Path, click: dict[str, Any], takes: bool, former_mask: bool) -> None:
    own = settings(tmp_path, former_mask=former_mask)
    grounder, segmenter, images = FakeGrounder(KNOWN), FakeMaskTaker(), FakeImages()
    pipeline = Pipeline(grounder, segmenter, own.options, slug="fake")
    where = House(build(own, lambda _: Leases(pipeline), images), grounder, segmenter, images)
    where.service.start()
    try:
        wait_for("the models", lambda: where.service.engine.state != "loading", 30, 0.002)
        seen, _ = opened(where, description="the left cup")
        [drawn] = pipeline.segment(images.load(task()["data"]["image"], 1).pixels, ["the left cup"])
        segmenter.prompts.clear()
        ask(where, seen, click)
    finally:
        where.service.close(5.0)
    former = [prompt.mask_logits for prompt in segmenter.prompts if prompt.mask_logits is not None]
    assert len(former) == (takes and former_mask)
    for logits in former:
        np.testing.assert_array_equal(logits[0] > 0, drawn.instances[0].mask)
