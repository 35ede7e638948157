"""Check whether a vLLM server applies all parts of an adapter.

Unless vLLM was started with --enable-tower-connector-lora, it drops the part of an adapter that changes the merger between the vision tower
and the language model, but reports that the adapter was loaded. A client cannot see whether the flag is set. So the check loads an adapter
that changes only the merger, with random weights: the model must answer differently with it.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from sam4mllm.adapters.fields import WEIGHTS
from sam4mllm.errors import ModelError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.vllm.client import VllmClient
from sam4mllm.vllm.grounder import VllmGrounder

NAME = "sam4mllm-probe"
RANK = 8
CHANGED = 1e-3
"""Least change of a log-probability that counts as an effect of the probe adapter; rounding alone changes one by 1e-5."""


def check_merger(client: VllmClient, base: VllmGrounder, home: Path) -> None:
    """Check the server with a probe adapter, which is written to the folder ``engine-probe`` in ``home`` and stays there. The server
    unloads it after the check.

    Nothing is checked if adapters of this model change no layer outside the language model. Raises ModelError if the server takes no
    adapters, does not see ``home``, or drops the merger's part of an adapter; EngineAwayError if it does not answer; OSError if the folder
    cannot be written.
    """
    folder = write_probe(base.checkpoint, home / "engine-probe")
    if folder is None:
        return
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    client.unload(NAME)
    client.load(NAME, folder.absolute())
    try:
        before, after = (one.beginning(noise, "the object") for one in (base, base.called(NAME)))
    finally:
        client.unload(NAME)
    if abs(before - after) < CHANGED:
        raise ModelError(
            f"the engine at {client.url} drops what adapters change in the vision tower: start it with --enable-tower-connector-lora"
        )


def write_probe(checkpoint: Checkpoint, folder: Path) -> Path | None:
    """Write to ``folder`` an adapter with random weights for the layers between vision tower and language model. Return the folder; None if
    the model's adapters change no such layers.
    """
    from peft import LoraConfig  # noqa: PLC0415 – it takes seconds, and is asked for once

    layers = {
        name: module
        for name, module in checkpoint.model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(checkpoint.lora_targets, name) and ".language_model." not in name
    }
    if not layers:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    chance = torch.Generator().manual_seed(0)
    weights = {}
    for name, layer in layers.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, layer.in_features, generator=chance) / layer.in_features**0.5
        weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(layer.out_features, RANK, generator=chance)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    LoraConfig(r=RANK, lora_alpha=RANK, target_modules=sorted(layers)).save_pretrained(str(folder))
    return folder
