"""The demo's recipe: what it teaches is what serving asks, and a resumed run is an unbroken one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam4mllm.demo.pretrain import segmenter
from sam4mllm.demo.pretrain.dense import dense_targets, model_size, patchify
from sam4mllm.demo.pretrain.export import average, export_mllm, read_trainee
from sam4mllm.demo.pretrain.language import (
    BOXES_ONLY,
    CLOSE_PER_SCENE,
    CLOSE_SIDE,
    batch_losses,
    draw_close_ups,
    forward,
    prefix_positions,
)
from sam4mllm.demo.pretrain.lessons import POINTS_CLOSE, Teacher
from sam4mllm.demo.pretrain.loop import PretrainPlan, learning_rate, run
from sam4mllm.demo.pretrain.tower import DemoTrainee
from sam4mllm.demo.scenes import make_scene
from sam4mllm.demo.tokenizer import Speller, build_tokenizer, vocabulary
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.packing import pack
from sam4mllm.segmentation.small_sam import build_segmenter
from sam4mllm.training.state import save_state

SIZE = (224, 288)


@pytest.fixture(scope="module")
def trainee() -> DemoTrainee:
    torch.manual_seed(1)
    return DemoTrainee()


@pytest.fixture(scope="module")
def exported(trainee: DemoTrainee, tmp_path_factory: pytest.TempPathFactory) -> MllmGrounder:
    folder = tmp_path_factory.mktemp("demo")
    save_state(folder / "runs", 1, trainee, torch.optim.AdamW(trainee.parameters()), {})
    export_mllm(read_trainee(folder / "runs" / "step-00000001"), folder / "model")
    return MllmGrounder(load_checkpoint(str(folder / "model"), torch.device("cpu")))


@pytest.mark.parametrize("size", [(640, 480), (320, 320), (1024, 512), (333, 667)], ids=str)
def test_training_sees_images_as_the_image_processor_makes_them(exported: MllmGrounder, size: tuple[int, int]) -> None:
    height, width = model_size(*size)
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    vision = exported.checkpoint.image_processor(images=[Image.fromarray(image)], return_tensors="pt")
    torch.testing.assert_close(vision["pixel_values"], patchify(image[None]), atol=1e-5, rtol=0)
    original = np.zeros((*size, 3), np.uint8)
    grid = exported.checkpoint.image_processor(images=[Image.fromarray(original)], return_tensors="pt")["image_grid_thw"]
    assert (grid[0, 1:] * 16).tolist() == [height, width]


def test_training_and_serving_give_the_same_logits(trainee: DemoTrainee, exported: MllmGrounder) -> None:
    """A lesson's packed row through the training forward, and the same row continued from a served scene."""
    scene = make_scene((5, 1), size=SIZE)
    teacher = Teacher(build_tokenizer())
    lesson = teacher.lesson(scene, dense_targets(scene), np.random.default_rng(0), with_points=True)
    trainee.mllm.float()
    trainee.mllm.load_state_dict(exported.checkpoint.model.state_dict())  # as rounded by the export
    trainee.mllm.model.language_model.config._attn_implementation = "eager"
    with torch.no_grad():
        visual, grid = trainee.see([scene])
        read = forward(trainee, [lesson], visual, grid)
        trained = trainee.mllm.lm_head(read.hidden[0, read.prefix :])
    row = pack(lesson.segments)
    served, _ = exported.forward(exported.open(scene.image), row.ids, row.offsets, row.mask, np.arange(len(row.ids)))
    torch.testing.assert_close(served, trained, atol=2e-2, rtol=0)  # training's mask is in half precision
    positions = exported.checkpoint.encode(exported.checkpoint, exported.markup.opening, Image.fromarray(scene.image)).positions
    torch.testing.assert_close(positions[:, 0], prefix_positions(visual.shape[1], grid[0]))


def test_lessons_speak_as_serving_does(exported: MllmGrounder) -> None:
    scene = make_scene((5, 2), size=SIZE, kinds=("noun",))
    teacher = Teacher(build_tokenizer())
    lesson = teacher.lesson(scene, dense_targets(scene), np.random.default_rng(3), with_points=False)
    text = exported.checkpoint.tokenizer.decode(lesson.segments[0].ids)
    assert text.startswith(f"find {scene.expressions[0].phrase}") or "##" in text
    assert text.endswith("<|end|>")
    assert len(lesson.coordinates) == 4


