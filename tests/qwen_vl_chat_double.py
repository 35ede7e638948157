"""Qwen-VL-Chat worked out slowly, one head and one position at a time, from its published tensors by their published names.

It takes nothing from the package: what the package makes of the same tensors is compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def double_logits(state: State, config: Mapping[str, Any], ids: Sequence[int], pixels: Tensor, places: Sequence[int]) -> Tensor:
    """(T, vocabulary) float64 of a text whose ``places`` hold the embeddings of an image (3, side, side)."""
    state = {name: tensor.double() for name, tensor in state.items()}
    hidden = state["transformer.wte.weight"][list(ids)].clone()
    hidden[list(places)] = image_embeddings(state, config["visual"], pixels.double())
    return decode(state, config, hidden, list(range(len(ids)))) @ state["lm_head.weight"].T


# -- the image -----------------------------------------------------------------------------------------------------------------------------


def image_embeddings(state: State, visual: Mapping[str, Any], pixels: Tensor) -> Tensor:
    """(queries, width) of an image."""
    patches = tower(state, visual, pixels)
    pool = "transformer.visual.attn_pool"
    keys = norm(state, f"{pool}.ln_kv", patches @ state[f"{pool}.kv_proj.weight"].T)
    queries = norm(state, f"{pool}.ln_q", state[f"{pool}.query"])
    places, side = state[f"{pool}.pos_embed"], math.isqrt(len(patches))
    weight, bias = state[f"{pool}.attn.in_proj_weight"], state[f"{pool}.attn.in_proj_bias"]
    width = weight.shape[1]
    query = (queries + places) @ weight[:width].T + bias[:width]
    key = (keys + enlarge(places, side)) @ weight[width : 2 * width].T + bias[width : 2 * width]
    value = keys @ weight[2 * width :].T + bias[2 * width :]  # without positions
    heads = [slice(start, start + 128) for start in range(0, width, 128)]
    found = torch.cat([attend(query[:, head], key[:, head], value[:, head]) for head in heads], 1)
    return norm(state, "transformer.visual.ln_post", linear(state, f"{pool}.attn.out_proj", found)) @ state["transformer.visual.proj"]


def tower(state: State, visual: Mapping[str, Any], pixels: Tensor) -> Tensor:
    """(patches, tower's width), row after row."""
    patch, side = visual["patch_size"], visual["image_size"] // visual["patch_size"]
    kernel = state["transformer.visual.conv1.weight"]
    tokens = []
    for row in range(side):
        for column in range(side):
            window = pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append((kernel * window).sum((1, 2, 3)))
    hidden = norm(state, "transformer.visual.ln_pre", torch.stack(tokens) + enlarge(state["transformer.visual.positional_embedding"], side))
    for block in range(visual["layers"]):
        name = f"transformer.visual.transformer.resblocks.{block}"
        fused = linear(state, f"{name}.attn.in_proj", norm(state, f"{name}.ln_1", hidden))
        wide = fused.shape[1] // visual["heads"]  # a head's query, key and value stand together
        found = [attend(*fused[:, head * wide : (head + 1) * wide].split(wide // 3, 1)) for head in range(visual["heads"])]
        hidden = hidden + linear(state, f"{name}.attn.out_proj", torch.cat(found, 1))
        inner = linear(state, f"{name}.mlp.c_fc", norm(state, f"{name}.ln_2", hidden))
        hidden = hidden + linear(state, f"{name}.mlp.c_proj", inner * (1 + torch.erf(inner / math.sqrt(2))) / 2)
    return hidden


def enlarge(table: Tensor, side: int) -> Tensor:
    """Keys' bicubic kernel with a = -0.75 between the middles of cells, cells beyond the edge being those at it."""
    small = math.isqrt(len(table))
    grid = table.reshape(small, small, -1)
    weights = torch.zeros(side, small, dtype=torch.float64)
    for target in range(side):
        centre = (target + 0.5) * small / side - 0.5
        for source in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[target, min(max(source, 0), small - 1)] += cubic(abs(centre - source))
    return torch.einsum("ra,cb,abw->rcw", weights, weights, grid).reshape(side * side, -1)


def cubic(distance: float) -> float:
    if distance <= 1:
        return 1.25 * distance**3 - 2.25 * distance**2 + 1
    return -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


# -- the text ------------------------------------------------------------------------------------------------------------------------------


def decode(state: State, config: Mapping[str, Any], hidden: Tensor, positions: Sequence[int], scaled: bool = True) -> Tensor:
    """(T, width) of a causal text at these positions; ``scaled`` as in inference, by dynamic NTK and logn."""
    heads, size = config["num_attention_heads"], config["kv_channels"]
    factor = ntk_factor(max(positions) + 1) if scaled else 1.0
    for layer in range(config["num_hidden_layers"]):
        name = f"transformer.h.{layer}"
        fused = rms(state[f"{name}.ln_1.weight"], hidden) @ state[f"{name}.attn.c_attn.weight"].T + state[f"{name}.attn.c_attn.bias"]
        query, key, value = fused.split(heads * size, 1)
        found = []
        for head in range(heads):
            one = slice(head * size, (head + 1) * size)
            turned = rotate(query[:, one], positions, factor)
            if scaled:
                turned = turned * torch.tensor([[logn_scale(position)] for position in positions])
            found.append(attend(turned, rotate(key[:, one], positions, factor), value[:, one], causal=True))
        hidden = hidden + torch.cat(found, 1) @ state[f"{name}.attn.c_proj.weight"].T
        normed = rms(state[f"{name}.ln_2.weight"], hidden)
        gate = normed @ state[f"{name}.mlp.w2.weight"].T
        inner = (normed @ state[f"{name}.mlp.w1.weight"].T) * gate / (1 + torch.exp(-gate))
        hidden = hidden + inner @ state[f"{name}.mlp.c_proj.weight"].T
    return rms(state["transformer.ln_f.weight"], hidden)


def ntk_factor(length: int, trained: int = 2048) -> float:
    """What multiplies the rotary base, before its exponent, for a text of that length."""
    return max(2.0 ** math.ceil(math.log2(length / trained) + 1) - 1, 1.0)


def logn_scale(position: int, trained: int = 2048) -> float:
    """What multiplies the query at a position that is counted from 0."""
    return math.log(position + 1, trained) if position + 1 > trained else 1.0


def rotate(vectors: Tensor, positions: Sequence[int], factor: float) -> Tensor:
    """Each pair (i, i + half) of a vector turned by its position; angles are worked out in float32, as published."""
    size = vectors.shape[1]
    base, half = 10000 * factor ** (size / (size - 2)), size // 2
    speeds = 1 / base ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    turned = vectors.clone()
    for row, position in enumerate(positions):
        cosines, sines = (position * speeds).cos().double(), (position * speeds).sin().double()
        for index in range(half):
            one, other = vectors[row, index], vectors[row, index + half]
            turned[row, index] = one * cosines[index] - other * sines[index]
            turned[row, index + half] = other * cosines[index] + one * sines[index]
    return turned


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    scores = query @ key.T / math.sqrt(query.shape[1])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -math.inf)
    return torch.softmax(scores, 1) @ value


def rms(weight: Tensor, hidden: Tensor) -> Tensor:
    return hidden / torch.sqrt((hidden**2).mean(1, keepdim=True) + 1e-6) * weight


def norm(state: State, name: str, hidden: Tensor) -> Tensor:
    centred = hidden - hidden.mean(1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: State, name: str, hidden: Tensor) -> Tensor:
    return hidden @ state[f"{name}.weight"].T + state[f"{name}.bias"]
