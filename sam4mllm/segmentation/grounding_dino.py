"""Grounding DINO (Liu et al., 2023) and MM-Grounding-DINO of transformers as a Detector: they find the boxes of a phrase.

Text and image meet only after the vision backbone, so the backbone's feature maps are what is kept of an image, and each phrase starts from
them. Each phrase is asked in a text of its own: in a text of several phrases, the words that score above a second threshold would have to
decide to which phrase a box belongs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sam4mllm.segmentation.detection import Detections
from sam4mllm.segmentation.module import PHRASES_AT_ONCE, ModuleSegmenter, numbers, tell_cut
from sam4mllm.segmentation.protocol import Embedding

MODEL_TYPES = ("grounding-dino", "mm-grounding-dino")
"""``model_type`` of the checkpoints that hold such a model."""

_SEEN: ContextVar[tuple[Tensor, ...]] = ContextVar("_SEEN")
"""The feature maps of the image that a thread asks about."""


@dataclass(frozen=True, eq=False)
class GroundingDinoEmbedding(Embedding):
    """``maps``: the backbone's feature maps (1, C, h, w), finest first; ``mask`` (1, h, w): which of the pixels that it saw are the
    image's.
    """

    maps: tuple[Tensor, ...]
    mask: Tensor


class _Seen(nn.Module):
    """Takes the backbone's place in the model and returns the feature maps in ``_SEEN``, for the model accepts only pixels as its input."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        alike = [one.expand(len(pixels), -1, -1, -1) for one in _SEEN.get()]
        return [(one, interpolate(mask[None].float(), size=one.shape[-2:])[0].bool()) for one in alike]


class GroundingDinoDetector(ModuleSegmenter):
    """Implements :class:`~sam4mllm.segmentation.detection.Detector`.

    Args:
        model: one of transformers' models of ``MODEL_TYPES`` with its weights, in eval mode. Its backbone is replaced, so it can no longer
            be called on its own.
        image_processor: the model's image processor.
        tokenizer: the model's tokenizer.
        source: what the model was loaded from, part of its identity.
        dtype: precision in which images are encoded.
    """

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, source: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(model, source, dtype)
        self._images = image_processor
        self._tokenizer = tokenizer
        self._backbone = model.model.backbone.conv_encoder.model
        model.model.backbone.conv_encoder = _Seen(model.model.backbone.conv_encoder)

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> GroundingDinoEmbedding:
        height, width = image.shape[:2]
        taken = self._images(images=np.array(image), return_tensors="pt")
        with self.precision():
            found = self._backbone(taken["pixel_values"].to(self.device), return_dict=True).feature_maps
        maps, mask = tuple(one.to(self._dtype) for one in found), taken["pixel_mask"].to(self.device, torch.bool)
        return GroundingDinoEmbedding(width, height, mask.nbytes + sum(one.nbytes for one in maps), maps, mask)

    @torch.inference_mode()
    def find_boxes(self, embedding: Embedding, phrases: Sequence[str], threshold: float) -> list[Detections]:
        if not isinstance(embedding, GroundingDinoEmbedding):
            raise TypeError("this embedding was made by another detector")
        found: list[Detections] = []
        for start in range(0, len(phrases), PHRASES_AT_ONCE):
            asked = phrases[start : start + PHRASES_AT_ONCE]
            notes = [tell_cut(self._tokenizer, as_text(phrase), self.model.config.max_text_len) for phrase in asked]
            found += [_detections(*one, embedding, threshold) for one in zip(*self._ask(embedding, asked), notes, strict=True)]
        return found

    def _ask(self, embedding: GroundingDinoEmbedding, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return logits (P, N, T) of N boxes for the T tokens of each of P phrases, and the boxes (P, N, 4): centre x, y, width and height
        as shares of the image's sides.
        """
        most = self.model.config.max_text_len
        texts = self._tokenizer(
            [as_text(phrase) for phrase in phrases],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=most,
            return_token_type_ids=True,
        ).to(self.device)
        mask = embedding.mask.expand(len(phrases), -1, -1)
        pixels = torch.zeros(1, device=self.device).expand(len(phrases), 3, *mask.shape[1:])  # only its shape is looked at
        token = _SEEN.set(tuple(one.float() for one in embedding.maps))
        try:
            answer = self.model(pixel_values=pixels, pixel_mask=mask, **texts)
        finally:
            _SEEN.reset(token)
        return answer.logits, answer.pred_boxes


def as_text(phrase: str) -> str:
    """Return a phrase in the form that these models were trained on: in lower case, with a full stop at its end. Full stops and question
    marks within it are removed, because they would make it several phrases.
    """
    return " ".join(re.sub(r"[.?]", " ", phrase.lower()).split()) + "."


def _detections(logits: Tensor, boxes: Tensor, note: str, embedding: GroundingDinoEmbedding, threshold: float) -> Detections:
    """Return the detections of one phrase. A box's score is its probability for the token that fits it best."""
    scores = logits.sigmoid().amax(dim=-1)
    order = scores.argsort(descending=True, stable=True)
    kept = order[scores[order] >= threshold]
    centres, halves = boxes[kept, :2], boxes[kept, 2:] / 2
    corners = torch.cat([centres - halves, centres + halves], dim=1)
    scaled = corners * corners.new_tensor([embedding.width, embedding.height] * 2)
    return Detections(scaled.cpu().numpy(), numbers(scores[kept]), float(scores[order[0]]), note)
