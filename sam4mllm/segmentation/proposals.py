"""Models that propose all objects of an image at once (Mask2Former and kin) as a Segmenter: the prompt picks a proposal.

Nothing is drawn from the prompt. The proposal that agrees best with box and points is the mask; where the model saw no such object, a
poor one is returned, and its predicted IoU says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from sam4mllm.geometry import box_iou
from sam4mllm.segmentation.module import ModuleSegmenter, stability
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Masks, Prompt

MODEL_TYPES = ("mask2former", "maskformer", "eomt")
"""``model_type`` of the checkpoints that hold such a model. Each of its queries gives mask logits and class logits, the last class being
"no object"."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """A mask that is not empty, cut out to its box: ``box_px`` (4,) float32, whole numbers; ``bits`` (h, ceil(w / 8)) uint8, a pixel a bit.

    ``score``: the best class's probability times the mean probability of the mask's pixels, as these models' own processors rank them.
    """

    box_px: NDArray[np.float32]
    bits: NDArray[np.uint8]
    score: float
    stability: float

    def lies_on(self, points_px: NDArray[np.float32], width: int, height: int) -> NDArray[np.bool_]:
        """(K,) bool: whether the pixel under each of (K, 2) points is in the mask; points outside the image count as on its edge."""
        x1, y1, x2, y2 = self.box_px.astype(int)
        columns = np.clip(points_px[:, 0].astype(int), 0, width - 1)
        rows = np.clip(points_px[:, 1].astype(int), 0, height - 1)
        near = (x1 <= columns) & (columns < x2) & (y1 <= rows) & (rows < y2)
        found = np.zeros(len(points_px), np.bool_)
        across = columns[near] - x1
        found[near] = (self.bits[rows[near] - y1, across // 8] >> (7 - across % 8)) & 1
        return found

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """Return the proposal's mask in the whole image, (height, width) bool."""
        x1, y1, x2, y2 = self.box_px.astype(int)
        whole = np.zeros((height, width), np.bool_)
        whole[y1:y2, x1:x2] = np.unpackbits(self.bits, axis=1, count=x2 - x1)
        return whole


@dataclass(frozen=True, eq=False)
class ProposalsEmbedding(Embedding):
    """All proposals of an image, in no order. They are few bytes, on the CPU."""

    proposals: tuple[Proposal, ...]


class ProposalSegmenter(ModuleSegmenter):
    """Implements :class:`~sam4mllm.segmentation.protocol.Segmenter`; one mask a prompt.

    Args:
        model: one of transformers' models of ``MODEL_TYPES``, in eval mode.
        image_processor: the model's image processor.
        source: what it was loaded from, part of its identity.
        dtype: precision in which images are encoded.
    """

    def __init__(self, model: Any, image_processor: Any, source: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(model, source, dtype)
        self._images = image_processor

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> ProposalsEmbedding:
        height, width = image.shape[:2]
        proposals = tuple(self._propose(np.array(image)))
        return ProposalsEmbedding(width, height, sum(proposal.bits.nbytes for proposal in proposals), proposals)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        if not isinstance(embedding, ProposalsEmbedding):
            raise TypeError("this embedding was made by another segmenter")
        return [_pick(embedding, prompt) for prompt in prompts]

    def _propose(self, image: NDArray[np.uint8]) -> Iterator[Proposal]:
        frame = _Frame(self._images, image)
        with self.precision():
            answer = self.model(pixel_values=frame.pixels.to(self.device))
        classes = answer.class_queries_logits[0].float().softmax(-1)[:, :-1].amax(-1)
        for sure, logits in zip(classes.tolist(), answer.masks_queries_logits[0].float(), strict=True):
            full = frame.full_size(logits)  # one at a time: a hundred full-size masks would not fit
            mask = full > 0
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            if len(rows):
                y1, y2, x1, x2 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
                bits = np.packbits(mask[y1:y2, x1:x2].cpu().numpy(), axis=1)
                inside = float(full[mask].sigmoid().mean())
                yield Proposal(np.array([x1, y1, x2, y2], np.float32), bits, sure * inside, float(stability(logits)))


class _Frame:
    """An image as its model's image processor prepares it (``pixels``), and the conversion of masks back to the image."""

    def __init__(self, image_processor: Any, image: NDArray[np.uint8]) -> None:
        # an EoMT checkpoint for semantic segmentation cuts the image into patches; objects have to be found in the whole image
        whole = {"do_split_image": False, "do_pad": True} if hasattr(image_processor, "unpad_image") else {}
        taken = image_processor(images=[image], return_tensors="pt", **whole)
        self.pixels: Tensor = taken["pixel_values"]
        self._size = (image.shape[0], image.shape[1])
        self._images = image_processor
        seen = taken["pixel_mask"][0] if "pixel_mask" in taken else None
        self._seen = None if seen is None else (int(seen[:, 0].sum()), int(seen[0].sum()))

    def full_size(self, logits: Tensor) -> Tensor:
        """Return mask logits (h, w) at the image's size (H, W): enlarged to the model's input, without its padding, then resized to the
        image.
        """
        framed = interpolate(logits[None, None], tuple(self.pixels.shape[-2:]), mode="bilinear", align_corners=False)
        if self._seen is None:
            [full] = self._images.unpad_image(framed, [self._size], self._images.size)
            return full[0]  # type: ignore[no-any-return]
        height, width = self._seen
        return interpolate(framed[..., :height, :width], self._size, mode="bilinear", align_corners=False)[0, 0]


def agreement(proposals: Sequence[Proposal], prompt: Prompt, width: int, height: int) -> NDArray[np.float64]:
    """(N,) in 0–1, how well each proposal agrees with a prompt: the IoU of its box with the prompt's box, the share of points that are on
    the side that their label says, or the mean of both where both are given.

    The paper leaves open how a proposal is chosen; the mean is ours. A product would let one wrong point of few outweigh a box that fits.
    """
    parts = []
    if prompt.box_px is not None:
        parts.append(box_iou(np.stack([proposal.box_px for proposal in proposals]), prompt.box_px[None])[:, 0])
    if len(prompt.labels):
        sides = [proposal.lies_on(prompt.points_px, width, height) == (prompt.labels == 1) for proposal in proposals]
        parts.append(np.stack(sides).mean(axis=1))
    return np.asarray(np.mean(parts, axis=0), np.float64)


def _pick(embedding: ProposalsEmbedding, prompt: Prompt) -> Masks:
    width, height = embedding.width, embedding.height
    if not embedding.proposals:
        return Masks(np.zeros((1, height, width), np.bool_), np.zeros(1), np.zeros(1))
    agreed = agreement(embedding.proposals, prompt, width, height)
    best = max(range(len(agreed)), key=lambda index: (agreed[index], embedding.proposals[index].score))
    chosen = embedding.proposals[best]
    return Masks(chosen.mask(width, height)[None], agreed[[best]], np.array([chosen.stability]))
