"""The families of 2025 and 2026 as tiny random checkpoints: mixtures of experts, linear attention, and templates that can think."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Glm46VImageProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from sam4mllm.prompts.dialects import GLM_V, QWEN3_VL
from tests.conftest import TEXT
from tests.family_base import Kind, Save, chatml

_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_TOKENS = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<think>", "</think>")

THINKING_TEMPLATE = (
    chatml(_IMAGE).removesuffix("{% endif %}")
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}"
)
"""Qwen3.5's shape: an answer that is to be written begins with a thought, an empty one where none is wanted; those gone by have none."""
GLM_TEMPLATE = (
    "[gMASK]<sop>{% for turn in messages %}<|{{ turn['role'] }}|>\n"
    "{% if turn['role'] == 'assistant' %}<think></think>\n{{ turn['content'][0]['text'] }}{% else %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}/nothink{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)
"""GLM-4.5V's shape: nothing ends a turn but the next one's name."""

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LINEAR = {
    "head_dim": 32,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_TOWER = {"depth": 3, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 2}


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        "tie_word_embeddings": False,
    }


def _save_qwen(folder: Path, tokenizer: PreTrainedTokenizerFast, model: Any) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    Qwen2VLImageProcessor(patch_size=16, temporal_patch_size=2, merge_size=2, size=size).save_pretrained(folder)


def _qwen3_vl_moe(folder: Path, tokenizer: PreTrainedTokenizerFast, text: dict[str, Any]) -> None:
    vision = {**_TOWER, "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    layers = {**text, **_EXPERTS, "head_dim": 16, "rope_parameters": TEXT["rope_parameters"]}
    config = Qwen3VLMoeConfig(text_config=layers, vision_config=vision, **_qwen_ids(tokenizer))
    _save_qwen(folder, tokenizer, Qwen3VLMoeForConditionalGeneration(config))


def _qwen3_5(folder: Path, tokenizer: PreTrainedTokenizerFast, text: dict[str, Any]) -> None:
    vision = {**_TOWER, "depth": 2, "patch_size": 16, "num_position_embeddings": 64}
    config = Qwen3_5Config(text_config={**text, **_LINEAR}, vision_config=vision, **_qwen_ids(tokenizer))
    _save_qwen(folder, tokenizer, Qwen3_5ForConditionalGeneration(config))


def _glm(config: Callable[..., Any], model: Callable[[Any], Any], processor: Callable[..., Any], layers: dict[str, Any]) -> Save:
    def save(folder: Path, tokenizer: PreTrainedTokenizerFast, text: dict[str, Any]) -> None:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
        settings = config(
            text_config={**text, "rope_parameters": rope, **layers},
            vision_config={**_TOWER, "depth": 2, "patch_size": 14, "image_size": 56},
            image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
            video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
            tie_word_embeddings=False,
        )
        model(settings).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        processor(size={"shortest_edge": 56 * 56, "longest_edge": 2 * 112 * 112}).save_pretrained(folder)

    return save


_GLM_TOKENS = (
    "[gMASK]", "<sop>", "<|assistant|>", "<|begin_of_image|>", "<|end_of_image|>", "<|video|>",
    "<|begin_of_box|>", "<|end_of_box|>", "<think>", "</think>", "/nothink",
)  # fmt: skip


def _glm_kind(model_type: str, save: Save) -> Kind:
    return Kind(model_type, GLM_V, GLM_TEMPLATE, _GLM_TOKENS, "<|user|>", "<|image|>", save)


def _qwen_kind(model_type: str, template: str, save: Save) -> Kind:
    return Kind(model_type, QWEN3_VL, template, _QWEN_TOKENS, "<|im_end|>", "<|image_pad|>", save)


_GLM_EXPERTS = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    **{"n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 16},
}

LATER = {
    "Qwen3-VL-MoE": _qwen_kind("qwen3_vl_moe", chatml(_IMAGE), _qwen3_vl_moe),
    "Qwen3.5": _qwen_kind("qwen3_5", THINKING_TEMPLATE, _qwen3_5),
    "GLM-4.1V": _glm_kind("glm4v", _glm(Glm4vConfig, Glm4vForConditionalGeneration, Glm4vImageProcessor, {})),
    "GLM-4.6V": _glm_kind("glm46v", _glm(Glm46VConfig, Glm46VForConditionalGeneration, Glm46VImageProcessor, {})),
    "GLM-4.5V": _glm_kind("glm4v_moe", _glm(Glm4vMoeConfig, Glm4vMoeForConditionalGeneration, Glm4vImageProcessor, _GLM_EXPERTS)),
}
