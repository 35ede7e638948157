"""SAM 3 (Carion et al., 2025) of transformers: a detector that takes phrases and a tracker that takes box and points, on one backbone.

Of an image the backbone's output is kept for the detector: 21 MB in float32 at the model's input of 1,008 × 1,008 pixels, a fifth of what
the detector's neck makes of it. The neck runs at each call of ``find``, and of ``decode`` where there is no tracker; it takes a
twenty-fifth of the backbone's multiplications. Behind the neck, phrases are processed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from sam4mllm.errors import PromptError
from sam4mllm.geometry import box_iou
from sam4mllm.segmentation.concept import Candidates
from sam4mllm.segmentation.enlarging import Enlarging
from sam4mllm.segmentation.module import PHRASES_AT_ONCE, ModuleSegmenter, numbers, stability, tell_cut, weights_nbytes
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.segmentation.transformers_sam import TransformersEmbedding, TransformersSegmenter
from sam4mllm.values import Masks, Prompt

ALONE = ("sam3", "sam3_lite_text")
"""``model_type`` of the checkpoints that hold the detector and no tracker."""
TOKENS = 32
"""Tokens to which a phrase is padded (Sam3Processor); a longer one is cut there, as in the authors' tokenizer."""
KEPT_PHRASES = 256
"""Most phrases whose text features are kept by one segmenter: 32 KB each, so 8 MB. Those that were asked longest ago are dropped."""
BY_EXAMPLE = "visual"
"""The phrase that is asked where a box is given as an example in place of a phrase (Sam3Processor)."""


@dataclass(frozen=True, eq=False)
class Sam3Embedding(Embedding):
    """``features`` (1, C, h, w): the backbone's output."""

    features: Tensor


@dataclass(frozen=True, eq=False)
class Sam3TrackerEmbedding(TransformersEmbedding):
    """What the tracker keeps of an image, and with it ``shared`` (1, C, h, w), the backbone's output, for the detector."""

    shared: Tensor


class SharedFeatures(nn.Module):
    """Takes the place of a tracker's vision encoder and runs its neck on the backbone's output (1, C, h, w), given in place of pixels."""

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, features: Tensor, **_: Any) -> Sam3VisionEncoderOutput:
        maps, positions = self.neck(features)
        return Sam3VisionEncoderOutput(fpn_hidden_states=maps, fpn_position_encoding=positions)


class _Phrases:
    """Computes the text features of phrases, and keeps those of the KEPT_PHRASES phrases asked last. Safe to share between threads."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._kept: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}
        self._lock = Lock()

    def __call__(self, phrases: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the text features (P, T, C) float32 and the attention mask (P, T) of P phrases."""
        with self._lock:
            known = {phrase: self._kept[phrase, device] for phrase in phrases if (phrase, device) in self._kept}
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in known]
        if new:
            asked = self._tokenizer(new, return_tensors="pt", padding="max_length", max_length=TOKENS, truncation=True).to(device)
            answer = self._model.get_text_features(asked["input_ids"], attention_mask=asked["attention_mask"], return_dict=True)
            known |= dict(zip(new, zip(answer.pooler_output, asked["attention_mask"], strict=True), strict=True))
        self._keep(known, device)
        return torch.stack([known[phrase][0] for phrase in phrases]), torch.stack([known[phrase][1] for phrase in phrases])

    def note(self, phrase: str) -> str:
        """Return a note for the user if a phrase is too long to be read whole, else an empty text."""
        return tell_cut(self._tokenizer, phrase, TOKENS)

    def _keep(self, known: Mapping[str, tuple[Tensor, Tensor]], device: torch.device) -> None:
        with self._lock:
            for phrase, features in known.items():
                self._kept.pop((phrase, device), None)
                self._kept[phrase, device] = features
            for key in list(self._kept)[:-KEPT_PHRASES]:
                del self._kept[key]