def test_close_ups_show_what_the_phrase_means() -> None:
    scenes = draw_close_ups(np.random.default_rng(0), seed=1, step=3, batch=3)
    assert len(scenes) == 3 * CLOSE_PER_SCENE
    for scene in scenes:
        [expression] = scene.expressions
        [index] = expression.targets
        assert scene.image.shape == (CLOSE_SIDE, CLOSE_SIDE, 3)
        assert scene.masks.shape == (len(scene.things), CLOSE_SIDE, CLOSE_SIDE)
        assert scene.masks.any((1, 2)).all()
        assert scene.things[index].noun in expression.nouns or not expression.nouns
        x1, y1, x2, y2 = scene.boxes_px[index] / CLOSE_SIDE
        assert max(x2 - x1, y2 - y1) > 0.45
    assert {len(scene.things) for scene in scenes} != {1}


def test_close_ups_are_spoken_of_as_in_serving(exported: MllmGrounder) -> None:
    [scene, *_] = draw_close_ups(np.random.default_rng(0), seed=1, step=3, batch=1)
    teacher = Teacher(build_tokenizer())
    lesson = teacher.close_up(scene, dense_targets(scene).cover.shape[1], np.random.default_rng(0))
    first, head, *points = (exported.checkpoint.tokenizer.decode(segment.ids) for segment in lesson.segments)
    index = scene.expressions[0].targets[0]
    answer = exported.box_answer(exported.open(scene.image), "a thing", scene.boxes_px[[index]])
    told = exported.checkpoint.tokenizer.decode(answer)
    assert first.startswith("find ")
    assert first.endswith(told)
    assert head.rstrip().startswith("in [") or " in [" in head
    assert len(points) in (POINTS_CLOSE, POINTS_CLOSE + 1)  # now and then all at once too
    assert len(lesson.verdicts) >= POINTS_CLOSE
    assert not lesson.coordinates
    assert not lesson.choices


@pytest.mark.parametrize("step", [1, 10_001, 10_000], ids=["boxes only", "with points", "close-ups"])
def test_every_loss_is_finite_and_reaches_the_weights(step: int) -> None:
    torch.manual_seed(2)
    model = DemoTrainee()
    model.mllm.model.language_model.config._attn_implementation = "eager"
    terms = batch_losses(model, Teacher(build_tokenizer()), seed=1, batch=2)(step)
    assert all(torch.isfinite(term) for term in terms.values())
    assert ("verdict" in terms) == (step > BOXES_ONLY)
    torch.stack([term for name, term in terms.items() if not name.startswith("_")]).sum().backward()  # type: ignore[no-untyped-call]
    silent = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    of_points = {f"heads.{head}.{kind}" for head in ("point", "beneath", "column") for kind in ("weight", "bias")}
    assert silent == (of_points if step < BOXES_ONLY else set())


def test_the_mean_of_two_trainees() -> None:
    torch.manual_seed(3)
    one, other = DemoTrainee(), DemoTrainee()
    expected = {name: (weight + other.state_dict()[name]) / 2 for name, weight in one.state_dict().items()}
    average(one, other)
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(weight, expected[name])


def test_spelling_uses_pieces_that_exist_and_make_up_the_word() -> None:
    tokens = vocabulary()
    speller = Speller(build_tokenizer())
    for seed in range(20):
        pieces = [tokens[index] for index in speller.spell("butterfly", np.random.default_rng(seed))]
        assert "".join(piece.removeprefix("##") for piece in pieces) == "butterfly"


def test_the_rate_warms_up_and_falls() -> None:
    plan = PretrainPlan(Path("unused"), steps=1000, batch=1, rate=1.0, warmup=100)
    assert learning_rate(plan, 0) == pytest.approx(0.01)
    assert learning_rate(plan, 100) == pytest.approx(1.0)
    assert learning_rate(plan, 999) == pytest.approx(plan.floor, abs=1e-3)


def test_a_resumed_run_is_an_unbroken_run(tmp_path: Path) -> None:
    def train(folder: Path, *stops: int) -> torch.Tensor:
        for steps in stops:
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 4)
            plan = PretrainPlan(folder, steps, batch=1, rate=0.1, warmup=1, floor=1.0)
            run(plan, model, lambda step, model=model: {"loss": model(torch.full((1, 4), float(step))).pow(2).mean()})  # type: ignore[misc]
        return model.weight.detach()

    torch.testing.assert_close(train(tmp_path / "broken", 3, 7), train(tmp_path / "whole", 7), atol=1e-6, rtol=0)


def test_the_segmenter_stage_runs(tmp_path: Path) -> None:
    model = segmenter.train(tmp_path, steps=1, batch=1, size=segmenter.SMALL)
    segmenter.grow(build_segmenter(), tmp_path / "step-00000001")
    assert not model.training
    assert (tmp_path / "step-00000001" / "model.safetensors").is_file()
