"""What the pipeline asks of a segmenter that takes phrases itself, as SAM 3 does: all instances of a short noun phrase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sam4mllm.segmentation.protocol import Embedding, Segmenter


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a segmenter finds for a phrase by itself, best first.

    ``boxes_px`` (N, 4) float32 x1, y1, x2, y2; ``scores`` (N,) float64 in 0–1; ``masks`` (N, H, W) bool; ``presence`` in 0–1: the
    probability that there is any such thing in the image (from a model that gives none, the best score of all, also if it is below the
    threshold). ``note``: what a user should know about the result, empty if all is well.
    """

    boxes_px: NDArray[np.float32]
    scores: NDArray[np.float64]
    masks: NDArray[np.bool_]
    presence: float
    note: str = ""


@runtime_checkable
class ConceptSegmenter(Segmenter, Protocol):
    """A segmenter that takes phrases, too."""

    def find(self, embedding: Embedding, phrases: Sequence[str], threshold: float) -> list[Candidates]:
        """Find all instances of each phrase with a score of at least ``threshold``; the result has one entry for each phrase, in order."""
        ...
