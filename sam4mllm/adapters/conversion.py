"""Converting adapters with layer names of older code (earlier transformers, LLaVA, InternVL, Qwen-VL-Chat) to today's names.

The factors keep their values, and so does the change that they make. One kind of layer is three layers today: Qwen-VL-Chat's ``c_attn``
computes queries, keys and values. So its second factor (B) is cut into three blocks of rows, and each block gets a copy of the first (A).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sam4mllm.adapters.factors import ALL_LINEAR, DEFAULT_ALPHA, PREFIX, chosen_names, values_of
from sam4mllm.adapters.fields import CONFIG, WEIGHTS, parse_object
from sam4mllm.adapters.files import FACTOR, check_adapter, check_config, check_weights, read_text
from sam4mllm.durable import sync_tree, whole_folder
from sam4mllm.errors import RegistryError, first_line
from sam4mllm.plain_text import listed

_LAYER = r"model.language_model.layers.\g<layer>"
_PROJECTOR = "model.multi_modal_projector"
_RULES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (r"(language_model\.)?model\.(?P<rest>(layers\.\d+\..+|embed_tokens))", (r"model.language_model.\g<rest>",), "earlier transformers"),
    (r"language_model\.lm_head", ("lm_head",), "earlier transformers"),
    (r"(?P<rest>(visual|multi_modal_projector|vision_tower)\..+)", (r"model.\g<rest>",), "earlier transformers"),
    (r"model\.mm_projector\.0", (f"{_PROJECTOR}.linear_1",), "LLaVA's repository"),
    (r"model\.mm_projector\.2", (f"{_PROJECTOR}.linear_2",), "LLaVA's repository"),
    (r"mlp1\.1", (f"{_PROJECTOR}.linear_1",), "InternVL's repository"),
    (r"mlp1\.3", (f"{_PROJECTOR}.linear_2",), "InternVL's repository"),
    (
        r"transformer\.h\.(?P<layer>\d+)\.attn\.c_attn",
        tuple(f"{_LAYER}.self_attn.{one}_proj" for one in "qkv"),
        "Qwen-VL-Chat as first published",
    ),
    (r"transformer\.h\.(?P<layer>\d+)\.attn\.c_proj", (f"{_LAYER}.self_attn.o_proj",), "Qwen-VL-Chat as first published"),
    (r"transformer\.h\.(?P<layer>\d+)\.mlp\.w1", (f"{_LAYER}.mlp.up_proj",), "Qwen-VL-Chat as first published"),
    (r"transformer\.h\.(?P<layer>\d+)\.mlp\.w2", (f"{_LAYER}.mlp.gate_proj",), "Qwen-VL-Chat as first published"),
    (r"transformer\.h\.(?P<layer>\d+)\.mlp\.c_proj", (f"{_LAYER}.mlp.down_proj",), "Qwen-VL-Chat as first published"),
    (r"transformer\.wte", ("model.language_model.embed_tokens",), "Qwen-VL-Chat as first published"),
)
"""Each rule: a pattern of a layer's whole former name, the layers that it is today, and where the name is from. The first match counts."""
_RENEWED = ("target_modules", "rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform", "layers_pattern", "auto_mapping")
"""The fields of an adapter's configuration that hold names or numbers of layers, or the class of the model that had them. They are dropped,
and the first three are written anew with today's names."""

Tensors = Mapping[str, Tensor]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class _Renamed:
    """The names that a layer has today, and the ``origin`` of its former name."""

    layers: tuple[str, ...]
    origin: str


def is_foreign(folder: Path) -> bool:
    """Whether an adapter's layers have older names, all of them. Raises RegistryError if its weights cannot be read or are not safe to
    load.
    """
    try:
        return _rename_all(_modules(check_weights(folder / WEIGHTS))) is not None
    except OSError as error:
        raise RegistryError(f"{folder} cannot be read ({error.strerror})") from error


