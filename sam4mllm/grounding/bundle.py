"""Several images in one pass: their prefixes lie end to end in one cache, and each token sees that of its own image alone.

Nothing is padded, whatever the images' sizes, and positions go on from each image's own end. Two images of two and three tokens, with a
question ``A`` about the first and ``B`` about the second::

                   1st   2nd
                   prefixes      A A B
    position       0 1   0 1 2   2 3 3
    A              x x           x
    A              x x           x x
    B                    x x x       x

A token's attention is counted over all prefixes, which costs more than its own would; a pass of few tokens costs what reading the weights
costs, and that is shared by all images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sam4mllm.grounding.scene import MllmScene, copy_cache

TOKENS_AT_ONCE = 1024
"""Tokens of a pass up to which images share it. With more, arithmetic takes the time, not the weights, and sharing gains nothing."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """Scenes of one model, and the cache of all their prefixes; never written to."""

    scenes: tuple[MllmScene, ...]
    cache: DynamicCache

    @property
    def rows(self) -> int:
        """Rows of positions that the model takes."""
        return self.scenes[0].rows

    def visible(self, of: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(T, L) which tokens of the prefixes the tokens of the scenes ``of`` (T,) see."""
        owner = np.repeat(np.arange(len(self.scenes)), [scene.length for scene in self.scenes])
        visible: NDArray[np.bool_] = owner == of[:, None]
        return visible

    def following(self, of: NDArray[np.int64]) -> NDArray[np.int64]:
        """(T,) the position of the first token after each token's prefix."""
        return np.array([scene.following for scene in self.scenes])[of]


def bundle(scenes: Sequence[MllmScene]) -> Bundle:
    """At least one scene; several only where ``can_bundle`` says so."""
    if len(scenes) == 1:
        return Bundle(tuple(scenes), scenes[0].cache)
    cache = copy_cache(scenes[0].cache)
    for layer, *same in zip(cache.layers, *(scene.cache.layers for scene in scenes), strict=True):
        assert isinstance(layer, DynamicLayer)
        layer.keys = torch.cat([one.keys for one in same], -2)
        layer.values = torch.cat([one.values for one in same], -2)
    return Bundle(tuple(scenes), cache)


def can_bundle(scene: MllmScene) -> bool:
    """Whether all layers keep all keys and values, and nothing else."""
    return all(type(layer) is DynamicLayer for layer in scene.cache.layers)


def stretches(tokens: Sequence[int], most: int) -> Iterator[slice]:
    """Neighbours that go into a pass together: as many as have at most ``most`` tokens, and at least one.

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
