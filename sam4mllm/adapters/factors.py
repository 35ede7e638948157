"""Loading foreign LoRA factors safely: an adapter's file must hold exactly the tensors that its configuration declares.

peft loads by name whatever a file holds, even base weights, and it matches patterns from a configuration without a time limit. So the
layers are found here, and peft is only ever given their full names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from sam4mllm import bounded
from sam4mllm.adapters.fields import CONFIG, WEIGHTS
from sam4mllm.adapters.files import FACTOR
from sam4mllm.plain_text import listed

PREFIX = "base_model.model."
"""peft writes it before the name of a layer in the model."""
ALL_LINEAR = "all-linear"
"""peft's word for every linear layer but the one that gives the logits."""
DEFAULT_ALPHA = 8
"""peft's default for ``lora_alpha``, where a configuration has none."""

_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Declared:
    """The layers that an adapter changes, by their full names, each with its rank and alpha.

    ``rslora``, ``dora`` and ``bias`` are the configuration's ``use_rslora``, ``use_dora`` and ``lora_bias``.
    """

    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rslora: bool
    dora: bool
    bias: bool

    def to_peft(self) -> LoraConfig:
        """Return a peft configuration that names exactly these layers, and takes only numbers and flags from the foreign one."""
        (rank, ranks), (alpha, alphas) = _by_value(self.ranks), _by_value(self.alphas)
        return LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=list(self.ranks),
            rank_pattern=ranks,
            alpha_pattern=alphas,
            use_rslora=self.rslora,
            use_dora=self.dora,
            lora_bias=self.bias,
            bias="none",
            inference_mode=True,
        )


def declare(config: Mapping[str, Any], model: nn.Module, trusted: str) -> Declared:
    """Return the layers that a configuration declares on a model.

    Args:
        config: as :func:`sam4mllm.adapters.files.check_adapter` returns it.
        model: the base model; adapters may be loaded on it.
        trusted: the family's own pattern of layers, which is matched without a time limit.

    Raises:
        ValueError: the configuration changes the base model itself, names no layer or one that LoRA cannot change, or a pattern is not
            valid or takes too long to match.
    """
    _check_apart(config)
    layers = base_layers(model)
    names = _targets(config, layers, model, trusted)
    if not names:
        raise ValueError(f"target_modules in {CONFIG} names no layer of the model")
    ranks = values_of(config, "rank_pattern", names, int(config["r"]))
    alpha = config.get("lora_alpha")
    alphas = values_of(config, "alpha_pattern", names, DEFAULT_ALPHA if alpha is None else alpha)
    flags = (bool(config.get(name)) for name in ("use_rslora", "use_dora", "lora_bias"))
    return Declared(dict(zip(names, ranks, strict=True)), dict(zip(names, alphas, strict=True)), *flags)


def pick_factors(tensors: Mapping[str, Tensor], declared: Declared, model: nn.Module) -> dict[str, Tensor]:
    """Return an adapter's tensors, which must be exactly the declared ones, by their names without PREFIX.

    Raises ValueError naming a tensor that is not declared, one that is missing, or one that has another rank.
    """
    layers = base_layers(model)
    wanted = {name: rank for layer, rank in declared.ranks.items() for name in _factors(layer, layers[layer], declared)}
    found: dict[str, Tensor] = {}
    strange: list[str] = []
    for name, tensor in tensors.items():
        plain = _plain(name)
        if plain not in wanted or plain in found:
            strange.append(name)
        else:
            found[plain] = tensor
    if strange:
        raise ValueError(_describe(strange, layers))
    missing = wanted.keys() - found.keys()
    if missing:
        raise ValueError(f"{len(missing)} of the factors of its target_modules are missing, among them {listed([min(missing)])}")
    for name, tensor in found.items():
        if _rank(name, tensor) not in (None, wanted[name]):
            raise ValueError(f"{listed([name])} has the rank {_rank(name, tensor)}, but {CONFIG} says {wanted[name]}")
    return found