def convert_adapter(folder: Path, out: Path, read: Callable[[Path], Tensors] | None = None, weights: str = WEIGHTS) -> list[str]:
    """Write an adapter that has older names into ``out`` under today's names; return notes for the user, one line each.

    Args:
        folder: holds the adapter's configuration and its weights.
        out: a new or empty folder, which becomes a plain PEFT folder.
        read: reads the weights' file if that is not safetensors. Its ValueError and OSError become RegistryError.
        weights: the name of the weights' file. If it is not WEIGHTS, an adapter whose layers have today's names is written, too: its
            weights become safetensors.

    Raises:
        RegistryError: the adapter cannot be read or is not safe to load, its layers have today's names already or names that are not known,
            a factor cannot be cut as needed, or ``out`` is not empty or cannot be written. Nothing is written to ``out`` then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RegistryError(f"{out} is not empty; choose another folder")
    try:
        config, tensors = _read(folder, read, weights)
        origin = origin_of(tensors)
        if origin is None and weights == WEIGHTS:
            raise RegistryError("its layers have today's names, or names of no model that is known; use it as it is")
        _write(out, *renew(config, tensors))
    except (RegistryError, ValueError) as error:
        raise RegistryError(f"{folder}: {error}") from error
    except OSError as error:
        raise RegistryError(f"{folder} cannot be read ({error.strerror or first_line(error)})") from error
    return [] if origin is None else [f"its layers had the names of {origin}"]


def origin_of(tensors: Tensors) -> str | None:
    """Return which code the names of an adapter's layers are from, such as ``earlier transformers``; None unless all are older names.

    If they are from several, ``earlier transformers`` is named only if no other code is among them: some of its names occur in others, too.
    """
    renamed = _rename_all(_modules(tensors))
    if renamed is None:
        return None
    origins = {one.origin for one in renamed.values()}
    return min(origins - {"earlier transformers"}, default="earlier transformers")


def renew(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """Return a configuration and its factors under today's names; both unchanged if not all layers have older names.

    Raises ValueError if a layer is not among the target_modules, if these or another pattern of layers are not valid or take too long to
    match, if two layers are the same layer today, or if a factor cannot be cut into three.
    """
    modules = _modules(tensors)
    renamed = _rename_all(modules)
    if renamed is None:
        return config, tensors
    _check_declared(config, modules)
    ranks = values_of(config, "rank_pattern", modules, config.get("r"))
    alpha = config.get("lora_alpha")
    alphas = values_of(config, "alpha_pattern", modules, DEFAULT_ALPHA if alpha is None else alpha)
    new: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        matched = _factor(name)
        for layer, part in zip(renamed[matched["module"]].layers, _cut(matched, tensor, renamed), strict=True):
            key = f"{PREFIX}{layer}.{matched['factor']}"
            if key in new:
                raise ValueError(f"{WEIGHTS} holds {listed([name])}, which another of its tensors is today, too")
            new[key] = part
    fresh: dict[str, Any] = {name: value for name, value in config.items() if name not in _RENEWED}
    fresh["target_modules"] = [layer for module in modules for layer in renamed[module].layers]
    for key, values, usual in (("rank_pattern", ranks, config.get("r")), ("alpha_pattern", alphas, alpha)):
        odd = {module: value for module, value in zip(modules, values, strict=True) if value != usual}
        fresh[key] = {re.escape(layer): value for module, value in odd.items() for layer in renamed[module].layers}
    return fresh, new


def _read(folder: Path, read: Callable[[Path], Tensors] | None, weights: str) -> tuple[Config, Tensors]:
    config = parse_object(read_text(folder / CONFIG), CONFIG)
    # it may name a class of the older code, which check_config refuses; the converted adapter does without it
    config.pop("auto_mapping", None)
    check_config(config)
    if read is not None:
        return config, read(folder / weights)
    check_weights(folder / weights)
    return config, load_file(folder / weights)


def _write(out: Path, config: Config, tensors: Tensors) -> None:
    """Write an adapter's folder. Raises RegistryError if the adapter would not be safe to load, or cannot be written."""
    try:
        with whole_folder(out) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / WEIGHTS, {"format": "pt"})
            (temporary / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
            check_adapter(temporary)
            sync_tree(temporary)
    except (OSError, SafetensorError) as error:
        raise RegistryError(f"{out} cannot be written ({first_line(error)}); free space, or allow writing there") from error


def _check_declared(config: Config, modules: list[str]) -> None:
    given = config.get("target_modules")
    if isinstance(given, str) and given.lower() == ALL_LINEAR:
        return
    if not isinstance(given, str | list):
        raise ValueError(f"target_modules in {CONFIG} names no layer of the model")
    undeclared = set(modules) - chosen_names(given, modules, "")
    if undeclared:
        raise ValueError(f"{WEIGHTS} holds factors of {listed([min(undeclared)])}, which {CONFIG} does not declare")


def _rename_all(modules: list[str]) -> dict[str, _Renamed] | None:
    """Return today's names of the layers if all have older names, else None. ``lm_head`` alone is no older name."""
    renamed = {module: _rename(module) for module in modules}
    known = {module: one for module, one in renamed.items() if one is not None}
    if len(known) < len(renamed) or all(module == "lm_head" for module in known):
        return None
    return known


def _rename(module: str) -> _Renamed | None:
    if module == "lm_head":
        return _Renamed((module,), "earlier transformers")
    for pattern, layers, origin in _RULES:
        matched = re.fullmatch(pattern, module)
        if matched:
            return _Renamed(tuple(matched.expand(layer) for layer in layers), origin)
    return None


def _modules(names: Any) -> list[str]:
    """Return the names of the tensors' layers, each once, in order. A tensor that is no LoRA factor is listed under its own whole name."""
    return list(dict.fromkeys(_factor(name)["module"] for name in names))


def _factor(name: str) -> Mapping[str, str]:
    matched = FACTOR.fullmatch(name)
    if matched is None or not name.startswith(PREFIX):
        return {"module": name, "factor": ""}
    return {"module": matched["module"].removeprefix(PREFIX), "factor": matched["factor"]}


def _cut(matched: Mapping[str, str], tensor: Tensor, renamed: Mapping[str, _Renamed]) -> tuple[Tensor, ...]:
    """Return a tensor for each layer that the former layer is today: the tensor itself for one layer; for several, copies of an A factor
    or blocks of rows of any other tensor. Raises ValueError if the rows cannot be divided equally.
    """
    count = len(renamed[matched["module"]].layers)
    if count == 1:
        return (tensor,)
    if matched["factor"].startswith(("lora_A", "lora_embedding_A")):
        return tuple(tensor.clone() for _ in range(count))
    if tensor.ndim == 0 or len(tensor) % count:
        raise ValueError(f"{matched['module']}.{matched['factor']} is {tuple(tensor.shape)}, which is no {count} blocks of rows")
    return tuple(part.clone() for part in tensor.chunk(count))
