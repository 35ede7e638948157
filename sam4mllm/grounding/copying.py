"""Questions to a model with linear-attention layers: each question continues a copy of the scene's cache.

A linear-attention layer has no keys to mask. It reads its tokens in order into one recurrent state, so questions that share a row would
see each other. Here a packed row is taken apart into chains: each chain leads from the prefix to a token that no other token continues.
Each chain is continued by itself from a copy of the cache after the prefix; chains of one length go together in a batch. Nothing is padded,
so that each state can be continued later. A token that several chains share is read once for each of them; in other models, packing saves
this.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from sam4mllm.grounding.encoders import position_ids
from sam4mllm.grounding.head import logits_of
from sam4mllm.grounding.scene import MllmScene

LINEAR = "linear_attention"
"""What transformers calls a linear-attention layer in a configuration's ``layer_types``."""
COPIES_AT_ONCE = 8
"""Most chains in a batch. In Qwen3.5-9B the copy of an image of 2,048 tokens takes 67 MB of keys and values and 50 MB of states."""

Chain = tuple[int, ...]
"""Tokens that follow the prefix one after another: their indices, counted over the packed rows so far end to end."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Chains of one length, and the cache after them, which has one row for each chain."""

    chains: tuple[Chain, ...]
    cache: DynamicCache


@dataclass(frozen=True, eq=False)
class Copies:
    """All chains that were continued from a prefix, each with its cache. It takes the place that one cache has in other models.

    ``length`` is the number of tokens in the packed rows so far.
    """

    length: int
    batches: tuple[Batch, ...]


Past = DynamicCache | Copies


def keeps_states(config: Any) -> bool:
    """Whether a model with this configuration has layers whose state is copied for each question."""
    return LINEAR in (getattr(config.get_text_config(), "layer_types", None) or ())


def chains_of(mask: NDArray[np.bool_]) -> list[Chain]:
    """Return the chains of a packed row, read from its mask (T, T). Each token is in at least one chain, after all tokens that it sees; a
    chain that another one continues is left out.
    """
    seen: list[Chain] = [tuple(np.flatnonzero(row).tolist()) for row in mask]
    inner = {chain[:-1] for chain in seen}
    return [chain for chain in seen if chain not in inner]


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of keys, values and states."""
    return sum(tensor.nbytes for layer in cache.layers for tensor in _tensors(layer))


def copy_rows(cache: DynamicCache, rows: Sequence[int]) -> DynamicCache:
    """Return a cache made of these rows of another; a row may be named several times. The tensors are copied, because the model changes
    states in place.
    """
    twin: Any = copy.copy(cache)
    twin.layers = [_copy_layer(layer) for layer in cache.layers]
    twin.reorder_cache(torch.tensor(rows))
    return twin  # type: ignore[no-any-return]


def continue_copies(
    model: Any,
    scene: MllmScene,
    ids: NDArray[np.int64],
    offsets: NDArray[np.int64],
    mask: NDArray[np.bool_],
    keep: NDArray[np.int64],
    past: Copies | None,
) -> tuple[Tensor, Copies]:
    """Do what :meth:`MllmGrounder.forward <sam4mllm.grounding.mllm.MllmGrounder.forward>` does, for a model with linear-attention layers.

    Return the logits (K, vocabulary) float32 at the positions ``keep`` (K,) of a packed row, and the copies after it. If the row continues
    earlier ones (``past``), it must have a single token for each chain that it continues.
    """
    continued = list(_first(scene, mask) if past is None else _next(past, mask))
    length = 0 if past is None else past.length
    found: dict[int, Tensor] = {}
    for batch, new in continued:
        rows = np.array(new)
        hidden = _forward(model, scene, ids[rows], offsets[rows], batch.cache)
        for row, indices in enumerate(new):
            found |= {index: hidden[row, place] for place, index in enumerate(indices)}
    logits = logits_of(model, torch.stack([found[index] for index in keep.tolist()]))
    return logits, Copies(length + len(ids), tuple(batch for batch, _ in continued))


def _first(scene: MllmScene, mask: NDArray[np.bool_]) -> Iterator[tuple[Batch, Sequence[Chain]]]:
    """Yield the chains of the first row after the prefix in batches, each with a copy of the prefix's cache for every chain; and, with each
    batch, the row's tokens that every chain still has to read: here the whole chain.
    """
    for same in _by_length(chains_of(mask)):
        yield Batch(tuple(same), copy_rows(scene.cache, [0] * len(same))), same


def _next(past: Copies, mask: NDArray[np.bool_]) -> Iterator[tuple[Batch, Sequence[Chain]]]:
    """Yield the chains that a row of single tokens continues, in batches with copied caches; and, with each batch, the new token that every
    chain has to read. ``mask`` is (T, earlier tokens + T).
    """
    following = {tuple(np.flatnonzero(row[: past.length]).tolist()): index for index, row in enumerate(mask)}
    for batch in past.batches:
        rows = [row for row, chain in enumerate(batch.chains) if chain in following]
        if rows:
            new = [following[batch.chains[row]] for row in rows]
            chains = tuple((*batch.chains[row], past.length + index) for row, index in zip(rows, new, strict=True))
            yield Batch(chains, copy_rows(batch.cache, rows)), [(index,) for index in new]


def _by_length(chains: Iterable[Chain]) -> Iterator[list[Chain]]:
    for _, group in groupby(sorted(chains, key=len), key=len):
        same = list(group)
        for start in range(0, len(same), COPIES_AT_ONCE):
            yield same[start : start + COPIES_AT_ONCE]


def _forward(model: Any, scene: MllmScene, ids: NDArray[np.int64], offsets: NDArray[np.int64], cache: DynamicCache) -> Tensor:
    """Return the last hidden states (B, T, width) of tokens (B, T) that continue the B rows of a cache. The cache grows by them."""
    positions = torch.from_numpy(offsets + scene.following).to(model.device)
    hidden: Tensor = model.model(
        input_ids=torch.from_numpy(ids).to(model.device),
        position_ids=position_ids(positions.expand(scene.rows, -1, -1)),
        past_key_values=cache,
        use_cache=True,
        return_dict=True,
    ).last_hidden_state
    return hidden


def _copy_layer(layer: Any) -> Any:
    """Copy a layer's cache so that it has its own dicts; the tensors in them are shared."""
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(twin, name, dict(value))
    return twin


def _tensors(layer: Any) -> Iterator[Tensor]:
    for value in vars(layer).values():
        yield from (one for one in (value.values() if isinstance(value, dict) else (value,)) if isinstance(one, Tensor))
