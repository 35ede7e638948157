"""Every family as a tiny random checkpoint: the real classes and processors, and a tokenizer with the family's own control tokens.

The tokenizers are trained here on the dialect's own sentences; the chat templates have the shape of the families' own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2VLImageProcessor,
    Qwen3Config,
    Qwen3MoeConfig,
    SiglipVisionConfig,
)
from transformers.models.got_ocr2 import GotOcr2ImageProcessor

from sam4mllm.conversion.qwen_tokenizer import CHAT_TEMPLATE as QWEN_VL_CHAT_TEMPLATE
from sam4mllm.prompts.dialects import INTERNVL, LLAVA, QWEN2_5_VL, QWEN2_VL, QWEN3_VL, QWEN_VL_CHAT, Dialect
from sam4mllm.qwen_vl_chat.config import QwenVLChatConfig
from sam4mllm.qwen_vl_chat.model import QwenVLChatForConditionalGeneration
from tests.conftest import FAMILIES as QWEN
from tests.conftest import TEXT
from tests.family_base import PHRASES, VISION, Kind, Save, build_tokenizer, chatml, make_family
from tests.family_gemma import GEMMA
from tests.family_later import LATER
from tests.family_molmo import MOLMO

__all__ = ["KINDS", "PHRASES", "Kind", "build_tokenizer", "make_family"]

TILE = 28
"""Side of a tile in pixels: four patches of 14 by 14."""
GRID = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]

LLAMA3_TEMPLATE = (
    "<|begin_of_text|>{% for turn in messages %}<|start_header_id|>{{ turn['role'] }}<|end_header_id|>\n\n"
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
VICUNA_TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'].upper() }}: "
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""Nothing ends an answer in it but the next turn's name."""
MISTRAL_TEMPLATE = (
    "{% for turn in messages %}{{ '[INST] ' if turn['role'] == 'user' else ' ' }}"
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ ' [/INST]' if turn['role'] == 'user' else '</s>' }}{% endfor %}"
)


def _qwen(family: str) -> Save:
    def save(folder: Path, tokenizer: PreTrainedTokenizerFast, text: dict[str, Any]) -> None:
        shared = {
            "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
            "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
            "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
            "tie_word_embeddings": False,
        }
        model: Any = QWEN[family](shared, {**text, "rope_parameters": TEXT["rope_parameters"]})
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
        patch = 16 if family == "qwen3_vl" else 14
        Qwen2VLImageProcessor(patch_size=patch, temporal_patch_size=2, merge_size=2, size=size).save_pretrained(folder)

    return save


def _llava_next(backbone: type[LlamaConfig] | type[MistralConfig]) -> Save:
    def save(folder: Path, tokenizer: PreTrainedTokenizerFast, text: dict[str, Any]) -> None:
        config = LlavaNextConfig(  # type: ignore[call-arg]  # an older name of a field is taken, too
            vision_config=CLIPVisionConfig(**VISION, image_size=TILE, patch_size=14, projection_dim=32),
            text_config=backbone(**text),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            image_grid_pinpoints=GRID,
            tie_word_embeddings=False,
        )
        LlavaNextForConditionalGeneration(config).save_pretrained(folder)
        images = LlavaNextImageProcessor(size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=GRID)
        LlavaNextProcessor(
            images,
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=tokenizer.chat_template,
        ).save_pretrained(folder)

    return save


def _onevision(folder: Path, tokenizer: PreTrainedTokenizerFast, text: dict[str, Any]) -> None:
    config = LlavaOnevisionConfig(  # type: ignore[call-arg]
        vision_config=SiglipVisionConfig(**VISION, image_size=TILE, patch_size=14, vision_use_head=False),
        text_config=Qwen2Config(**text),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRID,
        tie_word_embeddings=False,
    )
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size={"height": TILE, "width": TILE}, image_grid_pinpoints=GRID),
        tokenizer,
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)


