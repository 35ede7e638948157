"""An adapter's files and where it comes from, made without torch: a process that only writes them starts at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from safetensors.numpy import save

from sam4mllm.adapters.fields import CONFIG, WEIGHTS
from sam4mllm.adapters.manifest import Papers

SHA = "ab" * 32
LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": True}


class Origin(TypedDict):
    papers: Papers
    slug: str
    identity: str
    parent: str | None


PAPERS = Papers(
    base_model="demo",
    base_sha256=SHA,
    template_sha256="cd" * 32,
    data_sha256="ef" * 32,
    metrics={"gIoU": 0.5},
    files={CONFIG: SHA, WEIGHTS: SHA},
)
ORIGIN: Origin = {"papers": PAPERS, "slug": "demo", "identity": "vit_h pqpp", "parent": None}


def weights(value: float = 0.5) -> bytes:
    return save({"layer.lora_A.weight": np.full((4, 8), value, np.float32), "layer.lora_B.weight": np.zeros((8, 4), np.float32)})


def adapter(value: float = 0.5, config: dict[str, object] | None = None) -> dict[str, Path | bytes]:
    return {CONFIG: json.dumps(LORA | (config or {})).encode(), WEIGHTS: weights(value)}
