"""The recipe on a GPU, without one: tensors that pretend to lie on it refuse whatever was left on the CPU."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._device import _device_constructors

from sam4mllm.demo.architecture import HIDDEN, MERGE, PATCH
from sam4mllm.demo.pretrain.examples import draw_sitting, session_of
from sam4mllm.demo.pretrain.language import batch_losses
from sam4mllm.demo.pretrain.lessons import Teacher
from sam4mllm.demo.pretrain.loop import CPU, PretrainPlan, telling_of_failure
from sam4mllm.demo.pretrain.muon import Muon
from sam4mllm.demo.pretrain.segmenter import batch_losses as segmenter_losses
from sam4mllm.demo.pretrain.segmenter_examples import draw_example
from sam4mllm.demo.pretrain.tower import DemoTrainee
from sam4mllm.demo.tokenizer import build_tokenizer
from sam4mllm.errors import TrainingError
from sam4mllm.segmentation.small_sam import SEGMENTER_SIZE, build_segmenter

GPU = torch.device("cuda")


class SightlessTrainee(DemoTrainee):
    """Without its tower, whose reader needs to know the values of tensors; these have none."""

    def see(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        grid = [1, *(side // PATCH for side in images.shape[1:3])]
        return self.words().new_zeros(len(images), math.prod(grid) // MERGE**2, HIDDEN), [grid]  # type: ignore[return-value]


@pytest.mark.parametrize("session", ["crowd", "whole", "close", "look"])
def test_what_the_mllm_learns_lies_on_the_gpu(session: str) -> None:
    _device_constructors.cache_clear()  # transformers replaces one of them for a while, and torch may have kept its stand-in
    step = next(step for step in range(100) if session_of(step, 0) == session)
    sitting = draw_sitting(3, 1, 0, step)
    with FakeTensorMode(shape_env=ShapeEnv(allow_dynamic_output_shape_ops=True)), GPU:
        model = SightlessTrainee()
        model.mllm.model.language_model.config._attn_implementation = "eager"
        losses = batch_losses(model, Teacher(build_tokenizer()), lambda _: sitting, lambda step: session_of(step, 0))
        assert {term.device.type for term in losses(step).values()} == {"cuda"}


def test_what_the_segmenter_learns_lies_on_the_gpu() -> None:
    examples = [replace(draw_example(4, index, SEGMENTER_SIZE, whole=False), rounds=1) for index in range(3)]
    with FakeTensorMode(), GPU:
        model = build_segmenter()
        optimizer = Muon(model, 1e-3, 0.02)
        terms = segmenter_losses(model, examples, np.random.default_rng(0))
        assert {term.device.type for term in terms.values()} == {"cuda"}
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert {kept["momentum"].device.type for kept in optimizer.state.values() if "momentum" in kept} == {"cuda"}


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), RuntimeError("CUDA error: no device\nmore of it")], ids=["full", "gone"]
)
def test_a_gpu_that_fails_is_told_of_in_one_line(error: RuntimeError, tmp_path: Path) -> None:
    plan = PretrainPlan(tmp_path, steps=1, batch=1, rate=1e-3, device=GPU)
    with (
        pytest.raises(TrainingError, match=r"^cuda failed \([^\n]*\); the same command goes on from the newest state in [^\n]*$"),
        telling_of_failure(plan),
    ):
        raise error
    with pytest.raises(RuntimeError, match="^" + str(error)), telling_of_failure(replace(plan, device=CPU)):
        raise error
