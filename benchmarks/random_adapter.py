"""An adapter with random weights for the demo model, which changes its answers without any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sam4mllm.adapters.lora import attach, save_adapter
from sam4mllm.grounding.families import load_checkpoint

SPREAD = 0.006
"""Standard deviation of the LoRA factor B, which is zero in a new adapter. It is large enough to move boxes and points, and small enough
that the answers still have some."""


def write_random_adapter(folder: Path, seed: int) -> Path:
    """Write a random adapter as a plain PEFT folder, and return the folder."""
    torch.manual_seed(seed)
    model: Any = attach(load_checkpoint("demo", torch.device("cpu")), 64, 128, 0.0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=SPREAD)
    save_adapter(model, folder, "demo")
    return folder
