"""Training that meets losses, gradients, images and memory that will not do, and what a step learns from."""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor

from sam4mllm.adapters.fields import CONFIG, WEIGHTS
from sam4mllm.adapters.files import check_adapter
from sam4mllm.adapters.lora import Adapters
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.errors import TrainingError
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.training import image_gradients
from sam4mllm.training.asking import Asking
from sam4mllm.training.collate import TrainingRow
from sam4mllm.training.loss import row_loss
from sam4mllm.training.plan import MEASURED, TrainingPlan
from sam4mllm.training.pool import Pool
from sam4mllm.training.recipe import Progress, Trainer
from tests.test_pool import Box, make_pool, write_pictures
from tests.test_recipe import ASKING, CPU, PLAN, assert_same, losses, make_trainer, weights


def test_the_loss_falls(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    found = losses(make_trainer(tiny_checkpoint, data, tmp_path, replace(PLAN, steps=40, rate=2e-2, dropout=0.0)))
    assert np.mean(found[-5:]) < 0.5 * np.mean(found[:5])


def test_the_base_model_is_as_it_was(single: Path, data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(single, data, tmp_path / "run")
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters() if not weight.requires_grad}
    trainer.train()
    for name, weight in trainer.model.named_parameters():
        assert weight.requires_grad or torch.equal(weight, before[name])
    assert not any(module.training for module in trainer.model.modules())


def test_the_adapter_is_written_as_plain_lora(single: Path, data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(single, data, tmp_path / "run")
    trainer.train()
    trainer.save_adapter(tmp_path / "adapter", "a/base")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {CONFIG, WEIGHTS}
    check_adapter(tmp_path / "adapter")
    assert '"base_model_name_or_path": "a/base"' in (tmp_path / "adapter" / CONFIG).read_text()
    assert len(load_file(tmp_path / "adapter" / WEIGHTS)) == len(weights(trainer))


@pytest.mark.parametrize(("share", "count"), [(0.0, 1), (1.0, 2)], ids=["none", "one"])
def test_close_ups_are_learned_besides_the_image(share: float, count: int, single: Path, data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(single, data, tmp_path, asking=replace(ASKING, close_share=share))
    shown = next(one for one in trainer._pool.draw(np.random.default_rng(0), 9, 0.0) if one.examples[0].has_target)
    assert len(trainer._gradients.learn(shown, np.random.default_rng(0))) == count


@pytest.mark.parametrize(("share", "count"), [(0.0, 2), (1.0, 3)], ids=["none", "one"])
def test_looks_back_are_learned_besides_image_and_close_up(share: float, count: int, single: Path, data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(single, data, tmp_path, asking=replace(ASKING, close_share=1.0, look_share=share))
    shown = next(one for one in trainer._pool.draw(np.random.default_rng(0), 9, 0.0) if one.examples[0].has_target)
    losses = trainer._gradients.learn(shown, np.random.default_rng(3))
    assert len(losses) == count
    assert trainer._gather({0: losses}) == pytest.approx([float(loss) for loss in losses])


def test_an_adapter_is_saved_at_its_strength(single: Path, data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(single, data, tmp_path, replace(PLAN, strength=0.25))
    trainer.save_adapter(tmp_path / "adapter", "a/base")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 2
    checkpoint = load_checkpoint(str(single), torch.device("cpu"))
    Adapters(checkpoint).load("new", tmp_path / "adapter")
    scales = {scale for module in checkpoint.model.modules() if isinstance(module, LoraLayer) for scale in module.scaling.values()}
    assert scales == {0.25 * PLAN.alpha / PLAN.rank}


def test_the_gradient_of_a_step_is_the_mean_of_its_images(single: Path, data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(single, data, tmp_path, replace(PLAN, batch=2, dropout=0.0))
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    shown = trainer._pool.draw(np.random.default_rng(0), 2, 0.0)
    found = []
    for some in (shown[:1], shown[1:], shown):
        for weight in trained:
            weight.grad = None
        for one in some:
            assert trainer._gradients.learn(one, np.random.default_rng(shown.index(one)))
        found.append([torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in trained])
    assert max(float(gradient.abs().max()) for gradient in found[0]) > 0
    assert_same([one + other for one, other in zip(*found[:2], strict=True)], found[2])


def test_recomputing_gives_the_same_weights(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """With dropout, whose draws must be the same the second time."""
    found, calls = [], {False: 0, True: 0}
    for recompute in (False, True):
        trainer = make_trainer(tiny_checkpoint, data, tmp_path / str(recompute), replace(PLAN, steps=2, recompute=recompute))

        def count(*_: object, recompute: bool = recompute) -> None:
            calls[recompute] += 1

        trainer._checkpoint.model.model.language_model.layers[0].self_attn.register_forward_hook(count)
        trainer.train()
        found.append(weights(trainer))
    assert calls[True] == 2 * calls[False] > 0
    assert_same(*found)


def make_half(source: Path, data: Path, folder: Path, plan: TrainingPlan, dtype: torch.dtype) -> Trainer:
    """As on a GPU: autocast in the base model's precision."""
    checkpoint = load_checkpoint(str(source), CPU)
    checkpoint.model.to(dtype)
    return Trainer(checkpoint, make_pool(data / "corrections", data / "replay"), plan, folder, ASKING)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_trains_an_adapter_in_float32(dtype: torch.dtype, single: Path, data: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, steps=40, rate=2e-2, dropout=0.0)
    trainer = make_half(single, data, tmp_path, plan, dtype)
    assert {weight.dtype for weight in weights(trainer)} == {torch.float32}
    assert {weight.dtype for weight in trainer.model.parameters() if not weight.requires_grad} == {dtype}
    found = losses(trainer)
    assert np.mean(found[-5:]) < 0.6 * np.mean(found[:5])


def test_the_scale_of_float16_gradients_survives_a_stop(single: Path, data: Path, tmp_path: Path) -> None:
    """Steps whose gradients overflow are passed over while the scale comes down, so it is part of the run."""
    unbroken = make_half(single, data, tmp_path / "unbroken", PLAN, torch.float16)
    unbroken._scaler._init_scale = 2.0**40
    expected = losses(unbroken)
    first = make_half(single, data, tmp_path / "broken", PLAN, torch.float16)
    first._scaler._init_scale = 2.0**40
    found: list[float] = []

    def tell(progress: Progress) -> None:
        found.append(progress.loss)
        if progress.step == 2:
            first.stop()

    first.train(tell)
    resumed = make_half(single, data, tmp_path / "broken", PLAN, torch.float16)
    assert found + losses(resumed) == pytest.approx(expected, abs=1e-6)
    assert resumed._scaler.get_scale() == unbroken._scaler.get_scale() < 2.0**40
    assert_same(weights(resumed), weights(unbroken))


# -- failures ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run(
    value: float, single: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = row_loss
    monkeypatch.setattr(image_gradients, "row_loss", lambda *given: real(*given) * value)
    trainer = make_trainer(single, data, tmp_path)
    before = weights(trainer)
    with pytest.raises(TrainingError, match="at step 1; use a lower rate"):
        trainer.train()
    assert_same(weights(trainer), before)
    assert not list(tmp_path.iterdir())


class Overflow(torch.autograd.Function):
    """A finite loss whose gradient is not."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        del ctx
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        return gradient * torch.inf


def test_a_gradient_that_is_no_number_ends_the_run(single: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = row_loss
    monkeypatch.setattr(image_gradients, "row_loss", lambda *given: Overflow.apply(real(*given)))
    trainer = make_trainer(single, data, tmp_path)
    before = weights(trainer)
    with pytest.raises(TrainingError, match="the gradient is"):
        trainer.train()
    assert_same(weights(trainer), before)


def exhaust(gradient: Tensor) -> Tensor:
    """Memory that runs out on the way back."""
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


Loss = Callable[..., Tensor]


def out_of_memory(most: int, on_the_way_back: bool, real: Loss = row_loss) -> Loss:
    """A GPU whose memory takes rows of ``most`` tokens."""

    @functools.wraps(real)
    def loss(model: Any, encoded: Any, row: TrainingRow) -> Tensor:
        if len(row.row.ids) <= most:
            return real(model, encoded, row)
        if not on_the_way_back:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        found = real(model, encoded, row)
        first = model.model.language_model.layers[0].self_attn.q_proj.lora_A["default"].weight
        handle = first.register_hook(exhaust)  # reached when most other gradients are there
        weakref.finalize(found, handle.remove)
        return found

    return loss


def pool_of(folder: Path, pictures: list[Picture]) -> Pool:
    write_pictures(folder, pictures)
    return Pool([(folder, read_examples(folder))], label=lambda example: 1)


Picture = dict[str, list[Box]]
TWO: Picture = {"the left cup": [(5, 10, 40, 60), (50, 20, 85, 50)]}
NONE: Picture = {"the zebra": []}
MANY: Picture = {f"the {name}": [] for name in ("cup", "dog", "car", "cat", "bus")}


@pytest.mark.parametrize("back", [False, True], ids=["forth", "back"])
def test_an_image_that_does_not_fit_into_memory_is_tried_with_fewer_phrases(
    back: bool, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asking = Asking(prompt_share=0.0)
    pool = pool_of(tmp_path / "data", [MANY])
    tokens: list[int] = []
    loss = out_of_memory(16, back)

    def recording(model: Any, encoded: Any, row: TrainingRow) -> Tensor:
        tokens.append(len(row.row.ids))
        return loss(model, encoded, row)

    monkeypatch.setattr(image_gradients, "row_loss", recording)
    trainer = Trainer(load_checkpoint(str(single), CPU), pool, replace(PLAN, steps=3, batch=1), tmp_path / "run", asking)
    before = weights(trainer)
    assert all(np.isfinite(losses(trainer)))
    assert "5 phrases is too large; tried again with half of them" in caplog.text
    assert max(tokens) > 16 >= min(tokens)
    assert max(float((one - other).abs().max()) for one, other in zip(weights(trainer), before, strict=True)) > 0


@pytest.mark.parametrize("how", ["forth", "back", "longer than a row of serving"])
def test_an_image_left_out_leaves_no_trace(
    how: str, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights are those of a run that passes over it."""
    plan, asking = replace(PLAN, steps=4, batch=3), Asking(points=2, prompt_share=0.0)
    pool = pool_of(tmp_path / "data", [TWO, NONE])
    trainer, passing = (Trainer(load_checkpoint(str(single), CPU), pool, plan, tmp_path / name, asking) for name in "ab")
    real = passing._gradients.learn
    monkeypatch.setattr(passing._gradients, "learn", lambda shown, rng: [] if shown.examples[0].has_target else real(shown, rng))
    passing.train()
    if how == "longer than a row of serving":
        monkeypatch.setattr(image_gradients, "MAX_ROW", 16)
    else:
        monkeypatch.setattr(image_gradients, "row_loss", out_of_memory(16, how == "back"))
    trainer.train()
    assert "left out: it is too large even with one phrase" in caplog.text
    assert_same(weights(trainer), weights(passing))


def test_nothing_fits(single: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_gradients, "row_loss", out_of_memory(0, False))
    trainer = make_trainer(single, data, tmp_path)
    with pytest.raises(TrainingError, match="no image of step 1 could be used"):
        trainer.train()


def test_an_image_that_the_model_cannot_take_is_left_out(
    single: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(single, data, tmp_path, replace(PLAN, steps=3, batch=4))
    real, calls = trainer._gradients.encode, []

    def refuse_some(image: np.ndarray) -> Any:
        calls.append(image.shape)
        if len(calls) % 3 == 0 and image.shape[0] != image.shape[1]:
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return real(image)

    monkeypatch.setattr(trainer._gradients, "encode", refuse_some)
    assert all(np.isfinite(losses(trainer)))
    assert "is left out: absolute aspect ratio" in caplog.text


def test_a_phrase_with_a_control_word_is_not_learned(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Serving would refuse it, and a task's text must not forge turns."""
    checkpoint = load_checkpoint(str(single), CPU)
    forged = f"the cup {next(iter(MllmGrounder(checkpoint)._control))}"
    phrases: dict[str, list[Box]] = {"the left cup": [(5, 10, 40, 60)], forged: [(50, 20, 85, 50)]}
    pool = pool_of(tmp_path / "data", [phrases, {forged: []}])
    trainer = Trainer(checkpoint, pool, replace(PLAN, steps=3, batch=4), tmp_path / "run", ASKING)
    row, asked = trainer._gradients._collator.row, set[str]()

    def watched(frame: Any, examples: Any, rng: Any) -> TrainingRow:
        asked.update(example.phrase for example in examples)
        return row(frame, examples, rng)

    monkeypatch.setattr(trainer._gradients._collator, "row", watched)
    assert trainer.train()
    assert asked == {"the left cup"}
    assert caplog.text.count("which is a control word of the model") == 2, "once for each picture, however often it comes up"


def test_a_machine_that_gets_slower_ends_a_run_in_time(single: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spent = [0.0]

    def slower() -> float:
        spent[0] += 0.1 if spent[0] < 5 else 10.0
        return spent[0]

    monkeypatch.setattr("sam4mllm.training.recipe.time.monotonic", slower)
    trainer = make_trainer(single, data, tmp_path, replace(PLAN, steps=200, budget_seconds=60.0))
    told: list[Progress] = []
    assert trainer.train(told.append)
    assert MEASURED < told[-1].step < 100
    assert make_trainer(single, data, tmp_path, trainer.plan).train(lambda progress: pytest.fail("it was complete"))
