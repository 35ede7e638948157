"""Layers that see so far back, where that is no mere bound: a mask for each kind of layer, and a cache that forgets nothing.

Gemma 4's layers with a window have heads and rotations of their own, so they cannot be made into the others, and a window of 512 or 1,024
tokens is shorter than some conversations. Its model takes a mask for each kind of layer. A packed row's is made of what a token sees in
all: its conversation, in order and without a gap, of which such a layer sees the last tokens. So a question in a row sees as far back as
in a prompt of its own, wherever in the row it stands.
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
"""Types of text models that take a mask for each kind of layer here."""


def window_of(config: Any) -> int | None:
    """How many tokens a layer with a window sees, the last one included; None where none has one, or it could be lifted."""
    text = config.get_text_config()
    windowed = getattr(text, "model_type", None) in WINDOWED and SLIDING in text.layer_types
    return int(text.sliding_window) if windowed else None


def new_cache(config: Any) -> DynamicCache:
    """An empty cache. What is out of a layer's window is kept as well, for a row's tokens have windows of their own."""
    return DynamicCache(config=config.get_text_config()) if window_of(config) is None else DynamicCache()


def masks(model: Any, visible: Tensor, mutual: Tensor | None = None) -> Tensor | dict[str, Tensor]:
    """The attention mask that a model takes for tokens (T,) that see what ``visible`` (T, S) bool says of all, T the last of S; one for
    each kind of layer where they differ.

    ``mutual`` (L,) bool is that of :class:`~sam4mllm.grounding.checkpoint.Encoded`, whose tokens are then the first of T and of S.
    """
    window = window_of(model.config)
    seen = visible if window is None else last_seen(visible, window)
    if mutual is not None:
        seen, length = seen.clone(), len(mutual)
        seen[:length, :length] |= (mutual[:, None] & mutual).triu(1).to(seen.device)
    nearby = additive(seen[None, None], model.dtype)
    return nearby if window is None else {FULL: additive(visible[None, None], model.dtype), SLIDING: nearby}


def last_seen(visible: Tensor, window: int) -> Tensor:
    """Of what each token sees (T, S) bool, the last ``window``."""
    after = visible.flip(1).cumsum(1, dtype=torch.int32).flip(1)
    return visible & (after <= window)
