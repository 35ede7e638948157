"""An adapter's files and where it comes from, made without torch: a process that only writes them starts at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from safetensors.numpy import save

from sam4mllm.adapters.files import CONFIG, WEIGHTS

SHA = "ab" * 32
LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": True}


class Origin(TypedDict):
    slug: str
    identity: str
    base_model: str
    base_sha256: str
    template_sha256: str
    data_sha256: str
    metrics: dict[str, float]
    parent: str | None


ORIGIN: Origin = {
    "slug": "demo",
    "identity": "vit_h pqpp",
    "base_model": "demo",
    "base_sha256": SHA,
    "template_sha256": "cd" * 32,
    "data_sha256": "ef" * 32,
    "metrics": {"gIoU": 0.5},
    "parent": None,
}


def weights(value: float = 0.5) -> bytes:
    return save({"layer.lora_A.weight": np.full((4, 8), value, np.float32), "layer.lora_B.weight": np.zeros((8, 4), np.float32)})


def adapter(value: float = 0.5, config: dict[str, object] | None = None) -> dict[str, Path | bytes]:
    return {CONFIG: json.dumps(LORA | (config or {})).encode(), WEIGHTS: weights(value)}
