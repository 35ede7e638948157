"""An adapter of random weights for the demo model: it draws otherwise, and costs no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sam4mllm.adapters.lora import attach, save_adapter
from sam4mllm.grounding.families import load_checkpoint

SPREAD = 0.006
"""Standard deviation of the factor that begins as zero: boxes and points move, and still are some."""


def write_random_adapter(folder: Path, seed: int) -> Path:
    """A plain PEFT folder."""
    torch.manual_seed(seed)
    model: Any = attach(load_checkpoint("demo", torch.device("cpu")), 64, 128, 0.0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=SPREAD)
    save_adapter(model, folder, "demo")
    return folder
