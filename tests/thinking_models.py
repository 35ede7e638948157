"""Tiny checkpoints of two families that can spell a thought: one whose template opens it, with tokens for its tags, one with neither."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from tests.family_models import KINDS, make_family

OPENED, PLAIN = "Qwen3-VL", "LLaVA-NeXT, Vicuna"
_ANSWERS = "<|im_start|>assistant\n{% endif %}"


def thinking_grounder(name: str, folder: Path, thought_tokens: int) -> MllmGrounder:
    """One of OPENED and PLAIN, with random weights, which end no thought by themselves."""
    kind = KINDS[name]
    if name == OPENED:
        assert _ANSWERS in kind.template
        template = kind.template.replace(_ANSWERS, _ANSWERS.replace("{% endif %}", "<think>\n{% endif %}"))
        kind = replace(kind, template=template, special=(*kind.special, "<think>", "</think>"))
    make_family(kind, folder)
    return MllmGrounder(load_checkpoint(str(folder), torch.device("cpu")), max_new_tokens=6, thought_tokens=thought_tokens)
