"""What the pipeline asks of a promptable segmenter: take an image in once, then turn boxes and points into masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sam4mllm.values import Masks, Prompt


@dataclass(frozen=True)
class Embedding:
    """An image as a segmenter keeps it: opaque, immutable, safe to share between threads. ``width`` and ``height`` are the original
    image's, in pixels. ``nbytes`` is the memory that a cache should count for it.
    """

    width: int
    height: int
    nbytes: int


class ImageModel(Protocol):
    """A model that takes in an image once and returns what it made of it; the model itself keeps no image."""

    @property
    def identity(self) -> str:
        """What shapes its answers, as a short hash."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory of its weights."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the weights to a device. An embedding can be used only on the device where it was made."""
        ...

    def encode(self, image: NDArray[np.uint8]) -> Embedding:
        """Take in an image (H, W, 3) RGB once, for any number of questions."""
        ...


class Segmenter(ImageModel, Protocol):
    """A promptable segmentation model."""

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        """Candidate masks of each prompt, one entry a prompt in order."""
        ...
