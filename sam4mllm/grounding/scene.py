"""An image as :class:`~sam4mllm.grounding.mllm.MllmGrounder` keeps it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sam4mllm.grounding.checkpoint import Encoded
from sam4mllm.grounding.protocol import Scene


class Prefix:
    """The system prompt and the image of a scene: the KV cache after them, or the inputs that the model has yet to read.

    The first question may be read with them in one pass (:mod:`sam4mllm.grounding.prefix`), which then calls ``keep``. If the cache is
    needed before, ``read`` makes it. Threads that do this at the same time make equal caches, of which one is kept.
    """

    def __init__(self, held: DynamicCache | Encoded, read: Callable[[Encoded], DynamicCache] | None = None) -> None:
        self._held = held
        self._read = read

    @property
    def unread(self) -> Encoded | None:
        """The inputs that the model has yet to read; None once there is a cache."""
        return self._held if isinstance(self._held, Encoded) else None

    @property
    def cache(self) -> DynamicCache:
        read, held = self._read, self._held  # in this order: ``keep`` lets go of what reads after it has the cache
        if isinstance(held, Encoded):
            assert read is not None
            held = read(held)
            self.keep(held)
        return held

    def keep(self, cache: DynamicCache) -> None:
        """Keep the cache after the prefix, and let go of the inputs and of the model that would read them."""
        self._held = cache
        self._read = None


@dataclass(frozen=True, eq=False)
class MllmScene(Scene):
    """A scene with its prefix, the system prompt and the image, which has ``length`` tokens.

    ``resized`` is (width, height) of the image as the processor resized it.
    """

    prefix: Prefix
    length: int
    following: int
    """Position of the first token after the prefix."""
    rows: int
    """How many rows of position ids the model takes: three where time, height and width are counted apart, otherwise one."""
    resized: tuple[int, int]

    @property
    def cache(self) -> DynamicCache:
        """The KV cache after the prefix. Nothing writes to it: each use works on a copy."""
        return self.prefix.cache

    def read(self) -> None:
        _ = self.prefix.cache


def copy_cache(cache: DynamicCache) -> DynamicCache:
    """A cache that can grow on its own: it shares the tensors, which are never written to, for growing makes new ones."""
    twin: Any = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin  # type: ignore[no-any-return]


def keeps_all(cache: DynamicCache) -> bool:
    """Whether all layers of a cache keep all keys and values, and nothing else."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def own_scene(scene: Scene) -> MllmScene:
    """Return the scene as an MllmScene. Raises TypeError if another kind of grounder opened it."""
    if not isinstance(scene, MllmScene):
        raise TypeError("this scene was opened by another grounder")
    return scene
