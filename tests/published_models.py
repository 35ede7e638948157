"""Tiny random checkpoints in the layouts of their first publication: names, shapes, config.json and tokenizer files as they were."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

State = dict[str, Tensor]
WIDTH, LAYERS, INNER, HEADS = 256, 2, 48, 2
TOWER, TOWER_INNER, TOWER_HEADS, TOWER_LAYERS = 32, 48, 2, 2
CONTROL = 217
"""Tokens of Qwen-VL-Chat after those of its file."""


@dataclass(frozen=True)
class Picture:
    """The sides of Qwen-VL-Chat's images in pixels, and how many embeddings it makes of one."""

    side: int = 56
    queries: int = 9


SMALL, PUBLISHED = Picture(), Picture(448, 256)


@cache
def ranks() -> dict[bytes, int]:
    """A tiktoken vocabulary: all bytes, then merges in their order; a token that two pairs make, and one that none makes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    corpus = ["Generate the bounding box of the left cup", "Yes", "No", "inside", "outside", "none", "aaaa abab", "世界 naïve café"] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    tokens = [bytes(bytes_of[letter] for letter in token) for token, _ in by_id]
    return {token: rank for rank, token in enumerate([*tokens, b"jq", b"qk", b"jqk", b"zxw"])}


def qwen_config(picture: Picture = SMALL) -> dict[str, Any]:
    """As published, with code of its own beside it."""
    return {
        "model_type": "qwen",
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "kv_channels": WIDTH // HEADS,
        "intermediate_size": 2 * INNER,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "seq_length": 2048,
        "max_position_embeddings": 8192,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "no_bias": True,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": len(ranks()) + CONTROL + 3,
        "visual": {
            "width": TOWER,
            "layers": TOWER_LAYERS,
            "heads": TOWER_HEADS,
            "mlp_ratio": TOWER_INNER / TOWER + 0.001,
            "patch_size": 14,
            "image_size": picture.side,
            "output_dim": WIDTH,
            "n_queries": picture.queries,
            "image_start_id": len(ranks()) + 214,
        },
    }


def qwen_state(config: Mapping[str, Any], seed: int = 3) -> State:
    """Random weights, large enough that every part shows in the logits."""
    words, queries = config["vocab_size"], config["visual"]["n_queries"]
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (words, WIDTH),
        "transformer.ln_f.weight": (WIDTH,),
        "lm_head.weight": (words, WIDTH),
        "transformer.visual.conv1.weight": (TOWER, 3, 14, 14),
        "transformer.visual.positional_embedding": (256, TOWER),
        "transformer.visual.proj": (WIDTH, WIDTH),
        "transformer.visual.attn_pool.query": (queries, WIDTH),
        "transformer.visual.attn_pool.pos_embed": (queries, WIDTH),
        "transformer.visual.attn_pool.kv_proj.weight": (WIDTH, TOWER),
        "transformer.visual.attn_pool.attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "transformer.visual.attn_pool.attn.in_proj_bias": (3 * WIDTH,),
    }
    for layer in range(LAYERS):
        name = f"transformer.h.{layer}"
        shapes |= {f"{name}.ln_1.weight": (WIDTH,), f"{name}.ln_2.weight": (WIDTH,)}
        shapes |= {f"{name}.attn.c_attn.weight": (3 * WIDTH, WIDTH), f"{name}.attn.c_attn.bias": (3 * WIDTH,)}
        shapes |= {f"{name}.attn.c_proj.weight": (WIDTH, WIDTH), f"{name}.mlp.c_proj.weight": (WIDTH, INNER)}
        shapes |= {f"{name}.mlp.w1.weight": (INNER, WIDTH), f"{name}.mlp.w2.weight": (INNER, WIDTH)}
    affine: dict[str, tuple[int, ...]] = {
        "transformer.visual.ln_pre": (TOWER,),
        "transformer.visual.ln_post": (WIDTH,),
        "transformer.visual.attn_pool.ln_q": (WIDTH,),
        "transformer.visual.attn_pool.ln_kv": (WIDTH,),
        "transformer.visual.attn_pool.attn.out_proj": (WIDTH, WIDTH),
    }
    for block in range(TOWER_LAYERS):
        name = f"transformer.visual.transformer.resblocks.{block}"
        affine |= {f"{name}.ln_1": (TOWER,), f"{name}.ln_2": (TOWER,)}
        affine |= {f"{name}.attn.in_proj": (3 * TOWER, TOWER), f"{name}.attn.out_proj": (TOWER, TOWER)}
        affine |= {f"{name}.mlp.c_fc": (TOWER_INNER, TOWER), f"{name}.mlp.c_proj": (TOWER, TOWER_INNER)}
    for name, shape in affine.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, shape, generator) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Matrices that about keep the size of what they multiply, but for those of attention, which sharpen it; vectors about one half."""
    if len(shape) == 1:
        return 0.5 + 0.5 * torch.randn(shape, generator=generator)
    if name.endswith((".query", ".pos_embed", "positional_embedding")):
        return torch.randn(shape, generator=generator)
    strength = 3 if "in_proj" in name else 2 if "c_attn" in name else 1.2
    return strength * math.prod(shape[1:]) ** -0.5 * torch.randn(shape, generator=generator)


