"""Tiny checkpoints of two families that can spell a thought: one whose template opens it, with tokens for its tags, one with neither."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from sam4mllm.demo.tokenizer import THOUGHT, THOUGHT_END
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


def without_tags(checkpoint: Path, folder: Path) -> Path:
    """A copy of a checkpoint of the demo's kind in ``folder``; its tokenizer cannot spell the tags of a thought."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    told["added_tokens"] = [token for token in told["added_tokens"] if token["content"] not in (THOUGHT, THOUGHT_END)]
    told["model"]["vocab"] = {token: index for token, index in told["model"]["vocab"].items() if token not in (THOUGHT, THOUGHT_END)}
    path.write_text(json.dumps(told))
    return folder
