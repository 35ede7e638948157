"""Many continuations of one prefix in a single row: the block mask and the restarted positions.

Segments form a tree below a shared prefix (the system prompt and the image, say). A token sees the whole prefix, all of its
segment's ancestors, and its own segment up to itself; it never sees a sibling. Positions go on from the end of the parent, so every
segment stands where it would stand if it were alone. One forward pass over the row therefore gives each segment exactly what a
separate prompt would give it.

A phrase ``A`` with two questions ``a`` and ``b`` below it, and a second phrase ``B``, after a prefix of three tokens::

                   prefix   A A a b b B
    position       0 1 2    3 4 5 5 6 3
    A              x x x    x
    A              x x x    x x
    a              x x x    x x x
    b              x x x    x x   x
    b              x x x    x x   x x
    B              x x x              x

The same functions serve training and inference, so both see the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = -1


@dataclass(frozen=True)
class Segment:
    """Tokens that continue ``parent``: the index of an earlier segment of the row, or ROOT for the shared prefix."""

    ids: tuple[int, ...]
    parent: int = ROOT


@dataclass(frozen=True, eq=False)
class PackedRow:
    """Segments laid end to end.

    ``ids`` (T,) int64 are the token ids. ``offsets`` (T,) int64 are the tokens' positions, counted from the first position after the
    prefix. ``mask`` (T, T) bool is True where a token (first axis) sees another (second axis); the prefix, which all see, is not in it.
    ``starts`` (S,) int64 are the indices at which the segments begin in the row, ``lengths`` (S,) int64 how many tokens they have.
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    mask: NDArray[np.bool_]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @property
    def lasts(self) -> NDArray[np.int64]:
        """(S,) index in the row of each segment's last token."""
        return self.starts + self.lengths - 1


def pack(segments: Sequence[Segment]) -> PackedRow:
    """Lay segments end to end. Raises ValueError on an empty segment or a parent that does not come before its child."""
    count = len(segments)
    lengths = np.array([len(segment.ids) for segment in segments], dtype=np.int64)
    if count and lengths.min() == 0:
        raise ValueError("a segment needs at least one token")
    ends = np.cumsum(lengths)
    starts = ends - lengths
    ancestry = np.eye(count, dtype=np.bool_)
    first = np.zeros(count, dtype=np.int64)  # offset of each segment's first token
    for index, segment in enumerate(segments):
        if segment.parent == ROOT:
            continue
        if not 0 <= segment.parent < index:
            raise ValueError(f"segment {index} must come after its parent, not before ({segment.parent})")
        ancestry[index] |= ancestry[segment.parent]
        first[index] = first[segment.parent] + lengths[segment.parent]
    owner = np.repeat(np.arange(count), lengths)
    total = int(lengths.sum())
    within = np.arange(total) - starts[owner] if count else np.zeros(0, np.int64)
    order = np.arange(total)
    mask = ancestry[owner[:, None], owner[None]] & (order[:, None] >= order[None])
    ids = np.array([token for segment in segments for token in segment.ids], dtype=np.int64)
    return PackedRow(ids, first[owner] + within, mask, starts, lengths)


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask (True = visible) as the additive mask that transformers passes through unchanged: 0 where visible, the dtype's
    least value elsewhere.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
