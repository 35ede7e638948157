"""The prefix of a scene, the system prompt and the image: read by the model alone, or in one pass with the first question about it.

A pass of few tokens takes as long as reading the weights, and a prefix that is read with its first question saves one. Two tokens of an
image with the question ``A B`` and, apart from it, ``C``::

                prefix  question
                1 2     A B C
    1           x
    2           x x
    A           x x     x
    B           x x     x x
    C           x x         x

:func:`read_alone` is the reference; tests compare the two for every family.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sam4mllm.grounding.checkpoint import Encoded
from sam4mllm.grounding.copying import copy_rows
from sam4mllm.grounding.encoders import position_ids, with_text
from sam4mllm.grounding.head import logits_of
from sam4mllm.grounding.scene import MllmScene, copy_cache
from sam4mllm.grounding.windows import masks, new_cache

LONGEST = 4096
"""Most tokens of a prefix that waits for its first question. At that length arithmetic takes the time, not reading the weights; and a pass
with both needs a mask, which grows with the square of all its tokens: 134 MB in half precision with a full row (MAX_ROW) of questions."""


@torch.inference_mode()
def read_alone(model: Any, encoded: Sequence[Encoded]) -> list[DynamicCache]:
    """Run several images, whose inputs have the same shapes, through the model in one pass. Return the cache after each."""
    inputs = {name: torch.cat([one.inputs[name] for one in encoded]).to(model.device) for name in encoded[0].inputs}
    positions = torch.cat([one.positions for one in encoded], 1).to(model.device)
    cache = new_cache(model.config)
    model.model(**inputs, position_ids=position_ids(positions), past_key_values=cache, use_cache=True, return_dict=True)
    return [cache] if len(encoded) == 1 else [copy_rows(cache, [row]) for row in range(len(encoded))]


@torch.inference_mode()
def read_one_token(model: Any, token: int) -> DynamicCache:
    """Return the cache after a token by itself. It shows what the cache of a prefix will be, and how large."""
    cache = new_cache(model.config)
    ids = torch.tensor([[token]], device=model.device)
    model.model(input_ids=ids, position_ids=torch.zeros_like(ids), past_key_values=cache, use_cache=True, return_dict=True)
    return cache


@torch.inference_mode()
def read_with(
    model: Any,
    scene: MllmScene,
    encoded: Encoded,
    ids: NDArray[np.int64],
    offsets: NDArray[np.int64],
    mask: NDArray[np.bool_],
    keep: NDArray[np.int64],
) -> tuple[Tensor, DynamicCache]:
    """Run a scene's prefix, ``encoded``, and the packed row after it through the model in one pass, and keep the prefix's cache in the
    scene.

    The arguments and what is returned are those of :meth:`MllmGrounder.forward <sam4mllm.grounding.mllm.MllmGrounder.forward>`.
    """
    prefix, length = scene.length, len(ids)
    visible = torch.ones(prefix + length, prefix + length, dtype=torch.bool).tril()
    visible[prefix:, prefix:] = torch.from_numpy(mask)
    inputs = with_text(encoded, torch.from_numpy(ids), torch.from_numpy(offsets))
    cache = new_cache(model.config)
    output = model.model(
        **{name: tensor.to(model.device) for name, tensor in inputs.items()},
        attention_mask=masks(model, visible.to(model.device), encoded.mutual),
        past_key_values=cache,
        use_cache=True,
        return_dict=True,
    )
    scene.prefix.keep(_beginning(cache, prefix))
    return logits_of(model, output.last_hidden_state[0, torch.from_numpy(keep + prefix).to(model.device)]), cache


def _beginning(cache: DynamicCache, length: int) -> DynamicCache:
    """A copy of the cache after the first ``length`` tokens: with views of them, the scene would keep the questions' part alive, too."""
    twin = copy_cache(cache)
    for layer in twin.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        layer.keys, layer.values = layer.keys[..., :length, :].clone(), layer.values[..., :length, :].clone()
    return twin