def write_qwen_vl_chat(folder: Path, picture: Picture = SMALL, pickled: bool = True, shards: int = 2) -> State:
    """The folder as it is fetched; the weights, too."""
    config = qwen_config(picture)
    state = qwen_state(config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_qwen.py").write_text(f"open({str(folder / 'executed')!r}, 'w')")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_p": 0.5, "chat_format": "chatml"}))
    lines = [base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks().items()]
    (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    write_weights(folder, state, pickled, shards)
    return state


def write_weights(folder: Path, state: State, pickled: bool, shards: int) -> None:
    """Weights in so many files, with an index if there are several."""
    stem, ending = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    names = sorted(state)
    held = {f"{stem}-{number + 1:05}-of-{shards:05}.{ending}": names[number::shards] for number in range(shards)}
    if shards == 1:
        held = {f"{stem}.{ending}": names}
    for file, some in held.items():
        tensors = {name: state[name].contiguous() for name in some}
        if pickled:
            torch.save(tensors, folder / file)
        else:
            save_file(tensors, folder / file, {"format": "pt"})
    if shards > 1:
        index = {"metadata": {}, "weight_map": {name: file for file, some in held.items() for name in some}}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


PUBLISHED_FILES = {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}
"""What Qwen-VL-Chat's folder holds once it is converted."""


# -- InternVL ------------------------------------------------------------------------------------------------------------------------------

_INTERNVL = (
    ("model.vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding"),
    ("model.vision_tower.embeddings.position_embeddings", "vision_model.embeddings.position_embedding"),
    ("model.vision_tower.embeddings.patch_embeddings.projection.", "vision_model.embeddings.patch_embedding."),
    ("model.vision_tower.encoder.layer.", "vision_model.encoder.layers."),
    (".attention.projection_layer.", ".attn.proj."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".lambda_", ".ls"),
    ("model.multi_modal_projector.layer_norm.", "mlp1.0."),
    ("model.multi_modal_projector.linear_1.", "mlp1.1."),
    ("model.multi_modal_projector.linear_2.", "mlp1.3."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
"""Names of transformers, and those of InternVL's repository."""


def internvl_state(native: Mapping[str, Tensor]) -> State:
    """The tensors of a model of transformers by their published names."""
    state: State = {}
    for name, tensor in native.items():
        old = name
        for one, other in _INTERNVL:
            old = old.replace(one, other)
        if ".attention.q_proj." in old:
            parts = [native[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            state[old.replace(".attention.q_proj.", ".attn.qkv.")] = torch.cat(parts)
        elif ".attention.k_proj." not in old and ".attention.v_proj." not in old:
            state[old] = tensor
    return state


def write_internvl_chat(folder: Path, native: Path, model: torch.nn.Module, pickled: bool) -> Path:
    """A folder of transformers in the published layout, with the weights of the model that was loaded from it."""
    config = json.loads((native / "config.json").read_text())
    vision = config["vision_config"]
    folder.mkdir()
    published = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 4,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "float32",
        "use_thumbnail": True,
        "llm_config": {**config["text_config"], "torch_dtype": "float32", "rope_theta": 10000.0, "use_bfloat16": True},
        "vision_config": {
            "model_type": "intern_vit_6b",
            "image_size": vision["image_size"][0],
            "patch_size": vision["patch_size"][0],
            "qkv_bias": vision["attention_bias"],
            "qk_normalization": vision["use_qk_norm"],
            **{name: vision[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")},
            "norm_type": vision["norm_type"],
        },
    }
    (folder / "config.json").write_text(json.dumps(published))
    (folder / "tokenizer.json").write_bytes((native / "tokenizer.json").read_bytes())
    tokenizer = json.loads((native / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in tokenizer.items() if name in ("tokenizer_class", "eos_token", "pad_token", "model_max_length")}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    write_weights(folder, internvl_state(model.state_dict()), pickled, 2)
    return folder
