"""One Segmenter for the promptable models of transformers: SAM, SAM-HQ, SAM 2 and 2.1, SAM 3's tracker, EdgeTAM.

The models differ in two things, which are left to their classes and image processors. SAM and SAM-HQ keep an image's aspect ratio and pad
it, while the later ones squash it to a square. And the features of an image are one tensor, one tensor with others beside it, or a pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam4mllm.segmentation.enlarging import Enlarging
from sam4mllm.segmentation.former import mask_as_logits, stack_logits
from sam4mllm.segmentation.module import ModuleSegmenter, candidates_of, decode_alike
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Masks, Prompt

MODEL_TYPES = ("sam", "sam_hq", "sam2", "sam2_video", "sam3_tracker", "edgetam", "edgetam_video")
"""``model_type`` of the checkpoints that hold such a model; of a video model, the part that sees single images is taken."""


@dataclass(frozen=True, eq=False)
class TransformersEmbedding(Embedding):
    """``features``: by the name of the argument of the model's ``forward``, a tensor, or several with the coarsest last. ``input_size``:
    (height, width) of the image as the model saw it, without padding. ``padded``: whether the image kept its aspect ratio and was padded to
    the model's square; if not, it was squashed to the square.
    """

    features: dict[str, Tensor | list[Tensor]]
    input_size: tuple[int, int]
    padded: bool


class TransformersSegmenter(ModuleSegmenter):
    """Implements :class:`~sam4mllm.segmentation.former.MaskTaker`.

    Args:
        model: one of transformers' models for mask generation, in eval mode.
        image_processor: the model's image processor.
        source: what it was loaded from, part of its identity.
        dtype: precision in which images are encoded.
    """

    def __init__(self, model: Any, image_processor: Any, source: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(model, source, dtype)
        self._images = image_processor

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> TransformersEmbedding:
        height, width = image.shape[:2]
        taken = self._images(images=np.array(image), return_tensors="pt")
        pixels = taken["pixel_values"].to(self.device)
        padded = "reshaped_input_sizes" in taken
        input_height, input_width = (int(side) for side in (taken["reshaped_input_sizes"][0] if padded else pixels.shape[-2:]))
        with self.precision():
            features = self._features(self.model.get_image_embeddings(pixels))
        nbytes = sum(tensor.nbytes for kept in features.values() for tensor in (kept if isinstance(kept, list) else [kept]))
        return TransformersEmbedding(width, height, nbytes, features, (input_height, input_width), padded)

    def _features(self, embeddings: Tensor | list[Tensor] | tuple[Tensor, list[Tensor]]) -> dict[str, Tensor | list[Tensor]]:
        if isinstance(embeddings, tuple):  # SAM-HQ; of the encoder's layers its mask decoder looks at the first only
            whole, layers = embeddings
            return {"image_embeddings": whole.to(self._dtype), "intermediate_embeddings": [layers[0].to(self._dtype)]}
        return {"image_embeddings": _cast(embeddings, self._dtype)}

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        if not isinstance(embedding, TransformersEmbedding):
            raise TypeError("this embedding was made by another segmenter")
        return decode_alike(prompts, partial(self._decode_alike, embedding))

    def _decode_alike(self, embedding: TransformersEmbedding, prompts: Sequence[Prompt]) -> list[Masks]:
        size = (embedding.height, embedding.width)
        how = Enlarging(size, self._side, embedding.input_size) if embedding.padded else Enlarging(size)
        return candidates_of(*self.logits(embedding, prompts), how)

    def as_logits(self, embedding: Embedding, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        if not isinstance(embedding, TransformersEmbedding):
            raise TypeError("this embedding was made by another segmenter")
        return mask_as_logits(mask, embedding.input_size, self._side, self._grid)

    @property
    def _side(self) -> int:
        """The side of the square in which the model sees an image, in pixels."""
        side: int = self.model.prompt_encoder.input_image_size
        return side

    @property
    def _grid(self) -> int:
        """The side, in cells, of the grid on which the model takes the logits of a former mask."""
        side: int = 4 * self.model.prompt_encoder.image_embedding_size[0]
        return side

    def logits(self, embedding: TransformersEmbedding, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Return mask logits (P, N, h, w) and predicted IoU (P, N) of P prompts that are alike (see ``decode_alike``).

        Raises PromptError if the logits of a former mask have another grid.
        """
        former = stack_logits(prompts, self._grid)
        if former is None:
            return self._ask(embedding, prompts)
        # these models take one former mask for an image, however many prompts there are, so each prompt is asked alone
        single = [
            self._ask(embedding, [prompt], input_masks=torch.as_tensor(one[None], device=self.device))
            for prompt, one in zip(prompts, former, strict=True)
        ]
        return torch.cat([logits for logits, _ in single]), torch.cat([predicted for _, predicted in single])

    def _ask(self, embedding: TransformersEmbedding, prompts: Sequence[Prompt], **asked: Tensor) -> tuple[Tensor, Tensor]:
        if len(prompts[0].labels):
            asked["input_points"] = self._moved(embedding, np.stack([prompt.points_px for prompt in prompts]))
            asked["input_labels"] = torch.as_tensor(np.stack([prompt.labels for prompt in prompts]), device=self.device)[None]
        boxes = [prompt.box_px.reshape(2, 2) for prompt in prompts if prompt.box_px is not None]
        if boxes:
            asked["input_boxes"] = self._moved(embedding, np.stack(boxes)).flatten(2)
        features = {name: _cast(kept, torch.float32) for name, kept in embedding.features.items()}
        answer = self.model(**features, **asked, multimask_output=not prompts[0].single)
        return answer.pred_masks[0], answer.iou_scores[0]

    def _moved(self, embedding: TransformersEmbedding, points_px: NDArray[np.float32]) -> Tensor:
        """(1, P, K, 2) float32 of points (P, K, 2), in the frame of the image as the model saw it."""
        height, width = embedding.input_size
        scale = np.array([width / embedding.width, height / embedding.height])
        return torch.as_tensor(points_px * scale, dtype=torch.float32, device=self.device)[None]


def _cast(features: Tensor | list[Tensor], dtype: torch.dtype) -> Tensor | list[Tensor]:
    return [tensor.to(dtype) for tensor in features] if isinstance(features, list) else features.to(dtype)
