"""Qwen2.5-VL models of any size with random weights, for measuring time and memory, which do not depend on the weights' values.

A model is created directly on its device. It uses the family's dialect with a small tokenizer. At the published size the vocabulary has its
published size too, so that the embeddings and the head take as much memory as in the real model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.families import FAMILIES
from sam4mllm.prompts.conversation import read_markup
from tests.family_models import KINDS, build_tokenizer

KIND = KINDS["Qwen2.5-VL"]


@dataclass(frozen=True)
class Size:
    """The numbers of a model's config. The image processor scales images to at most ``side_px`` squared pixels; ``spread`` is the standard
    deviation of the random weights.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    sections: tuple[int, int, int]
    vision_depth: int
    vision_hidden: int
    vision_intermediate: int
    vision_heads: int
    window: int
    whole_blocks: tuple[int, ...]
    side_px: int
    spread: float = 0.02


SEVEN_B = Size(3584, 18944, 28, 28, 4, 152_064, (16, 24, 24), 32, 1280, 3420, 16, 112, (7, 15, 23, 31), 3584)
"""The numbers of Qwen2.5-VL-7B, from config.json and preprocessor_config.json of Qwen/Qwen2.5-VL-7B-Instruct."""
TINY = Size(64, 128, 2, 2, 1, 1536, (4, 6, 6), 2, 32, 48, 2, 56, (1,), 112, spread=0.3)
"""A tiny model for tests. The matrices of its language model suit the blocks of bitsandbytes: multiples of 64 inputs and of 32
outputs."""


def make_config(size: Size, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The model's config, with the ids of a tokenizer."""
    ids = tokenizer.get_vocab()
    text = {
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.key_value_heads,
        "vocab_size": max(size.vocabulary, len(ids)),
        "max_position_embeddings": 32_768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": list(size.sections)},
        "tie_word_embeddings": False,
        "initializer_range": size.spread,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    vision = {
        "depth": size.vision_depth,
        "hidden_size": size.vision_hidden,
        "out_hidden_size": size.hidden,
        "intermediate_size": size.vision_intermediate,
        "num_heads": size.vision_heads,
        "patch_size": 14,
        "window_size": size.window,
        "fullatt_block_indexes": list(size.whole_blocks),
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def make_checkpoint(size: Size, device: torch.device, dtype: torch.dtype, seed: int = 7) -> Checkpoint:
    """Return a random model on its device as the checkpoint that ``load_checkpoint`` would return; no file is read or written."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(KIND)
    with torch.device(device):
        make: Any = Qwen2_5_VLForConditionalGeneration
        model = make._from_config(make_config(size, tokenizer), dtype=dtype, attn_implementation="sdpa")
    family = FAMILIES[KIND.model_type]
    return Checkpoint(
        model=model.eval(),
        tokenizer=tokenizer,
        image_processor=make_processor(size),
        dialect=family.dialect,
        markup=read_markup(tokenizer),
        encode=family.encode,
        lora_targets=family.lora_targets,
        source=f"random-{seed}",
        fingerprint=repr((size, seed)),
    )


def make_processor(size: Size) -> Any:
    """The family's image processor."""
    bounds = {"shortest_edge": 56 * 56, "longest_edge": size.side_px**2}
    return Qwen2VLImageProcessor(patch_size=14, temporal_patch_size=2, merge_size=2, size=bounds)


def write_checkpoint(size: Size, folder: Path, seed: int = 7) -> Path:
    """Write the same model, tokenizer and image processor to a folder, in float32, and return the folder."""
    made = make_checkpoint(size, torch.device("cpu"), torch.float32, seed=seed)
    for part in (made.model, made.tokenizer, made.image_processor):
        part.save_pretrained(folder)
    return folder
