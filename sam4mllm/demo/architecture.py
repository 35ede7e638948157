"""The architecture of the demo's MLLM: transformers' Qwen3-VL class with small sizes, which we chose so that it trains on two CPU cores."""

from __future__ import annotations

from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

PATCH = 16
MERGE = 2
MAX_PIXELS = 288 * 288
MIN_PIXELS = 224 * 224
HIDDEN = 192
HEADS = 6
LANGUAGE_LAYERS = 6
POSITIONS_PER_SIDE = 18


def mllm_config(vocabulary: int, image_token: int, vision_start: int, vision_end: int, end: int, pad: int) -> Qwen3VLConfig:
    """Return the configuration of the demo MLLM, which has 5 M parameters.

    ``vocabulary`` is the number of tokens; the other arguments are ids of tokens.

    It is a Qwen3-VL and not a Qwen2-VL because the vision tower of Qwen3-VL has learned absolute positions, which are resampled to any
    grid. The tower of Qwen2-VL has relative positions only: trained from scratch, its boxes got no better than a blind guess in all the
    time that we watched.
    """
    return Qwen3VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": LANGUAGE_LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "head_dim": HIDDEN // HEADS,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
            "bos_token_id": None,
            "eos_token_id": end,
            "pad_token_id": pad,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 6,
            "hidden_size": HIDDEN,
            "intermediate_size": 3 * HIDDEN,
            "num_heads": HEADS,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": POSITIONS_PER_SIDE**2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 1,
            "deepstack_visual_indexes": [],
        },
        image_token_id=image_token,
        video_token_id=pad,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
        tie_word_embeddings=True,
    )


def build_mllm(config: Qwen3VLConfig) -> Qwen3VLForConditionalGeneration:
    """The demo MLLM with random weights."""
    return Qwen3VLForConditionalGeneration(config)
