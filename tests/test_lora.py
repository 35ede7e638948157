"""Adapters beside one base model: each answers as itself, none leaves a trace, and what serves survives whatever is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sam4mllm.adapters.lora import attach
from sam4mllm.errors import ModelError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.protocol import Grounder
from tests.test_mllm import inquiry, picture

torch.set_num_threads(1)

CPU = torch.device("cpu")
LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LANGUAGE = {f"model.language_model.layers.{layer}.{name}" for layer in range(2) for name in LINEAR}
MERGERS = {
    "qwen2_vl": {"model.visual.merger.mlp.0", "model.visual.merger.mlp.2"},
    "qwen2_5_vl": {"model.visual.merger.mlp.0", "model.visual.merger.mlp.2"},
    "qwen3_vl": {
        f"model.visual.{merger}.linear_fc{layer}"
        for merger in ("merger", "deepstack_merger_list.0", "deepstack_merger_list.1")
        for layer in (1, 2)
    },
}
QUESTION = inquiry("the left cup", [[5, 5, 60, 80]], 0, 6)
IMAGE = picture(1)


def load(folder: Path) -> Checkpoint:
    return load_checkpoint(str(folder), CPU)


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load(tiny_checkpoint)


def ask(grounder: Grounder) -> NDArray[np.float64]:
    """A few probabilities, which every layer has a part in."""
    [answer] = grounder.ask(grounder.open(IMAGE), [QUESTION])
    return answer.inside


# -- a fresh adapter -----------------------------------------------------------------------------------------------------------------------


def test_the_language_model_and_the_mergers_are_adapted_and_nothing_else(checkpoint: Checkpoint) -> None:
    base = {name: weight.clone() for name, weight in checkpoint.model.named_parameters()}
    model = attach(checkpoint, 4, 8, 0.05)
    kind = checkpoint.model.config.model_type
    adapted = {name for name, module in checkpoint.model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == LANGUAGE | MERGERS[kind]
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {f"base_model.model.{name}.lora_{side}.default.weight" for name in adapted for side in "AB"}
    frozen = {name.replace(".base_layer", "") for name, weight in checkpoint.model.named_parameters() if not weight.requires_grad}
    assert frozen == base.keys()


def test_a_fresh_adapter_changes_nothing(checkpoint: Checkpoint) -> None:
    grounder = MllmGrounder(checkpoint)
    before = ask(grounder)
    attach(checkpoint, 4, 8, 0.05).eval()
    np.testing.assert_array_equal(ask(grounder), before)


def test_a_model_without_such_layers(checkpoint: Checkpoint) -> None:
    object.__setattr__(checkpoint, "lora_targets", "no such layer")
    with pytest.raises(ModelError, match="no layers for LoRA"):
        attach(checkpoint, 4, 8, 0.05)