def fill(layers: Mapping[str, nn.Module], slot: str, found: Mapping[str, Tensor]) -> None:
    """Copy factors into the adapter ``slot`` of peft's layers; no tensor of the base model can be changed.

    ``layers`` are peft's layers by their full names, ``found`` what ``pick_factors`` returned. Nothing is copied before all names and
    shapes are checked. Raises ValueError naming a factor that has no place, is missing, or has another shape.
    """
    places = {name: weight for layer, module in layers.items() for name, weight in _places(layer, module, slot)}
    if places.keys() != found.keys():
        raise ValueError(f"{listed([min(places.keys() ^ found.keys())])} has no place in the model")
    for name, weight in places.items():
        if weight.shape != found[name].shape:
            raise ValueError(f"{listed([name])} is {tuple(found[name].shape)}, but {tuple(weight.shape)} in the model")
    for name, weight in places.items():
        weight.data.copy_(found[name])


def base_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The base model's own modules by their full names, whatever adapters are loaded on it."""
    found: dict[str, nn.Module] = {}
    wrapped: list[str] = []
    for name, module in model.named_modules():
        if not any(name.startswith(outer) for outer in wrapped[-1:]):
            found[name] = module.get_base_layer() if isinstance(module, LoraLayer) else module
            if isinstance(module, LoraLayer):
                wrapped.append(f"{name}.")
    return found


# -- names ---------------------------------------------------------------------------------------------------------------------------------


def _check_apart(config: Mapping[str, Any]) -> None:
    """Raises ValueError if a configuration changes the base model itself, which could not be switched off again."""
    further = ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication", "ensure_weight_tying")
    changed = ["bias"] if config.get("bias") not in (None, "none") else [name for name in further if config.get(name)]
    if changed:
        raise ValueError(f"{changed[0]} changes the base model itself; train the low-rank factors alone")


def _targets(config: Mapping[str, Any], layers: Mapping[str, nn.Module], model: Any, trusted: str) -> list[str]:
    """Return the full names of the layers that a configuration selects, in the model's order; none if it selects none.

    Raises ValueError if it selects a layer that LoRA cannot change, or as ``chosen_names`` and ``_numbered`` do.
    """
    given = config.get("target_modules")
    names = [name for name in layers if name]
    if isinstance(given, str) and given.lower() == ALL_LINEAR:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # a mask decoder has no such method
        head = head.get_base_layer() if isinstance(head, LoraLayer) else head
        chosen = {name for name in names if isinstance(layers[name], nn.Linear) and layers[name] is not head}
    else:
        chosen = chosen_names(given or [], names, trusted)
    if isinstance(given, list) and config.get("layers_to_transform") not in (None, []):
        chosen = _numbered(chosen, given, config["layers_to_transform"], config.get("layers_pattern"))
    chosen -= chosen_names(config.get("exclude_modules") or [], names, trusted)
    for name in names:
        if name in chosen and not isinstance(layers[name], nn.Linear | nn.Embedding | nn.Conv2d | nn.Conv3d):
            raise ValueError(f"target_modules in {CONFIG} names {name}, a {type(layers[name]).__name__}, which LoRA cannot change")
    return [name for name in names if name in chosen]


def chosen_names(given: str | list[str], names: Sequence[str], trusted: str) -> set[str]:
    """Return the names that ``given`` selects, by peft's rules: a pattern matches a whole name, a list's entry is a name or its last parts.

    Only a pattern that equals ``trusted`` is matched without a time limit. Raises ValueError if a pattern is not valid or takes too long to
    match.
    """
    if isinstance(given, list):
        wanted = set(given)
        return {name for name in names if not wanted.isdisjoint(_endings(name))}
    if given == trusted:
        return {name for name in names if re.fullmatch(trusted, name)}
    [found] = _match([given], names, "a pattern of modules")
    return {names[index] for index in found}


