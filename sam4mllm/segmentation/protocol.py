"""What the pipeline asks of a promptable segmenter: take an image in once, then turn boxes and points into masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sam4mllm.errors import PromptError


@dataclass(frozen=True)
class Embedding:
    """An image as a segmenter keeps it: opaque, immutable, safe to share between threads. ``nbytes`` is what a cache should count
    for it.
    """

    width: int
    height: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class Prompt:
    """A box, points, or both, in pixels of the original image.

    ``box_px`` (4,) float32 x1, y1, x2, y2 or None; ``points_px`` (K, 2) float32; ``labels`` (K,) int64, 1 on the object, 0 off it;
    ``single``: the prompt leaves no doubt, so one candidate is enough (a segmenter that always has several may give them all).
    Raises PromptError if there is nothing in it, the shapes do not match, or a number is not finite.
    """

    box_px: NDArray[np.float32] | None
    points_px: NDArray[np.float32]
    labels: NDArray[np.int64]
    single: bool = False

    def __post_init__(self) -> None:
        if self.points_px.ndim != 2 or self.points_px.shape[1] != 2 or self.labels.shape != (len(self.points_px),):
            raise PromptError(f"points must be (K, 2) with (K,) labels, not {self.points_px.shape} with {self.labels.shape}")
        if self.box_px is not None and self.box_px.shape != (4,):
            raise PromptError(f"a box has four numbers, not {self.box_px.shape}")
        if self.box_px is None and not len(self.points_px):
            raise PromptError("a prompt needs a box or a point")
        if not np.isfinite(self.points_px).all() or (self.box_px is not None and not np.isfinite(self.box_px).all()):
            raise PromptError("a prompt's coordinates must be finite numbers")
        if not np.isin(self.labels, (0, 1)).all():
            raise PromptError("a point's label is 1 (on the object) or 0 (off it)")


@dataclass(frozen=True, eq=False)
class Masks:
    """The candidates for one prompt: ``masks`` (N, H, W) bool, ``predicted_iou`` (N,) float64, ``stability`` (N,) float64.

    N is at least 1. Stability is the overlap of the mask at a raised and at a lowered threshold.
    """

    masks: NDArray[np.bool_]
    predicted_iou: NDArray[np.float64]
    stability: NDArray[np.float64]


class Segmenter(Protocol):
    """A promptable segmentation model that keeps no image."""

    @property
    def identity(self) -> str:
        """What shapes its masks, as a short hash."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory of its weights."""
        ...

    def to(self, device: torch.device) -> None:
        """Move its weights. An embedding is decoded where it was made."""
        ...

    def encode(self, image: NDArray[np.uint8]) -> Embedding:
        """Take in an image (H, W, 3) RGB once, for any number of prompts."""
        ...

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        """Candidate masks of each prompt, one entry a prompt in order."""
        ...
