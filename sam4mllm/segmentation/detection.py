"""A detector that takes phrases, combined with any segmenter that draws its boxes: together they are a segmenter that takes phrases."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sam4mllm.segmentation.concept import Candidates
from sam4mllm.segmentation.former import mask_logits_of
from sam4mllm.segmentation.module import AT_ONCE
from sam4mllm.segmentation.protocol import Embedding, ImageModel, Segmenter
from sam4mllm.values import Masks, Prompt


@dataclass(frozen=True, eq=False)
class Detections:
    """The boxes that a detector finds for a phrase, best first.

    ``boxes_px`` (N, 4) float32 x1, y1, x2, y2; ``scores`` (N,) float64 in 0–1; ``presence`` in 0–1 and ``note``: as in
    :class:`~sam4mllm.segmentation.concept.Candidates`.
    """

    boxes_px: NDArray[np.float32]
    scores: NDArray[np.float64]
    presence: float
    note: str = ""


class Detector(ImageModel, Protocol):
    """A model that finds the boxes of a phrase."""

    def find_boxes(self, embedding: Embedding, phrases: Sequence[str], threshold: float) -> list[Detections]:
        """Find all boxes of each phrase with a score of at least ``threshold``; the result has one entry for each phrase, in order."""
        ...


@dataclass(frozen=True, eq=False)
class DetectingEmbedding(Embedding):
    """An image as the detector and the segmenter keep it."""

    detector: Embedding
    segmenter: Embedding


class DetectingSegmenter:
    """Implements :class:`~sam4mllm.segmentation.concept.ConceptSegmenter`: the detector finds, the segmenter draws each box and takes
    prompts as it does alone.
    """

    def __init__(self, detector: Detector, segmenter: Segmenter) -> None:
        self.detector = detector
        self.segmenter = segmenter

    @property
    def identity(self) -> str:
        return hashlib.sha256(f"{self.detector.identity}+{self.segmenter.identity}".encode()).hexdigest()[:8]

    @property
    def adapter(self) -> str:
        """The hash of the adapter that the segmenter's mask decoder has; empty if it has none."""
        return str(getattr(self.segmenter, "adapter", ""))

    @property
    def nbytes(self) -> int:
        return self.detector.nbytes + self.segmenter.nbytes

    def to(self, device: torch.device) -> None:
        self.detector.to(device)
        self.segmenter.to(device)

    def encode(self, image: NDArray[np.uint8]) -> DetectingEmbedding:
        height, width = image.shape[:2]
        detector, segmenter = self.detector.encode(image), self.segmenter.encode(image)
        return DetectingEmbedding(width, height, detector.nbytes + segmenter.nbytes, detector, segmenter)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        return self.segmenter.decode(_own(embedding).segmenter, prompts)

    def as_logits(self, embedding: Embedding, mask: NDArray[np.bool_]) -> NDArray[np.float32] | None:
        """See :class:`~sam4mllm.segmentation.former.MaskTaker`; the logits are those that the segmenter takes, None if it takes none."""
        return mask_logits_of(self.segmenter, _own(embedding).segmenter, mask)

    def find(self, embedding: Embedding, phrases: Sequence[str], threshold: float) -> list[Candidates]:
        kept = _own(embedding)
        found = self.detector.find_boxes(kept.detector, phrases, threshold)
        drawn = iter(self._draw(kept.segmenter, [box_px for detections in found for box_px in detections.boxes_px]))
        results = []
        for one in found:
            masks = np.zeros((len(one.boxes_px), kept.height, kept.width), np.bool_)
            for index in range(len(masks)):
                masks[index] = next(drawn)
            results.append(Candidates(one.boxes_px, one.scores, masks, one.presence, one.note))
        return results

    def _draw(self, embedding: Embedding, boxes_px: Sequence[NDArray[np.float32]]) -> list[NDArray[np.bool_]]:
        """(H, W) bool of each box: of its candidates, the one that is predicted to be best."""
        prompts = [Prompt(box_px, np.zeros((0, 2), np.float32), np.zeros(0, np.int64)) for box_px in boxes_px]
        drawn = []
        for start in range(0, len(prompts), AT_ONCE):  # the candidates of hundreds of boxes at once would not fit into memory
            decoded = self.segmenter.decode(embedding, prompts[start : start + AT_ONCE])
            drawn += [masks.mask(masks.best) for masks in decoded]
        return drawn


def _own(embedding: Embedding) -> DetectingEmbedding:
    if not isinstance(embedding, DetectingEmbedding):
        raise TypeError("this embedding was made by another segmenter")
    return embedding
