"""Several images in one forward pass: their prefixes lie end to end in one KV cache, and each token sees only the prefix of its own image.

Nothing is padded, whatever the images' sizes, and each token's position counts on from the end of its own image. Two images of two and
three tokens, with a question ``A`` about the first and ``B`` about the second::

                   1st   2nd
                   prefixes      A A B
    position       0 1   0 1 2   2 3 3
    A              x x           x
    A              x x           x x
    B                    x x x       x

Attention is computed over all prefixes and masked, which costs more than over a token's own prefix alone. But the time of a pass of few
tokens is that of reading the weights, which all images share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sam4mllm.grounding.checkpoint import Encoded
from sam4mllm.grounding.scene import MllmScene, copy_cache, keeps_all

TOKENS_AT_ONCE = 1024
"""Most tokens of a pass that several images share. In larger passes arithmetic takes the time, not reading the weights, so that sharing
gains nothing."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """Scenes of one model. ``joined`` is the cache of all their prefixes, never written to; None for a single scene, which has its own."""

    scenes: tuple[MllmScene, ...]
    joined: DynamicCache | None = None

    @property
    def cache(self) -> DynamicCache:
        return self.scenes[0].cache if self.joined is None else self.joined

    @property
    def unread(self) -> Encoded | None:
        """The prefix of a single scene that the model has yet to read; None in all other cases."""
        return self.scenes[0].prefix.unread if self.joined is None else None

    @property
    def rows(self) -> int:
        """How many rows of position ids the model takes."""
        return self.scenes[0].rows

    def visible(self, of: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a mask (T, L): which of the L tokens of all prefixes each of T tokens sees. ``of`` (T,): the index of each one's scene."""
        owner = np.repeat(np.arange(len(self.scenes)), [scene.length for scene in self.scenes])
        visible: NDArray[np.bool_] = owner == of[:, None]
        return visible

    def following(self, of: NDArray[np.int64]) -> NDArray[np.int64]:
        """(T,) the position of the first token after each token's prefix."""
        return np.array([scene.following for scene in self.scenes])[of]


def bundle(scenes: Sequence[MllmScene]) -> Bundle:
    """Bundle one scene or more. Several may be given only if ``can_bundle`` holds for each."""
    if len(scenes) == 1:
        return Bundle(tuple(scenes))
    cache = copy_cache(scenes[0].cache)
    for layer, *same in zip(cache.layers, *(scene.cache.layers for scene in scenes), strict=True):
        assert isinstance(layer, DynamicLayer)
        layer.keys = torch.cat([one.keys for one in same], -2)
        layer.values = torch.cat([one.values for one in same], -2)
    return Bundle(tuple(scenes), cache)


def can_bundle(scene: MllmScene) -> bool:
    """Whether all layers keep all keys and values, and nothing else."""
    return scene.prefix.unread is not None or keeps_all(scene.cache)


def stretches(tokens: Sequence[int], most: int) -> Iterator[slice]:
    """Divide items, of which each has a number of ``tokens``, into slices of neighbours with at most ``most`` tokens together. An item that
    has more forms a slice by itself.

    >>> list(stretches([3, 4, 9, 1], most=8))
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    start, total = 0, 0
    for index, count in enumerate(tokens):
        if index > start and total + count > most:
            yield slice(start, index)
            start, total = index, 0
        total += count
    if tokens:
        yield slice(start, len(tokens))
