"""Questions to a model whose layers keep a state: each goes on from a copy of the scene's.

A layer with linear attention has no keys to mask. It reads its tokens in order into one state, so questions that share a row would see
each other. Here the chains of a packed row, from the prefix to a last token, are taken apart again: each is continued by itself from a copy
of what the model knew after the prefix, those of one length together in a batch. Nothing is padded, so that each state can be continued.
A token that several chains share is read once a chain, which is what packing saves in other models.
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
from sam4mllm.grounding.scene import MllmScene

LINEAR = "linear_attention"
"""What transformers calls such a layer in ``layer_types``."""
COPIES_AT_ONCE = 8
"""Chains of a batch. Of Qwen3.5-9B a copy of an image with 2,048 tokens takes 67 MB of keys and values and 50 MB of states."""

Chain = tuple[int, ...]
"""Tokens that follow the prefix, each after the one before: their indices in the row, or in the rows so far."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Chains of one length, and what the model knows after each: one row of ``cache`` a chain."""

    chains: tuple[Chain, ...]
    cache: DynamicCache


@dataclass(frozen=True, eq=False)
class Copies:
    """All that was continued from a prefix, in place of one cache: ``length`` tokens so far."""

    length: int
    batches: tuple[Batch, ...]


Past = DynamicCache | Copies


def keeps_states(config: Any) -> bool:
    """Whether a model with this configuration has layers whose state is copied for each question."""
    return LINEAR in (getattr(config.get_text_config(), "layer_types", None) or ())


def chains_of(mask: NDArray[np.bool_]) -> list[Chain]:
    """The longest chains of a packed row, by its mask (T, T): each token is in one at least, after all that it sees."""
    seen: list[Chain] = [tuple(np.flatnonzero(row).tolist()) for row in mask]
    inner = {chain[:-1] for chain in seen}
    return [chain for chain in seen if chain not in inner]


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of keys, values and states."""
    return sum(tensor.nbytes for layer in cache.layers for tensor in _tensors(layer))


def copy_rows(cache: DynamicCache, rows: Sequence[int]) -> DynamicCache:
    """These rows of a cache, each as often as it is named, with tensors of their own: states are changed in place."""
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
    """As :meth:`MllmGrounder.forward <sam4mllm.grounding.mllm.MllmGrounder.forward>`, for a model whose layers keep states: logits (K,
    vocabulary) float32 at the positions ``keep`` (K,) of a row, and the states after it. A row that goes on from earlier ones has one token
    a chain.
    """
    continued = list(_first(scene, mask) if past is None else _next(past, mask))
    length = 0 if past is None else past.length
    found: dict[int, Tensor] = {}
    for batch, new in continued:
        rows = np.array(new)
        hidden = _forward(model, scene, ids[rows], offsets[rows], batch.cache)
        for row, indices in enumerate(new):
            found |= {index: hidden[row, place] for place, index in enumerate(indices)}
    logits = model.lm_head(torch.stack([found[index] for index in keep.tolist()])).float()
    return logits, Copies(length + len(ids), tuple(batch for batch, _ in continued))


def _first(scene: MllmScene, mask: NDArray[np.bool_]) -> Iterator[tuple[Batch, Sequence[Chain]]]:
    """The chains of a row that follows the prefix, in batches, with a copy of its states each, and what is to be read of them."""
    for same in _by_length(chains_of(mask)):
        yield Batch(tuple(same), copy_rows(scene.cache, [0] * len(same))), same


def _next(past: Copies, mask: NDArray[np.bool_]) -> Iterator[tuple[Batch, Sequence[Chain]]]:
    """The chains that a row of single tokens continues, by its mask (T, earlier tokens and T)."""
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
    """Hidden values (B, T, width) of tokens (B, T) that continue the rows of a cache, which grows."""
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
    """With its own tables of states."""
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(twin, name, dict(value))
    return twin


def _tensors(layer: Any) -> Iterator[Tensor]:
    for value in vars(layer).values():
        yield from (one for one in (value.values() if isinstance(value, dict) else (value,)) if isinstance(one, Tensor))
