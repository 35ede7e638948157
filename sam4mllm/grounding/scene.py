"""An image as :class:`~sam4mllm.grounding.mllm.MllmGrounder` keeps it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache

from sam4mllm.grounding.protocol import Scene


@dataclass(frozen=True, eq=False)
class MllmScene(Scene):
    """A scene with the KV cache of its prefix, the system prompt and the image, which has ``length`` tokens.

    Nothing writes to ``cache``: each use works on a copy. ``resized`` is (width, height) of the image as the processor resized it.
    """

    cache: DynamicCache
    length: int
    following: int
    """Position of the first token after the prefix."""
    rows: int
    """How many rows of position ids the model takes: three where time, height and width are counted apart, otherwise one."""
    resized: tuple[int, int]


def copy_cache(cache: DynamicCache) -> DynamicCache:
    """A cache that can grow on its own: it shares the tensors, which are never written to, for growing makes new ones."""
    twin: Any = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin  # type: ignore[no-any-return]


def own_scene(scene: Scene) -> MllmScene:
    """Return the scene as an MllmScene. Raises TypeError if another kind of grounder opened it."""
    if not isinstance(scene, MllmScene):
        raise TypeError("this scene was opened by another grounder")
    return scene
