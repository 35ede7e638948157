"""Segment Anything (the segment-anything package) as a Segmenter: its own transforms and classes, without its predictor's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from sam4mllm.segmentation.enlarging import Enlarging
from sam4mllm.segmentation.former import mask_as_logits, stack_logits
from sam4mllm.segmentation.module import ModuleSegmenter, candidates_of, decode_alike
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Masks, Prompt


@dataclass(frozen=True, eq=False)
class SamEmbedding(Embedding):
    """``features`` (1, C, h, w) of the image with its padding, and ``input_size``, its (height, width) in the model's square frame without
    the padding.
    """

    features: Tensor
    input_size: tuple[int, int]


class SamSegmenter(ModuleSegmenter):
    """Implements :class:`~sam4mllm.segmentation.former.MaskTaker`.

    Args:
        model: a Sam with its weights, in eval mode.
        source: what it was loaded from, part of its identity.
        dtype: precision in which images are encoded.
    """

    def __init__(self, model: Any, source: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(model, source, dtype)
        self._transform = ResizeLongestSide(self._side())

    def _side(self) -> int:
        """The side of the square frame in which prompts are given, in pixels."""
        side: int = self.model.image_encoder.img_size
        return side

    @property
    def _grid(self) -> int:
        """The side, in cells, of the grid of mask logits, both of former masks in prompts and of the masks that the model draws."""
        side: int = self.model.prompt_encoder.mask_input_size[0]
        return side

    def _pixels(self, image: NDArray[np.uint8]) -> Tensor:
        """(1, 3, h, w), ready for the image encoder."""
        resized = torch.from_numpy(self._transform.apply_image(image)).permute(2, 0, 1)[None].to(self.device)
        pixels: Tensor = self.model.preprocess(resized)
        return pixels

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> SamEmbedding:
        height, width = image.shape[:2]
        pixels = self._pixels(image)
        with self.precision():
            features = self.model.image_encoder(pixels).to(self._dtype)
        input_size = self._transform.get_preprocess_shape(height, width, self._transform.target_length)
        return SamEmbedding(width, height, features.nbytes, features, input_size)

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        if not isinstance(embedding, SamEmbedding):
            raise TypeError("this embedding was made by another segmenter")
        return decode_alike(prompts, partial(self._decode_alike, embedding))

    def _decode_alike(self, embedding: SamEmbedding, prompts: Sequence[Prompt]) -> list[Masks]:
        threshold = self.model.mask_threshold
        how = Enlarging((embedding.height, embedding.width), self._transform.target_length, embedding.input_size, threshold)
        return candidates_of(*self.logits(embedding, prompts), how)

    def as_logits(self, embedding: Embedding, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        if not isinstance(embedding, SamEmbedding):
            raise TypeError("this embedding was made by another segmenter")
        return mask_as_logits(mask, embedding.input_size, self._transform.target_length, self._grid)

    def logits(self, embedding: SamEmbedding, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Return mask logits (P, N, h, w) and predicted IoU (P, N) of P prompts that are alike (see ``decode_alike``).

        Raises PromptError if the logits of a former mask have another grid.
        """
        former = stack_logits(prompts, self._grid)
        sparse, dense = self.model.prompt_encoder(
            points=self._points(embedding, prompts),
            boxes=self._boxes(embedding, prompts),
            masks=None if former is None else torch.as_tensor(former, device=self.device),
        )
        logits, predicted = self.model.mask_decoder(
            image_embeddings=embedding.features.float(),
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=not prompts[0].single,
        )
        return logits, predicted

    def _points(self, embedding: SamEmbedding, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor] | None:
        if not len(prompts[0].labels):
            return None
        coordinates = np.stack([prompt.points_px for prompt in prompts])
        moved = self._transform.apply_coords(coordinates, (embedding.height, embedding.width))
        labels = np.stack([prompt.labels for prompt in prompts])
        return torch.as_tensor(moved, dtype=torch.float, device=self.device), torch.as_tensor(labels, device=self.device)

    def _boxes(self, embedding: SamEmbedding, prompts: Sequence[Prompt]) -> Tensor | None:
        boxes = [prompt.box_px for prompt in prompts if prompt.box_px is not None]
        if not boxes:
            return None
        moved = self._transform.apply_boxes(np.stack(boxes), (embedding.height, embedding.width))
        return torch.as_tensor(moved, dtype=torch.float, device=self.device)
