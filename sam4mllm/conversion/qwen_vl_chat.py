"""Converting Qwen-VL-Chat from its published layout to that of :mod:`sam4mllm.qwen_vl_chat`.

The decoder is Qwen2's under other names; in its MLP, ``w2`` is the gate projection and ``w1`` the up projection. The vision tower's fused
projections hold queries, keys and values head by head, its last projection is stored transposed, and its table of positions is interpolated
to the grid of patches here, so that the converted model need not do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPImageProcessorPil

from sam4mllm.conversion.fields import MOST_LAYERS, Fields, write_generation
from sam4mllm.conversion.qwen_tokenizer import END_OF_TEXT, FILE, IMAGE_BEGINS, TURN_ENDS, build_tokenizer
from sam4mllm.conversion.tensors import Plan, Published, renamed, split_rows
from sam4mllm.errors import ModelError
from sam4mllm.qwen_vl_chat.config import IMAGE_TOKEN, QwenVLChatConfig

TABLE = 256
"""Rows of the tower's table of positions, a square of 16 by 16, whatever the image's size; also the resampler's number of queries where
config.json gives none."""
HEAD = 128
"""Width of each of the resampler's heads."""


def read_sizes(config: Mapping[str, Any], source: str) -> QwenVLChatConfig:
    """Return our configuration for ``config``, the object in a published config.json. ``source`` is the model's name for errors.

    Raises ModelError naming a field that is missing, has no number where it needs one, or does not fit another field.
    """
    text, visual = Fields(config, source), Fields(config.get("visual"), source, "visual.")
    width, heads, inner = text.size("hidden_size"), text.size("num_attention_heads"), text.size("intermediate_size")
    tower, output, patch, side = (visual.size(name) for name in ("width", "output_dim", "patch_size", "image_size"))
    queries = visual.size("n_queries", TABLE)
    text.require("hidden_size", width == heads * text.size("kv_channels"), "num_attention_heads times kv_channels")
    text.require("intermediate_size", inner % 2 == 0, "an even number")
    visual.require("output_dim", output == width and output % HEAD == 0, f"hidden_size, and a multiple of {HEAD}")
    visual.require("width", tower % visual.size("heads") == 0, "a multiple of heads")
    visual.require("image_size", side % patch == 0, "a multiple of patch_size")
    visual.require("n_queries", math.isqrt(queries) ** 2 == queries, "a square number")
    return QwenVLChatConfig(
        text_config={
            "model_type": "qwen2",
            "hidden_size": width,
            "intermediate_size": inner // 2,
            "num_hidden_layers": text.size("num_hidden_layers", most=MOST_LAYERS),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "vocab_size": text.size("vocab_size"),
            "max_position_embeddings": text.size("seq_length"),
            "rms_norm_eps": text.number("layer_norm_epsilon"),
            "rope_parameters": {"rope_type": "default", "rope_theta": text.number("rotary_emb_base")},
            "tie_word_embeddings": False,
        },
        vision_config={
            "hidden_size": tower,
            "intermediate_size": int(tower * visual.number("mlp_ratio")),
            "num_hidden_layers": visual.size("layers", most=MOST_LAYERS),
            "num_attention_heads": visual.size("heads"),
            "patch_size": patch,
            "image_size": side,
            "out_hidden_size": output,
            "resampler_heads": output // HEAD,
            "queries": queries,
        },
        dtype=config.get("torch_dtype", "bfloat16"),
    )


def write_companions(folder: Path, config: Mapping[str, Any], sizes: QwenVLChatConfig, out: Path) -> None:
    """Write everything but the weights into ``out``: configuration, tokenizer, image processor and generation configuration.

    The tokenizer is built from the file FILE in ``folder``. ``sizes`` is what ``read_sizes`` returned; the image token's id and the
    architecture are set in it, too.

    Raises ModelError, before anything is written, if the tokenizer's file is of another model or ``build_tokenizer`` refuses it, or if
    ``visual.image_start_id`` in ``config`` is no whole number from 1 up.
    """
    vision, text = _parts(sizes)
    tokenizer = build_tokenizer(folder / FILE, text.max_position_embeddings)
    first = Fields(config["visual"], str(folder), "visual.").size("image_start_id")
    known = tokenizer.get_vocab()
    begin = known[IMAGE_BEGINS]
    if begin != first or len(tokenizer) > text.vocab_size:
        raise ModelError(
            f"{folder / FILE} is of another model: {IMAGE_BEGINS} is {begin} by it and {first} by config.json, "
            f"of {text.vocab_size} tokens; fetch both from one place"
        )
    sizes.image_token_id = known[IMAGE_TOKEN]
    sizes.architectures = ["QwenVLChatForConditionalGeneration"]
    sizes.save_pretrained(out)
    tokenizer.save_pretrained(out)
    side = {"height": vision.image_size, "width": vision.image_size}
    CLIPImageProcessorPil(size=side, do_center_crop=False).save_pretrained(out)
    write_generation(out, [known[TURN_ENDS], known[END_OF_TEXT]], known[END_OF_TEXT])


def plan_tensors(sizes: QwenVLChatConfig) -> Plan:
    """Return, for every tensor of the published checkpoint, its shape and the tensors that it becomes."""
    vision, text = _parts(sizes)
    width, words = text.hidden_size, text.vocab_size
    plan: dict[str, Published] = {
        "transformer.wte.weight": renamed("model.language_model.embed_tokens.weight", words, width),
        "transformer.ln_f.weight": renamed("model.language_model.norm.weight", width),
        "lm_head.weight": renamed("lm_head.weight", words, width),
    }
    for layer in range(text.num_hidden_layers):
        plan |= _decoder_layer(f"transformer.h.{layer}", f"model.language_model.layers.{layer}", width, text.intermediate_size)
    plan |= _tower(vision)
    for block in range(vision.num_hidden_layers):
        old, new = f"transformer.visual.transformer.resblocks.{block}", f"model.visual.blocks.{block}"
        plan |= _tower_block(old, new, vision.hidden_size, vision.intermediate_size, vision.num_attention_heads)
    return {**plan, **_resampler(vision)}


