"""Models that give every pixel a class (SegFormer) as a Segmenter: the connected parts of each class are proposals, and the prompt picks.

Such a model tells classes apart, not objects: two of a class that touch are one proposal, and one that something lies across is two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from sam4mllm.masks import label_pieces
from sam4mllm.segmentation.module import STABILITY_OFFSET
from sam4mllm.segmentation.proposals import Proposal, ProposalSegmenter

MODEL_TYPES = ("segformer",)
"""``model_type`` of the checkpoints that hold such a model: class logits on a coarser grid than the image's."""

BACKGROUND = frozenset({"background", "__background__", "unlabeled", "unlabelled", "void"})
"""Names of the class that is no object, in small letters. Classes of stuff (sky, road) are proposals like any other."""

MOST_PROPOSALS = 256
"""Most proposals of an image; the largest are kept. A limit is needed because the prompt is compared with each, and a noisy class map can
have as many parts as a tenth of its pixels. A published Mask2Former has 100 or 200 queries."""


@dataclass(frozen=True, eq=False)
class ClassMap:
    """What each pixel of an image shows: ``classes`` (H, W) int64; ``sure`` (H, W) float32, the class's probability; ``leads`` (H, W)
    float32, by how much its logit is above the next class's.
    """

    classes: NDArray[np.int64]
    sure: NDArray[np.float32]
    leads: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ClassPart:
    """An 8-connected part of the pixels of one class: ``mask`` (h, w) bool within the part's box, whose upper left pixel is (``left``,
    ``top``); ``area`` is the number of the part's pixels.
    """

    left: int
    top: int
    mask: NDArray[np.bool_]
    area: int

    def of(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the values (``area``,) that a map (H, W) of the image has at the part's pixels."""
        height, width = self.mask.shape
        return values[self.top : self.top + height, self.left : self.left + width][self.mask]

    def proposal(self, score: float, stability: float) -> Proposal:
        """Return the part as a Proposal."""
        height, width = self.mask.shape
        box_px = np.array([self.left, self.top, self.left + width, self.top + height], np.float32)
        return Proposal(box_px, np.packbits(self.mask, axis=1), score, stability)


class SemanticSegmenter(ProposalSegmenter):
    """Implements :class:`~sam4mllm.segmentation.protocol.Segmenter`; one mask a prompt.

    A proposal's score is the mean probability of its class over its pixels, and its stability the share of them that would stay if the
    class's logit were lower by STABILITY_OFFSET.

    Args:
        model: one of transformers' models of ``MODEL_TYPES``, in eval mode.
        image_processor, source, dtype: see :class:`~sam4mllm.segmentation.proposals.ProposalSegmenter`.
    """

    def _propose(self, image: NDArray[np.uint8]) -> Iterator[Proposal]:
        pixels = self._images(images=[image], return_tensors="pt")["pixel_values"]
        with self.precision():
            logits = self.model(pixel_values=pixels.to(self.device)).logits[0].float()
        if len(logits) == 1:  # a binary model: pixels with a logit above zero are the object
            logits, background = torch.cat([torch.zeros_like(logits), logits]), {0}
        else:
            background = _background(self.model.config)
        shown = classify(logits, (image.shape[0], image.shape[1]))
        for part in connected_parts(shown.classes, background):
            sure, stays = part.of(shown.sure), part.of(shown.leads) >= STABILITY_OFFSET
            yield part.proposal(float(sure.mean()), float(stays.mean()))


def _background(config: Any) -> set[int]:
    return {int(number) for number, name in config.id2label.items() if str(name).strip().lower() in BACKGROUND}


def classify(logits: Tensor, size: tuple[int, int]) -> ClassMap:
    """Classify every pixel of an image of ``size`` (H, W), given logits (C, h, w) of at least two classes.

    The logits are interpolated to the image as in SegFormer's own processor, but one class at a time, because 150 classes at a photo's size
    would take gigabytes.
    """
    best = _full_size(logits[0], size)
    second, total = torch.full_like(best, -torch.inf), torch.ones_like(best)
    classes = torch.zeros(best.shape, dtype=torch.int64, device=best.device)
    for number in range(1, len(logits)):
        full = _full_size(logits[number], size)
        wins = full > best
        less = (full - best).abs_().neg_().exp_()  # the ratio of the smaller to the larger of the two exponentials
        total = torch.where(wins, total * less + 1, total + less)
        second = torch.maximum(second, torch.minimum(best, full))
        classes.masked_fill_(wins, number)
        best = torch.maximum(best, full)
    return ClassMap(classes.cpu().numpy(), (1 / total).cpu().numpy(), (best - second).cpu().numpy())


def _full_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(logits[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def connected_parts(classes: NDArray[np.int64], left_out: Collection[int] = (), most: int = MOST_PROPOSALS) -> list[ClassPart]:
    """The ``most`` largest parts of all classes but those left out, largest first. ``classes`` (H, W) and ``left_out`` are class numbers.

    Pixels of a class that touch at a corner belong to one part, so that a thin slanting thing stays whole.
    """
    found: list[ClassPart] = []
    for number in np.flatnonzero(np.bincount(classes.ravel())):
        if number not in left_out:
            least = found[-1].area if len(found) == most else 0
            found = sorted([*found, *_parts_of(classes == number, least, most)], key=lambda part: -part.area)[:most]
    return found


def _parts_of(mask: NDArray[np.bool_], least: int, most: int) -> Iterator[ClassPart]:
    """The ``most`` largest parts of a mask that have more than ``least`` pixels."""
    labels, areas, boxes = label_pieces(mask, connectivity=8)
    for label in 1 + np.argsort(-areas[1:], kind="stable")[:most]:
        left, top, width, height = boxes[label].tolist()
        if areas[label] > least:
            yield ClassPart(left, top, labels[top : top + height, left : left + width] == label, int(areas[label]))
