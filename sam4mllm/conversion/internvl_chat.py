"""Converting InternVL (2, 2.5, 3 and 3.5) from its published layout to that of transformers.

The names in both layouts, and the order of queries, keys and values, are taken from transformers' own conversion of InternVL. Text models
of Qwen and Llama have the same names in both; InternLM2, the text model of some smaller versions, cannot be converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
)
from transformers.models.got_ocr2 import GotOcr2ImageProcessor

from sam4mllm.conversion.fields import MOST_LAYERS, Fields, write_generation
from sam4mllm.conversion.tensors import Plan, Published, renamed, split_rows
from sam4mllm.errors import ModelError

TEXT_MODELS = ("qwen2", "qwen3", "llama")
_KEPT = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "attention_bias"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "bos_token_id", "eos_token_id"),
)
"""The fields of a text model's published configuration that are kept, because they shape the model; the rest concern training or early
versions of transformers.
"""
_IMAGE_TOKENS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
_TURN_BEGINS, _TURN_ENDS = "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML without a system turn, as in transformers' conversions; the processor writes the tags around the image."""


def read_sizes(config: Mapping[str, Any], source: str) -> InternVLConfig:
    """Return transformers' configuration for a published config.json. Raises ModelError naming a field that cannot be converted."""
    whole = Fields(config, source)
    text, vision = Fields(config.get("llm_config"), source, "llm_config."), Fields(config.get("vision_config"), source, "vision_config.")
    published = config["llm_config"]
    text.require("model_type", published.get("model_type") in TEXT_MODELS, " or ".join(TEXT_MODELS))
    whole.require("ps_version", config.get("ps_version") == "v2", "'v2', the order in which transformers shuffles pixels")
    whole.require("downsample_ratio", config.get("downsample_ratio") == 0.5, "0.5")
    side, patch = vision.size("image_size"), vision.size("patch_size")
    tied = bool(config.get("tie_word_embeddings") or published.get("tie_word_embeddings"))
    text.size("num_hidden_layers", most=MOST_LAYERS)
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        text.size(name)
    kept = {name: published[name] for name in _KEPT if published.get(name) is not None}
    return InternVLConfig(
        text_config=AutoConfig.for_model(published["model_type"], **kept, tie_word_embeddings=tied).to_dict(),
        vision_config=InternVLVisionConfig(
            hidden_size=vision.size("hidden_size"),
            intermediate_size=vision.size("intermediate_size"),
            num_hidden_layers=vision.size("num_hidden_layers", most=MOST_LAYERS),
            num_attention_heads=vision.size("num_attention_heads"),
            image_size=[side, side],
            patch_size=[patch, patch],
            attention_bias=bool(config["vision_config"].get("qkv_bias")),
            use_qk_norm=bool(config["vision_config"].get("qk_normalization")),
            norm_type=config["vision_config"].get("norm_type", "layer_norm"),
            layer_norm_eps=vision.number("layer_norm_eps", 1e-6),
        ).to_dict(),
        vision_feature_layer=config.get("select_layer", -1),
        image_seq_length=(side // patch // 2) ** 2,
        tie_word_embeddings=tied,
        dtype=config.get("torch_dtype", "bfloat16"),
    )


def write_companions(folder: Path, config: Mapping[str, Any], sizes: InternVLConfig, out: Path) -> None:
    """Write everything but the weights: configuration, processor with tokenizer, and generation configuration.

    ``sizes`` gets the image token's number and the name of the architecture. Raises ModelError if the tokenizer is of another model, or the
    configuration's numbers of patches are wrong; and one of FAULTS if the tokenizer cannot be read.
    """
    extra = {**_IMAGE_TOKENS, "video_token": "<video>"}  # the processor requires it, but nothing here uses it
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, extra_special_tokens=extra)
    known = tokenizer.get_vocab()
    missing = [token for token in (*_IMAGE_TOKENS.values(), _TURN_BEGINS, _TURN_ENDS) if token not in known]
    vocabulary = sizes.get_text_config().vocab_size
    if missing or known[_IMAGE_TOKENS["context_image_token"]] >= vocabulary:
        raise ModelError(f"{folder}: its tokenizer is of another model, without {missing[0] if missing else 'room'}; fetch it again")
    sizes.image_token_id = known[_IMAGE_TOKENS["context_image_token"]]
    sizes.architectures = ["InternVLForConditionalGeneration"]
    sizes.save_pretrained(out)
    vision: Any = sizes.vision_config
    images = GotOcr2ImageProcessor(
        size={"height": vision.image_size[0], "width": vision.image_size[1]},
        crop_to_patches=True,
        min_patches=Fields(config, str(folder)).size("min_dynamic_patch", 1),
        max_patches=Fields(config, str(folder)).size("max_dynamic_patch", 12),
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    processor = InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(), image_seq_length=sizes.image_seq_length, chat_template=CHAT_TEMPLATE
    )
    processor.save_pretrained(out)
    ends = list(dict.fromkeys([known[_TURN_ENDS], *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]))
    write_generation(out, ends, tokenizer.pad_token_id)


