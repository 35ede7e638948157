"""Segment Anything (the segment-anything package) as a Segmenter: its own transforms and classes, without its predictor's state."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.utils.amg import calculate_stability_score
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from sam4mllm.segmentation.protocol import Embedding, Masks, Prompt

STABILITY_OFFSET = 1.0
"""How far the threshold is raised and lowered (segment-anything's automatic mask generator)."""


@dataclass(frozen=True, eq=False)
class SamEmbedding(Embedding):
    """``features`` (1, C, h, w) and ``input_size`` (height, width) of the image in the model's square frame."""

    features: Tensor
    input_size: tuple[int, int]


class SamSegmenter:
    """Implements :class:`~sam4mllm.segmentation.protocol.Segmenter`.

    Args:
        model: a Sam with its weights, in eval mode.
        source: what it was loaded from, part of its identity.
    """

    def __init__(self, model: Sam, source: str) -> None:
        self.model = model
        self._transform = ResizeLongestSide(model.image_encoder.img_size)
        self._source = source

    @property
    def identity(self) -> str:
        return hashlib.sha256(self._source.encode()).hexdigest()[:8]

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> SamEmbedding:
        height, width = image.shape[:2]
        resized = torch.from_numpy(self._transform.apply_image(image)).permute(2, 0, 1)[None].to(self.model.device)
        features = self.model.image_encoder(self.model.preprocess(resized))
        return SamEmbedding(width, height, features.numel() * features.element_size(), features, (resized.shape[2], resized.shape[3]))

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        if not isinstance(embedding, SamEmbedding):
            raise TypeError("this embedding was made by another segmenter")
        alike: dict[tuple[bool, int], list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            alike[prompt.box_px is not None, len(prompt.labels)].append(index)
        found: dict[int, Masks] = {}
        for indices in alike.values():
            decoded = self._decode_alike(embedding, [prompts[index] for index in indices])
            found.update(zip(indices, decoded, strict=True))
        return [found[index] for index in range(len(prompts))]

    def _decode_alike(self, embedding: SamEmbedding, prompts: Sequence[Prompt]) -> list[Masks]:
        """Masks of prompts that have as many points, and a box or none, in one batch: no padding, so each is as if alone."""
        sparse, dense = self.model.prompt_encoder(
            points=self._points(embedding, prompts), boxes=self._boxes(embedding, prompts), masks=None
        )
        logits, predicted = self.model.mask_decoder(
            image_embeddings=embedding.features,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        stability = calculate_stability_score(logits, self.model.mask_threshold, STABILITY_OFFSET)
        results = []
        for index in range(len(prompts)):  # one at a time: full-size logits of many prompts would not fit
            full = self.model.postprocess_masks(logits[index : index + 1], embedding.input_size, (embedding.height, embedding.width))
            results.append(
                Masks(
                    masks=(full[0] > self.model.mask_threshold).cpu().numpy(),
                    predicted_iou=predicted[index].cpu().double().numpy(),
                    stability=stability[index].cpu().double().numpy(),
                )
            )
        return results

    def _points(self, embedding: SamEmbedding, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor] | None:
        if not len(prompts[0].labels):
            return None
        coordinates = np.stack([prompt.points_px for prompt in prompts])
        moved = self._transform.apply_coords(coordinates, (embedding.height, embedding.width))
        labels = np.stack([prompt.labels for prompt in prompts])
        return torch.as_tensor(moved, dtype=torch.float, device=self.model.device), torch.as_tensor(labels, device=self.model.device)

    def _boxes(self, embedding: SamEmbedding, prompts: Sequence[Prompt]) -> Tensor | None:
        boxes = [prompt.box_px for prompt in prompts if prompt.box_px is not None]
        if not boxes:
            return None
        moved = self._transform.apply_boxes(np.stack(boxes), (embedding.height, embedding.width))
        return torch.as_tensor(moved, dtype=torch.float, device=self.model.device)