def _internvl(backbone: type[Qwen2Config] | type[Qwen3Config] | type[Qwen3MoeConfig], **layers: int) -> Save:
    def save(folder: Path, tokenizer: PreTrainedTokenizerFast, text: dict[str, Any]) -> None:
        config = InternVLConfig(
            vision_config=InternVLVisionConfig(**VISION, image_size=[TILE, TILE], patch_size=[7, 7]),
            text_config=backbone(**text, **layers),
            image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
            image_seq_length=4,
            tie_word_embeddings=False,
        )
        InternVLForConditionalGeneration(config).save_pretrained(folder)
        InternVLProcessor(
            GotOcr2ImageProcessor(size={"height": TILE, "width": TILE}, min_patches=1, max_patches=4),
            tokenizer,
            InternVLVideoProcessor(),
            image_seq_length=4,
            chat_template=tokenizer.chat_template,
        ).save_pretrained(folder)

    return save


def _qwen_vl_chat(folder: Path, tokenizer: PreTrainedTokenizerFast, text: dict[str, Any]) -> None:
    vision = {"image_size": 4 * TILE, "out_hidden_size": text["hidden_size"], "resampler_heads": 2, "queries": 9, "initializer_range": 0.3}
    config = QwenVLChatConfig(
        vision_config={**VISION, **vision},
        text_config={"model_type": "qwen2", **text, "num_key_value_heads": text["num_attention_heads"]},
        image_token_id=tokenizer.convert_tokens_to_ids("<imgpad>"),
    )
    QwenVLChatForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"height": 4 * TILE, "width": 4 * TILE}, do_center_crop=False).save_pretrained(folder)


_QWEN_TOKENS = (
    "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
)  # fmt: skip
_QWEN_TEMPLATE = chatml("<|vision_start|><|image_pad|><|vision_end|>")


def _qwen_kind(model_type: str, dialect: Dialect) -> Kind:
    return Kind(model_type, dialect, _QWEN_TEMPLATE, _QWEN_TOKENS, "<|im_end|>", "<|image_pad|>", _qwen(model_type))


def _internvl_kind(save: Save, text_type: str = "") -> Kind:
    return Kind(
        "internvl",
        INTERNVL,
        chatml("<IMG_CONTEXT>\n"),
        ("<|im_start|>", "<img>", "</img>", "<video>", "<ref>", "</ref>", "<box>", "</box>"),
        "<|im_end|>",
        "<IMG_CONTEXT>",
        save,
        extra={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        text_type=text_type,
    )


KINDS = {
    "Qwen2-VL": _qwen_kind("qwen2_vl", QWEN2_VL),
    "Qwen2.5-VL": _qwen_kind("qwen2_5_vl", QWEN2_5_VL),
    "Qwen3-VL": _qwen_kind("qwen3_vl", QWEN3_VL),
    "LLaVA-NeXT, Llama 3": Kind(
        "llava_next",
        LLAVA,
        LLAMA3_TEMPLATE,
        ("<|start_header_id|>", "<|end_header_id|>"),
        "<|eot_id|>",
        "<image>",
        _llava_next(LlamaConfig),
        first="<|begin_of_text|>",
    ),
    "LLaVA-NeXT, Vicuna": Kind(
        "llava_next", LLAVA, VICUNA_TEMPLATE, (), "</s>", "<image>", _llava_next(LlamaConfig), first="<s>", sentencepiece=True
    ),
    "LLaVA-NeXT, Mistral": Kind(
        "llava_next", LLAVA, MISTRAL_TEMPLATE, (), "</s>", "<image>", _llava_next(MistralConfig), first="<s>", sentencepiece=True
    ),
    "LLaVA-OneVision": Kind(
        "llava_onevision", LLAVA, chatml("<image>\n", " "), ("<|im_start|>", "<video>"), "<|im_end|>", "<image>", _onevision
    ),
    "InternVL": _internvl_kind(_internvl(Qwen2Config)),
    "InternVL 3.5, Qwen3": _internvl_kind(_internvl(Qwen3Config, head_dim=16)),
    "InternVL 3.5, Qwen3-MoE": _internvl_kind(
        _internvl(Qwen3MoeConfig, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16), "qwen3_moe"
    ),
    "Qwen-VL-Chat": Kind(
        "qwen_vl_chat",
        QWEN_VL_CHAT,
        QWEN_VL_CHAT_TEMPLATE,
        ("<|im_start|>", "<img>", "</img>", "<ref>", "</ref>", "<box>", "</box>"),
        "<|im_end|>",
        "<imgpad>",
        _qwen_vl_chat,
    ),
    **LATER,
    **MOLMO,
    **GEMMA,
}
