"""An image as :class:`~sam4mllm.grounding.mllm.MllmGrounder` keeps it."""

from __future__ import annotations

from dataclasses import dataclass

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