class Sam3Finder:
    """SAM 3's detector: finds the instances of phrases in the backbone's features of an image.

    Args:
        model: a Sam3Model or Sam3LiteTextModel with its weights, in eval mode.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self._phrases = _Phrases(model, tokenizer)

    def features(self, pixels: Tensor) -> Tensor:
        """(1, C, h, w) of pixels (1, 3, H, W): the backbone's output."""
        encoder = self.model.vision_encoder
        tokens: Tensor = encoder.backbone(pixels).last_hidden_state
        patch = encoder.config.backbone_config.patch_size
        return tokens.view(1, pixels.shape[-2] // patch, pixels.shape[-1] // patch, -1).permute(0, 3, 1, 2)

    def maps(self, features: Tensor, precision: torch.autocast) -> list[tuple[Tensor, Tensor]]:
        """The neck's feature maps of the backbone's output, each with its position code, all in float32.

        ``precision`` is the autocast context in which the neck runs.
        """
        neck = self.model.vision_encoder.neck
        with precision:
            found, _ = neck(features)
        whole = [tensor.float() for tensor in found]
        return [(tensor, neck.position_encoding(tensor.shape, tensor.device, tensor.dtype)) for tensor in whole]

    def ask(self, maps: Sequence[tuple[Tensor, Tensor]], phrases: Sequence[str], **boxes: Tensor) -> Any:
        """Run the model on several phrases about one image; ``boxes`` are passed on to it. The output has an entry a phrase, in order."""
        text, mask = self._phrases(phrases, maps[0][0].device)
        alike = [(tensor.expand(len(phrases), -1, -1, -1), code.expand(len(phrases), -1, -1, -1)) for tensor, code in maps]
        vision = Sam3VisionEncoderOutput(fpn_hidden_states=tuple(a for a, _ in alike), fpn_position_encoding=tuple(b for _, b in alike))
        return self.model(vision_embeds=vision, text_embeds=BaseModelOutputWithPooling(pooler_output=text), attention_mask=mask, **boxes)

    def find(
        self, maps: Sequence[tuple[Tensor, Tensor]], size: tuple[int, int], phrases: Sequence[str], threshold: float
    ) -> list[Candidates]:
        """Find all instances of each phrase with a score of at least ``threshold``; the result has one entry for each phrase, in order.

        ``maps`` are those of the method ``maps``; ``size`` is (height, width) of the image.
        """
        found: list[Candidates] = []
        for start in range(0, len(phrases), PHRASES_AT_ONCE):
            asked = phrases[start : start + PHRASES_AT_ONCE]
            answer = self.ask(maps, asked)
            found += [_candidates(answer, index, size, threshold, self._phrases.note(phrase)) for index, phrase in enumerate(asked)]
        return found


class Sam3TrackerSegmenter(TransformersSegmenter):
    """Implements :class:`~sam4mllm.segmentation.concept.ConceptSegmenter`: the tracker takes prompts, the detector phrases.

    Args:
        model: a Sam3TrackerModel in eval mode, whose vision encoder is a SharedFeatures: the detector's backbone serves both.
        image_processor: the image processor of the checkpoint.
        finder: the detector of the same checkpoint.
        source: what they were loaded from, part of the identity.
        dtype: precision in which images are encoded.
    """

    def __init__(self, model: Any, image_processor: Any, finder: Sam3Finder, source: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(model, image_processor, source, dtype)
        self._finder = finder

    @property
    def nbytes(self) -> int:
        return super().nbytes + weights_nbytes(self._finder.model)

    def to(self, device: torch.device) -> None:
        super().to(device)
        self._finder.model.to(device)

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> Sam3TrackerEmbedding:
        height, width = image.shape[:2]
        pixels = self._images(images=np.array(image), return_tensors="pt")["pixel_values"].to(self.device)
        with self.precision():
            shared = self._finder.features(pixels)
            features = self._features(self.model.get_image_embeddings(shared))
        kept = shared.to(self._dtype)
        nbytes = kept.nbytes + sum(tensor.nbytes for tensor in features["image_embeddings"])
        seen = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        return Sam3TrackerEmbedding(width, height, nbytes, features, seen, padded=False, shared=kept)

    @torch.inference_mode()
    def find(self, embedding: Embedding, phrases: Sequence[str], threshold: float) -> list[Candidates]:
        if not isinstance(embedding, Sam3TrackerEmbedding):
            raise TypeError("this embedding was made by another segmenter")
        maps = self._finder.maps(embedding.shared, self.precision())
        return self._finder.find(maps, (embedding.height, embedding.width), phrases, threshold)


class Sam3Segmenter(ModuleSegmenter):
    """Implements :class:`~sam4mllm.segmentation.concept.ConceptSegmenter` by the detector alone, with one mask for each prompt: the
    prompt's box is shown to the detector as an example, and of what it finds the mask that agrees best with box and points is chosen.
    ``decode`` raises PromptError for a prompt without a box.

    Args:
        model: a Sam3Model or Sam3LiteTextModel with its weights, in eval mode.
        image_processor: the model's image processor.
        tokenizer: the model's tokenizer.
        source: what it was loaded from, part of its identity.
        dtype: precision in which images are encoded.
    """

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, source: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(model, source, dtype)
        self._images = image_processor
        self._finder = Sam3Finder(model, tokenizer)

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> Sam3Embedding:
        height, width = image.shape[:2]
        pixels = self._images(images=np.array(image), return_tensors="pt")["pixel_values"].to(self.device)
        with self.precision():
            features = self._finder.features(pixels).to(self._dtype)
        return Sam3Embedding(width, height, features.nbytes, features)

    @torch.inference_mode()
    def find(self, embedding: Embedding, phrases: Sequence[str], threshold: float) -> list[Candidates]:
        maps = self._finder.maps(_own(embedding).features, self.precision())
        return self._finder.find(maps, (embedding.height, embedding.width), phrases, threshold)

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        boxes_px = [prompt.box_px for prompt in prompts if prompt.box_px is not None]
        if len(boxes_px) < len(prompts):
            raise PromptError("a SAM 3 folder without its tracker takes no point without a box; draw a box, or take a sam3_video folder")
        maps = self._finder.maps(_own(embedding).features, self.precision())
        decoded: list[Masks] = []
        for start in range(0, len(prompts), PHRASES_AT_ONCE):
            batch = slice(start, start + PHRASES_AT_ONCE)
            examples = self._examples(embedding, np.stack(boxes_px[batch]))
            answer = self._finder.ask(maps, [BY_EXAMPLE] * len(examples), input_boxes=examples)
            decoded += [
                _pick(answer, index, embedding, box_px, prompt)
                for index, (box_px, prompt) in enumerate(zip(boxes_px[batch], prompts[batch], strict=True))
            ]
        return decoded

    def _examples(self, embedding: Embedding, boxes_px: NDArray[np.float32]) -> Tensor:
        """(P, 1, 4): of each box (P, 4) its centre and its sides, as shares of the image's."""
        shares = torch.as_tensor(boxes_px, dtype=torch.float32) / torch.tensor([embedding.width, embedding.height] * 2)
        low, high = shares[:, :2], shares[:, 2:]
        return torch.cat([(low + high) / 2, high - low], dim=1)[:, None].to(self.device)


def _own(embedding: Embedding) -> Sam3Embedding:
    if not isinstance(embedding, Sam3Embedding):
        raise TypeError("this embedding was made by another segmenter")
    return embedding


def _boxes_px(shares: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """(N, 4) in pixels of boxes (N, 4) whose corners are shares of the image's sides."""
    height, width = size
    scaled: NDArray[np.float32] = (shares * shares.new_tensor([width, height, width, height])).cpu().numpy()
    return scaled


def _mask(logits: Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool of logits (h, w). Probabilities are interpolated, not logits, as in SAM 3's own processor."""
    return Enlarging(size, threshold=0.5).full(logits.sigmoid())


def _candidates(answer: Any, index: int, size: tuple[int, int], threshold: float, note: str) -> Candidates:
    """Return the candidates of the phrase in row ``index`` of the answer. A query's score is its probability times that of the phrase's
    presence.
    """
    presence = answer.presence_logits[index].sigmoid()
    scores = answer.pred_logits[index].sigmoid() * presence
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= threshold]
    masks = np.zeros((len(order), *size), np.bool_)
    for place, query in enumerate(order.tolist()):  # one at a time: hundreds at the image's size would not fit
        masks[place] = _mask(answer.pred_masks[index, query], size)
    return Candidates(_boxes_px(answer.pred_boxes[index, order], size), numbers(scores[order]), masks, float(presence), note)


def _pick(answer: Any, index: int, embedding: Embedding, box_px: NDArray[np.float32], prompt: Prompt) -> Masks:
    """Return the mask in row ``index`` of the answer that agrees best with a prompt; of equals, the one with the higher score.

    The agreement, computed as in :mod:`~sam4mllm.segmentation.proposals`, serves as the mask's predicted IoU.
    """
    size = (embedding.height, embedding.width)
    boxes_px = _boxes_px(answer.pred_boxes[index], size)
    parts = [box_iou(boxes_px, box_px[None])[:, 0]]
    logits = answer.pred_masks[index]
    if len(prompt.labels):
        inner = logits.shape[-1] / embedding.width, logits.shape[-2] / embedding.height
        columns, rows = (np.clip((prompt.points_px[:, axis] * inner[axis]).astype(int), 0, logits.shape[-1 - axis] - 1) for axis in (0, 1))
        parts.append(((logits[:, rows, columns] > 0).cpu().numpy() == (prompt.labels == 1)).mean(axis=1))
    agreed = np.mean(parts, axis=0)
    best = int(np.lexsort((answer.pred_logits[index].cpu().numpy(), agreed))[-1])
    return Masks(_mask(logits[best], size)[None], agreed[[best]], numbers(stability(logits[best : best + 1])))