def _decoder_layer(old: str, new: str, width: int, inner: int) -> Plan:
    attention = [f"{new}.self_attn.{one}_proj" for one in "qkv"]
    return {
        f"{old}.ln_1.weight": renamed(f"{new}.input_layernorm.weight", width),
        f"{old}.ln_2.weight": renamed(f"{new}.post_attention_layernorm.weight", width),
        f"{old}.attn.c_attn.weight": split_rows([f"{name}.weight" for name in attention], 3 * width, width),
        f"{old}.attn.c_attn.bias": split_rows([f"{name}.bias" for name in attention], 3 * width),
        f"{old}.attn.c_proj.weight": renamed(f"{new}.self_attn.o_proj.weight", width, width),
        f"{old}.mlp.w1.weight": renamed(f"{new}.mlp.up_proj.weight", inner, width),
        f"{old}.mlp.w2.weight": renamed(f"{new}.mlp.gate_proj.weight", inner, width),
        f"{old}.mlp.c_proj.weight": renamed(f"{new}.mlp.down_proj.weight", width, inner),
    }


def _tower(vision: Any) -> Plan:
    old, new, width, patch = "transformer.visual", "model.visual", vision.hidden_size, vision.patch_size
    return {
        f"{old}.conv1.weight": renamed(f"{new}.patch_embed.weight", width, 3, patch, patch),
        f"{old}.positional_embedding": Published((TABLE, width), lambda table: {f"{new}.positions": enlarge(table, vision.patches)}),
        **_affine(f"{old}.ln_pre", f"{new}.norm", width),
    }


def _tower_block(old: str, new: str, width: int, inner: int, heads: int) -> Plan:
    return {
        **_affine(f"{old}.ln_1", f"{new}.norm1", width),
        **_affine(f"{old}.ln_2", f"{new}.norm2", width),
        f"{old}.attn.in_proj.weight": Published((3 * width, width), _apart(f"{new}.attn", "weight", heads)),
        f"{old}.attn.in_proj.bias": Published((3 * width,), _apart(f"{new}.attn", "bias", heads)),
        **_affine(f"{old}.attn.out_proj", f"{new}.attn.out_proj", width, width),
        **_affine(f"{old}.mlp.c_fc", f"{new}.mlp.fc1", inner, width),
        **_affine(f"{old}.mlp.c_proj", f"{new}.mlp.fc2", width, inner),
    }


def _resampler(vision: Any) -> Plan:
    old, new, width = "transformer.visual.attn_pool", "model.resampler", vision.out_hidden_size

    def positions(table: Tensor) -> dict[str, Tensor]:
        return {f"{new}.query_positions": table.float(), f"{new}.key_positions": enlarge(table, vision.patches)}

    attention = [f"{new}.attn.{one}_proj" for one in "qkv"]
    return {
        f"{old}.query": renamed(f"{new}.query", vision.queries, width),
        f"{old}.pos_embed": Published((vision.queries, width), positions),
        f"{old}.kv_proj.weight": renamed(f"{new}.kv_proj.weight", width, vision.hidden_size),
        f"{old}.attn.in_proj_weight": split_rows([f"{name}.weight" for name in attention], 3 * width, width),
        f"{old}.attn.in_proj_bias": split_rows([f"{name}.bias" for name in attention], 3 * width),
        **_affine(f"{old}.attn.out_proj", f"{new}.attn.out_proj", width, width),
        **_affine(f"{old}.ln_q", f"{new}.norm_q", width),
        **_affine(f"{old}.ln_kv", f"{new}.norm_kv", width),
        **_affine("transformer.visual.ln_post", f"{new}.norm_post", width),
        "transformer.visual.proj": Published((width, width), lambda weight: {f"{new}.proj.weight": weight.T}),
    }


def _affine(old: str, new: str, *shape: int) -> Plan:
    """Return the plan of a weight of this shape and its bias."""
    return {f"{old}.weight": renamed(f"{new}.weight", *shape), f"{old}.bias": renamed(f"{new}.bias", shape[0])}


def _apart(new: str, kind: str, heads: int) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """Return a function that splits a fused projection, whose rows are ordered by head and then by query, key and value, into three.

    ``new`` is the new name of the attention module. ``kind`` is ``weight`` or ``bias``: which of the projection's tensors is split.
    """

    def make(fused: Tensor) -> dict[str, Tensor]:
        by_head = fused.reshape(heads, 3, -1, *fused.shape[1:])
        return {f"{new}.{one}_proj.{kind}": by_head[:, index].flatten(0, 1) for index, one in enumerate("qkv")}

    return make


def enlarge(table: Tensor, count: int) -> Tensor:
    """Interpolate the positions (rows, width) of a square grid to a square grid of ``count`` positions: bicubic, in float32."""
    side, wanted = math.isqrt(len(table)), math.isqrt(count)
    grid = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, (wanted, wanted), mode="bicubic", align_corners=False)[0].flatten(1).T


def _parts(sizes: QwenVLChatConfig) -> tuple[Any, Any]:
    return sizes.vision_config, sizes.text_config
