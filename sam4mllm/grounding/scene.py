"""An image as :class:`~sam4mllm.grounding.mllm.MllmGrounder` keeps it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache

from sam4mllm.grounding.protocol import Scene


@dataclass(frozen=True, eq=False)
class MllmScene(Scene):
    """The prefix's keys and values; never written to, each use works on a shallow copy."""

    cache: DynamicCache
    length: int
    following: int
    """Position of the first token after the prefix."""
    rows: int
    """Rows of positions that the model takes."""
    resized: tuple[int, int]


def copy_cache(cache: DynamicCache) -> DynamicCache:
    """A cache that can grow on its own: it shares the tensors, which are never written to, for growing makes new ones."""
    twin: Any = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin  # type: ignore[no-any-return]


def own_scene(scene: Scene) -> MllmScene:
    """Raises TypeError if the scene was opened by another kind of grounder."""
    if not isinstance(scene, MllmScene):
        raise TypeError("this scene was opened by another grounder")
    return scene
