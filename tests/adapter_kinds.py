"""Adapters of many kinds for one checkpoint, good, bad and hostile, and the hashes that show a base model unchanged.

``python -m tests.adapter_kinds FOLDER`` loads, swaps and drops every adapter in a folder on the demo model, and says what came of each.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from sam4mllm.adapters.fields import BASE, CONFIG, WEIGHTS
from sam4mllm.adapters.lora import Adapters
from sam4mllm.errors import Sam4mllmError
from sam4mllm.grounding.families import load_checkpoint

PREFIX = "base_model.model."
LAYER = "model.language_model.layers.0.self_attn.q_proj"
LAST = "model.language_model.layers.1.mlp.down_proj"
EMBEDDINGS = "model.language_model.embed_tokens"
TOWER = "model.visual.patch_embed.proj"
BOMB = "(a|a)*(([a-z_.0-9]+)+)+!"
"""Tried on a layer's name, it takes longer than anyone waits."""

Tensors = dict[str, Tensor]


def hash_base(model: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and buffer of the base model by its own name, whatever adapters are loaded on it."""
    inner = {f"{name}." for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    hashes = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        outer = next((prefix for prefix in inner if name.startswith(prefix)), None)
        if outer is None or name.startswith(f"{outer}base_layer."):
            data = tensor.detach().cpu().contiguous().view(torch.uint8) if tensor.ndim else tensor.detach().cpu()
            hashes[name.replace(".base_layer.", ".")] = hashlib.sha256(data.numpy().tobytes()).hexdigest()
    return hashes


@dataclass(frozen=True)
class AdapterKind:
    """One adapter: what differs from a plain one in its configuration and tensors, and what is said of it; ``said`` is empty if it is good.

    ``layers`` are those of the plain factors; ``more`` adds tensors to them, given the model.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = (LAYER, LAST)
    rank: Callable[[str], int] = lambda layer: 4
    more: Callable[[nn.Module], Tensors] = lambda model: {}
    less: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    said: str = ""


def write_adapter(kind: AdapterKind, model: nn.Module, folder: Path, seed: int = 5) -> Path:
    """The adapter's folder. Its factors are random, so that it makes a difference."""
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: 0.2 * torch.randn(*shape, generator=generator)  # noqa: E731
    tensors: Tensors = {}
    for layer in kind.layers:
        module: Any = model.get_submodule(layer)
        rank = kind.rank(layer)
        if isinstance(module, nn.Embedding):
            tensors[f"{PREFIX}{layer}.lora_embedding_A"] = random(rank, module.num_embeddings)
            tensors[f"{PREFIX}{layer}.lora_embedding_B"] = random(module.embedding_dim, rank)
        else:
            tensors[f"{PREFIX}{layer}.lora_A.weight"] = random(rank, module.in_features)
            tensors[f"{PREFIX}{layer}.lora_B.weight"] = random(module.out_features, rank)
    tensors |= kind.more(model)
    kept = {name: tensor.to(kind.dtype).clone() for name, tensor in tensors.items() if not name.endswith(kind.less or ("never",))}
    folder.mkdir(parents=True)
    save_file(kept, folder / WEIGHTS)
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": [LAYER, LAST]}
    (folder / CONFIG).write_text(json.dumps({**plain, **kind.config}))
    return folder


def zeros(layer: str, name: str, alias: str = "") -> Callable[[nn.Module], Tensors]:
    """A tensor of the base model, zeroed."""
    return lambda model: {f"{PREFIX}{alias or f'{layer}.{name}'}": torch.zeros_like(getattr(model.get_submodule(layer), name))}


def all_linear(model: nn.Module) -> tuple[str, ...]:
    """What peft means by it: all linear layers but the head."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head")


def magnitudes(ending: str) -> Callable[[nn.Module], Tensors]:
    """DoRA's vectors, of ones; ``ending`` as older versions of peft wrote it, or empty."""

    def make(model: nn.Module) -> Tensors:
        return {
            f"{PREFIX}{layer}.lora_magnitude_vector{ending}": torch.ones(int(model.get_submodule(layer).out_features))  # type: ignore[call-overload]
            for layer in (LAYER, LAST)
        }

    return make


PATTERN = r".*layers\.0\.self_attn\.q_proj|.*layers\.1\.mlp\.(?!up)down_proj"
BOTH_DOWN = ("model.language_model.layers.0.mlp.down_proj", LAST)
OLD = "model.layers.0.self_attn.q_proj"

GOOD: dict[str, AdapterKind] = {
    "plain": AdapterKind(),
    "bfloat16": AdapterKind(dtype=torch.bfloat16),
    "names by their endings": AdapterKind({"target_modules": ["down_proj"]}, BOTH_DOWN),
    "a pattern": AdapterKind({"target_modules": PATTERN}),
    "all but some": AdapterKind({"target_modules": ["down_proj"], "exclude_modules": ["0.mlp.down_proj"]}, (LAST,)),
    "all but a pattern": AdapterKind({"target_modules": ["down_proj"], "exclude_modules": r".*layers\.0\..*"}, (LAST,)),
    "one layer": AdapterKind({"target_modules": ["down_proj"], "layers_to_transform": [1]}, (LAST,)),
    "one layer of a list": AdapterKind({"target_modules": ["down_proj"], "layers_to_transform": 1, "layers_pattern": "layers"}, (LAST,)),
    "ranks by patterns": AdapterKind(
        {"rank_pattern": {r"layers\.1\..*": 2}, "alpha_pattern": {"down_proj": 32}}, rank=lambda one: 2 if one == LAST else 4
    ),
    "stabilised ranks": AdapterKind({"use_rslora": True}),
    "magnitudes": AdapterKind({"use_dora": True}, more=magnitudes("")),
    "magnitudes as they were": AdapterKind({"use_dora": True}, more=magnitudes(".weight")),
    "embeddings": AdapterKind({"target_modules": ["embed_tokens", LAST]}, (EMBEDDINGS, LAST)),
    "the head": AdapterKind({"target_modules": ["lm_head"]}, ("lm_head",)),
}

NO_FACTOR, UNDECLARED, NO_LAYER = "is no LoRA factor", "does not declare", "a layer that the model does not have"
BAD: dict[str, AdapterKind] = {
    "a tensor of the vision tower": AdapterKind(more=zeros(TOWER, "weight"), said=rf"patch_embed\.proj\.weight' {NO_FACTOR}"),
    "base weights of a target": AdapterKind(more=zeros(LAYER, "weight"), said=NO_FACTOR),
    "base weights as peft holds them": AdapterKind(more=zeros(LAYER, "weight", f"{LAYER}.base_layer.weight"), said=NO_FACTOR),
    "a bias of the base": AdapterKind(more=zeros(TOWER, "bias"), said=NO_FACTOR),
    "embeddings as peft saves them": AdapterKind(more=zeros(EMBEDDINGS, "weight"), said=NO_FACTOR),
    "the head as peft saves it": AdapterKind(more=zeros("lm_head", "weight"), said=NO_FACTOR),
    "modules to save": AdapterKind({"modules_to_save": ["lm_head"]}, more=zeros("lm_head", "weight"), said=NO_FACTOR),
    "modules to save, declared": AdapterKind({"modules_to_save": ["lm_head"]}, said="modules_to_save changes the base model itself"),
    "biases, declared": AdapterKind({"bias": "all"}, said="bias changes the base model itself"),
    "tokens, declared": AdapterKind({"trainable_token_indices": [1]}, said="trainable_token_indices changes the base model itself"),
    "a factor of another name": AdapterKind(more=lambda model: {f"{PREFIX}{LAYER}.lora_C.weight": torch.zeros(4, 4)}, said=NO_FACTOR),
    "factors of a layer that is not declared": AdapterKind(
        {"target_modules": [LAYER]}, said=rf"down_proj\.lora_A\.weight, which .* {UNDECLARED}"
    ),
    "factors of the tower, not declared": AdapterKind(
        more=lambda model: {f"{PREFIX}{TOWER}.lora_A.weight": torch.zeros(4, 4)}, said=rf"patch_embed.*{UNDECLARED}"
    ),
    "names of older transformers": AdapterKind(
        {"target_modules": ["q_proj", "down_proj"]}, more=lambda model: {f"{PREFIX}{OLD}.lora_A.weight": torch.zeros(4, 4)}, said=NO_LAYER
    ),
    "no prefix": AdapterKind(more=lambda model: {f"{LAYER}.lora_A.weight": torch.zeros(4, 32)}, said="not taken"),
    "a factor twice": AdapterKind(
        {"use_dora": True}, more=lambda model: magnitudes("")(model) | magnitudes(".weight")(model), said=r"lora_magnitude_vector"
    ),
    "magnitudes, not declared": AdapterKind(more=magnitudes(""), said=UNDECLARED),
    "a factor is missing": AdapterKind(less=("down_proj.lora_B.weight",), said=r"1 of the factors .* missing, among them .*lora_B"),
    "another rank": AdapterKind(rank=lambda layer: 3, said=r"has the rank 3, but adapter_config\.json says 4"),
    "another shape": AdapterKind(
        more=lambda model: {f"{PREFIX}{LAYER}.lora_A.weight": torch.zeros(4, 9)}, said=r"is \(4, 9\), but \(4, 32\) in the model"
    ),
    "no axis": AdapterKind(more=lambda model: {f"{PREFIX}{LAYER}.lora_A.weight": torch.tensor(1.0)}, said="has the rank 0"),
    "not a number": AdapterKind(more=lambda model: {f"{PREFIX}{LAYER}.lora_A.weight": torch.full((4, 32), torch.nan)}, said="NaN"),
    "no target": AdapterKind({"target_modules": None}, said="names no layer"),
    "a target that is not there": AdapterKind({"target_modules": ["nothing"]}, said="names no layer"),
    "a norm": AdapterKind({"target_modules": [LAYER, "input_layernorm"]}, said="which LoRA cannot change"),
    "a pattern without end": AdapterKind({"target_modules": BOMB}, said="pattern of modules in .* was stopped"),
    "an exclusion without end": AdapterKind({"exclude_modules": BOMB}, said="pattern of modules in .* was stopped"),
    "a rank without end": AdapterKind({"rank_pattern": {BOMB: 2}}, said="rank_pattern in .* was stopped"),
    "no pattern": AdapterKind({"target_modules": "((("}, said="no regular expression"),
    "a pattern of layers": AdapterKind({"layers_to_transform": [0], "layers_pattern": "(a+)+"}, said="must be the name of a list"),
    "ranks beyond reason": AdapterKind({"rank_pattern": {"q_proj": 10**9}}, said="rank_pattern may not be"),
    "a rank of memory's end": AdapterKind({"r": 4096}, said="has the rank 4, but"),
    "repeated layers": AdapterKind({"layer_replication": [[0, 2]]}, said="layer_replication may not be"),
}


def main() -> None:
    checkpoint = load_checkpoint("demo", torch.device("cpu"))
    adapters, before = Adapters(checkpoint), hash_base(checkpoint.model)
    for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
        try:
            adapters.load(folder.name, folder)
            adapters.use(folder.name)
            adapters.use(BASE)
            adapters.drop(folder.name)
            said = "taken"
        except Sam4mllmError as error:
            said = str(error)
        print(f"{folder.name}: {'base unchanged' if hash_base(checkpoint.model) == before else 'BASE CHANGED'}; {said}")


if __name__ == "__main__":
    main()
