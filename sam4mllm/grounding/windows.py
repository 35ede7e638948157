"""Sliding-window attention in packed rows: an attention mask for each kind of layer, and a KV cache that drops nothing.

In most families the window can be lifted (:func:`~sam4mllm.grounding.families.see_everything`), but not in Gemma 4: its sliding-window
layers have other heads and rotary embeddings than its full-attention layers, and a window of 512 or 1,024 tokens is shorter than some
conversations. The model takes a mask for each kind of layer. The tokens that a token of a packed row may see are its own conversation, in
order and without a gap; a sliding-window layer's mask keeps the last ``window`` of them. So a question in a packed row sees as far back as
in a prompt of its own, wherever it stands in the row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sam4mllm.grounding.packing import additive

FULL, SLIDING = "full_attention", "sliding_attention"
"""What transformers calls the two kinds in ``layer_types``."""
WINDOWED = frozenset({"gemma4_text"})
"""The ``model_type`` of text models whose windows stay, so that they are given a mask for each kind of layer."""


def window_of(config: Any) -> int | None:
    """Return how many tokens a sliding-window layer sees, the token itself included. None if the model has no such layers, or is of a type
    whose window is lifted.
    """
    text = config.get_text_config()
    windowed = getattr(text, "model_type", None) in WINDOWED and SLIDING in text.layer_types
    return int(text.sliding_window) if windowed else None


def new_cache(config: Any) -> DynamicCache:
    """Return an empty cache. Where windows stay, tokens outside of a window are kept too, because each token of a packed row has its own
    window.
    """
    return DynamicCache(config=config.get_text_config()) if window_of(config) is None else DynamicCache()


def masks(model: Any, visible: Tensor, mutual: Tensor | None = None) -> Tensor | dict[str, Tensor]:
    """Return the attention mask for T new tokens, which are the last of S tokens in all; or one mask for each kind of layer, by its name,
    where windows stay.

    ``visible`` (T, S) bool says which tokens each new token sees. ``mutual`` (L,) bool is that of
    :class:`~sam4mllm.grounding.checkpoint.Encoded`; with it, the L tokens of the image's prefix are the first of the new ones, and S is T.
    """
    window = window_of(model.config)
    seen = visible if window is None else last_seen(visible, window)
    if mutual is not None:
        seen, length = seen.clone(), len(mutual)
        seen[:length, :length] |= (mutual[:, None] & mutual).triu(1).to(seen.device)
    nearby = additive(seen[None, None], model.dtype)
    return nearby if window is None else {FULL: additive(visible[None, None], model.dtype), SLIDING: nearby}


def last_seen(visible: Tensor, window: int) -> Tensor:
    """Restrict a mask ``visible`` (T, S) bool to the last ``window`` tokens that each token sees."""
    after = visible.flip(1).cumsum(1, dtype=torch.int32).flip(1)
    return visible & (after <= window)