def plan_tensors(sizes: InternVLConfig) -> Plan:
    """Return, for every tensor of the published checkpoint, its shape and the tensors that it becomes."""
    vision: Any = sizes.vision_config
    text: Any = sizes.text_config
    new = "model.language_model"
    with torch.device("meta"):
        language = AutoModel.from_config(text).state_dict()  # type: ignore[no-untyped-call]
    plan = {f"language_model.model.{name}": renamed(f"{new}.{name}", *tensor.shape) for name, tensor in language.items()}
    head = renamed("lm_head.weight", text.vocab_size, text.hidden_size)
    plan["language_model.lm_head.weight"] = Published(head.shape, head.make, optional=sizes.tie_word_embeddings)
    plan |= _embeddings(vision)
    for layer in range(vision.num_hidden_layers):
        plan |= _vision_layer(f"vision_model.encoder.layers.{layer}", f"model.vision_tower.encoder.layer.{layer}", vision)
    return {**plan, **_projector(4 * vision.hidden_size, text.hidden_size)}


def _embeddings(vision: Any) -> Plan:
    old, new, width = "vision_model.embeddings", "model.vision_tower.embeddings", vision.hidden_size
    (height, _), (patch, _) = vision.image_size, vision.patch_size
    return {
        f"{old}.class_embedding": renamed(f"{new}.cls_token", 1, 1, width),
        f"{old}.position_embedding": renamed(f"{new}.position_embeddings", 1, (height // patch) ** 2 + 1, width),
        f"{old}.patch_embedding.weight": renamed(f"{new}.patch_embeddings.projection.weight", width, 3, patch, patch),
        f"{old}.patch_embedding.bias": renamed(f"{new}.patch_embeddings.projection.bias", width),
    }


def _vision_layer(old: str, new: str, vision: Any) -> Plan:
    width, inner = vision.hidden_size, vision.intermediate_size
    attention = [f"{new}.attention.{one}_proj" for one in "qkv"]
    plan: dict[str, Published] = {
        f"{old}.attn.qkv.weight": split_rows([f"{name}.weight" for name in attention], 3 * width, width),
        f"{old}.attn.proj.weight": renamed(f"{new}.attention.projection_layer.weight", width, width),
        f"{old}.attn.proj.bias": renamed(f"{new}.attention.projection_layer.bias", width),
        f"{old}.mlp.fc1.weight": renamed(f"{new}.mlp.fc1.weight", inner, width),
        f"{old}.mlp.fc1.bias": renamed(f"{new}.mlp.fc1.bias", inner),
        f"{old}.mlp.fc2.weight": renamed(f"{new}.mlp.fc2.weight", width, inner),
        f"{old}.mlp.fc2.bias": renamed(f"{new}.mlp.fc2.bias", width),
        f"{old}.ls1": renamed(f"{new}.lambda_1", width),
        f"{old}.ls2": renamed(f"{new}.lambda_2", width),
    }
    for one, other in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
        plan[f"{old}.{one}.weight"] = renamed(f"{new}.{other}.weight", width)
        if vision.norm_type == "layer_norm":
            plan[f"{old}.{one}.bias"] = renamed(f"{new}.{other}.bias", width)
    if vision.attention_bias:
        plan[f"{old}.attn.qkv.bias"] = split_rows([f"{name}.bias" for name in attention], 3 * width)
    if vision.use_qk_norm:
        plan |= {f"{old}.attn.{one}_norm.weight": renamed(f"{new}.attention.{one}_norm.weight", width) for one in "qk"}
    return plan


def _projector(width: int, hidden: int) -> Plan:
    new = "model.multi_modal_projector"
    plan: dict[str, Published] = {}
    for old, name, shape in (
        ("mlp1.0", "layer_norm", (width,)),
        ("mlp1.1", "linear_1", (hidden, width)),
        ("mlp1.3", "linear_2", (hidden, hidden)),
    ):
        plan[f"{old}.weight"] = renamed(f"{new}.{name}.weight", *shape)
        plan[f"{old}.bias"] = renamed(f"{new}.{name}.bias", shape[0])
    return plan