def _endings(name: str) -> Iterable[str]:
    """Return the name and every part of it that begins after a dot: ``a.b.c``, ``b.c``, ``c``."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _numbered(chosen: set[str], given: Sequence[str], numbers: int | list[int], pattern: str | list[str] | None) -> set[str]:
    """Return the chosen names that ``given`` holds in full, and of the others those in a layer with one of these numbers.

    ``pattern`` is the name of the list of layers whose numbers count, or several names; None counts all lists. Raises ValueError if it is
    not made of plain names.
    """
    lists = [pattern] if isinstance(pattern, str) else pattern or []
    if not all(_NAME.fullmatch(name) for name in lists):
        raise ValueError(f"layers_pattern in {CONFIG} must be the name of a list of layers, such as layers")
    wanted = {numbers} if isinstance(numbers, int) else set(numbers)
    return {name for name in chosen if name in given or _layer_number(name, lists) in wanted}


def _layer_number(name: str, lists: Sequence[str]) -> int | None:
    parts = name.split(".")
    for before, part in itertools.pairwise(parts[:-1]):  # as in peft, a number counts only if a part follows it
        if part.isdecimal() and (not lists or before in lists):
            return int(part)
    return None


def values_of(config: Mapping[str, Any], key: str, names: Sequence[str], default: Any) -> list[Any]:
    """Return a value for each name: that of the first pattern under ``key`` that matches the name or its last parts, else ``default``.

    Raises ValueError if a pattern is not valid or takes too long to match.
    """
    patterns: Mapping[str, Any] = config.get(key) or {}
    values = [default] * len(names)
    if patterns:
        found = _match([rf"(.*\.)?({pattern})" for pattern in patterns], names, key)
        for value, indices in reversed(list(zip(patterns.values(), found, strict=True))):
            for index in indices:
                values[index] = value
    return values


def _match(patterns: Sequence[str], names: Sequence[str], what: str) -> list[list[int]]:
    try:
        return bounded.match(patterns, names)
    except bounded.OverLimitError as error:
        raise ValueError(f"{what} in {CONFIG} was stopped: {error}; name the modules in a list") from error
    except ValueError as error:
        raise ValueError(f"{what} in {CONFIG} is no regular expression ({error}); name the modules in a list") from error


def _by_value(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the value that most names have, and for each other value a pattern for peft that matches the names with it.

    Names are escaped in the patterns.
    """
    names: dict[Any, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(re.escape(name))
    usual = max(names, key=lambda value: len(names[value]))
    return usual, {f"^(?:{'|'.join(some)})": value for value, some in names.items() if value != usual}


# -- tensors -------------------------------------------------------------------------------------------------------------------------------


def _factors(layer: str, module: nn.Module, declared: Declared) -> list[str]:
    """Return the names of the tensors that an adapter must have for a layer, without PREFIX."""
    if isinstance(module, nn.Embedding):
        factors = ["lora_embedding_A", "lora_embedding_B"]
    else:
        factors = ["lora_A.weight", "lora_B.weight", *(["lora_B.bias"] if declared.bias else [])]
    return [f"{layer}.{factor}" for factor in (*factors, *(["lora_magnitude_vector"] if declared.dora else []))]


def _plain(name: str) -> str | None:
    """Return a tensor's name without PREFIX, as peft writes it today; None if it is no factor's name or lacks PREFIX."""
    matched = FACTOR.fullmatch(name)
    return f"{matched['module']}.{matched['factor']}".removeprefix(PREFIX) if matched and name.startswith(PREFIX) else None


def _rank(name: str, tensor: Tensor) -> int | None:
    """Return the length of the side that must equal the rank, 0 if the tensor lacks that side; None if its shape does not depend on the
    rank.
    """
    if name.endswith(("lora_A.weight", "lora_embedding_A")):
        return tensor.shape[0] if tensor.ndim else 0
    return (tensor.shape[1] if tensor.ndim > 1 else 0) if name.endswith(("lora_B.weight", "lora_embedding_B")) else None


def _places(layer: str, module: Any, slot: str) -> Iterable[tuple[str, nn.Parameter]]:
    """Yield the names and parameters that the adapter ``slot`` has in one of peft's layers."""
    for kind, path in (("lora_A", "weight"), ("lora_B", "weight"), ("lora_B", "bias"), ("lora_embedding_A", ""), ("lora_embedding_B", "")):
        holder = getattr(module, kind)
        held = dict(holder.items()).get(slot)
        weight = getattr(held, path) if path and held is not None else held
        if weight is not None:
            yield f"{layer}.{kind}{'.' if path else ''}{path}", weight
    if slot in module.lora_magnitude_vector:
        yield f"{layer}.lora_magnitude_vector", module.lora_magnitude_vector[slot].weight


def _describe(strange: Sequence[str], layers: Mapping[str, nn.Module]) -> str:
    """Return an error message about tensors that have no place in the adapter."""
    first = min(strange)
    matched = FACTOR.fullmatch(first)
    module = matched["module"].removeprefix(PREFIX) if matched else ""
    if not matched:
        reason = "which is no LoRA factor"
    elif module not in layers:
        reason = "a layer that the model does not have"
    else:
        reason = f"which {CONFIG} does not declare"
    return f"{WEIGHTS} holds {len(strange)} tensors that are not taken, among them {listed([first])}, {reason}"
