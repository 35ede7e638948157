"""Gemma 4 as tiny random checkpoints: layers with a window, shared keys and values, embeddings of each layer, images that see ahead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma4AudioConfig,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    PreTrainedTokenizerFast,
)

from sam4mllm.prompts.dialects import GEMMA_4
from tests.family_base import VISION, Kind, Save, Template

SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW = 24
"""Tokens; an image has 60 or so, and a conversation more."""


def template(thought: str) -> Template:
    """Gemma 4's shape; ``thought`` stands before an answer that is to be without one."""
    return (
        "{{ bos_token }}{% for turn in messages %}{{ '<|turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\n' }}"
        "{% for part in turn['content'] %}"
        "{{ '\n\n<|image|>\n\n' if part['type'] == 'image' else part['text'] | trim }}"
        "{% endfor %}{{ '<turn|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|turn>model\n' }}"
        "{% if not enable_thinking | default(false) %}{{ '" + thought + "' }}{% endif %}{% endif %}"
    )


_ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 100000.0},
}
_SHARED = {
    "head_dim": 16,
    "global_head_dim": 24,
    "rope_parameters": _ROPE,
    "sliding_window": WINDOW,
    "final_logit_softcapping": 10.0,
    "initializer_range": 0.05,
}
"""What layers add is normed, so the size of their weights says nothing, but small ones are what LoRA moves furthest in a few steps."""
HEAD = 10
"""How much larger the head's weights are, so that its logits differ nevertheless."""
SMALL = {
    "num_hidden_layers": 4,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 8,
}
"""E2B and E4B: the last layers take the keys and values of those before them."""
LARGE = {
    "layer_types": [SLIDING, FULL],
    "num_global_key_value_heads": 2,
    "attention_k_eq_v": True,
    "use_bidirectional_attention": "vision",
    "hidden_size_per_layer_input": 0,
}
"""31B: layers without a window take their keys for values, and image tokens see each other."""
EXPERTS = {**LARGE, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
"""26B-A4B: experts beside each layer's MLP."""
_VISION = {**VISION, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 128}
_AUDIO = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "subsampling_conv_channels": [4, 4], "output_proj_dims": 24}


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    tokens = {"boi": "<|image>", "image": "<|image|>", "eoi": "<image|>", "audio": "<|audio|>", "video": "<|video|>"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    return {**ids, "tie_word_embeddings": False}


def _save(folder: Path, tokenizer: PreTrainedTokenizerFast, model: Any, images: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(HEAD)
    for part in (model, tokenizer, images):
        part.save_pretrained(folder)


def _gemma(layers: dict[str, Any], audio: bool = False) -> Save:
    def save(folder: Path, tokenizer: PreTrainedTokenizerFast, text: dict[str, Any]) -> None:
        config = Gemma4Config(
            text_config={**text, "vocab_size_per_layer_input": text["vocab_size"], **_SHARED, **layers},
            vision_config=_VISION,
            audio_config=Gemma4AudioConfig(**_AUDIO) if audio else None,
            **_ids(tokenizer),
        )
        _save(folder, tokenizer, Gemma4ForConditionalGeneration(config), Gemma4ImageProcessor(max_soft_tokens=70))

    return save


_TOKENS = (
    "<|turn>", "<|image>", "<image|>", "<|audio|>", "<|video|>", "<|channel>", "<channel|>", "<|think|>",
)  # fmt: skip
EMPTY_THOUGHT = "<|channel>thought\n<channel|>"


def _kind(save: Save, thought: str = EMPTY_THOUGHT, text_type: str = "") -> Kind:
    shape = template(thought)
    return Kind("gemma4", GEMMA_4, shape, _TOKENS, "<turn|>", "<|image|>", save, first="<bos>", sentencepiece=True, text_type=text_type)


GEMMA = {
    "Gemma 4, E2B and E4B": _kind(_gemma(SMALL, audio=True), thought="", text_type="gemma4, shared"),
    "Gemma 4, 31B": _kind(_gemma(LARGE)),
    "Gemma 4, 26B-A4B": _kind(_gemma(EXPERTS)),
}
