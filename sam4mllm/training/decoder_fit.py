"""The segmenter's adapter, fitted offline: LoRA on the mask decoder learns where a team draws edges and whether it fills holes.

From few pictures it learns such conventions and no recognition, for the encoder that sees stays as it is. So that masks of what nobody
corrected stay true, it is held near what the decoder drew before.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from sam4mllm.adapters.segmenter import Promptable, attach_to_decoder
from sam4mllm.errors import TrainingError
from sam4mllm.masks import lies_on, window_of
from sam4mllm.points import PATTERN_SIZE, spread
from sam4mllm.segmentation.former import SURE
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Prompt

RANK, RATE, STEPS, BATCH = 8, 1e-3, 40, 8
"""Of ranks 4, 8 and 16 the middle one gained as much as any, and 40 steps take 20 s of one core on the demo segmenter."""
KEEP_WEIGHT = 120.0
"""Of the squared distance to what the decoder answered before. Reviewers who draw 3 pixels wider, ten pictures: without it their masks gain
.072 of IoU and the plain truth loses .055; with 20, 60, 100 and 150 it is .069, .058, .050, .045 against .037, .019, .012, .009. The same
by a penalty on the weights: .043 against .017.
"""
BARE_SHARE = 0.3
"""Of the prompts that are a box alone; the others have the published pattern's points."""
BOX_SHAKE, MOST_SHAKE, FLIPPED = 0.06, 0.15, 0.05
"""How far a box is off, in sides of its own, and how many answers about points are wrong: as an MLLM's are."""
NEAR, FAR_WEIGHT = np.ones((13, 13), np.uint8), 0.05
"""Cells of the mask grid around a thing count in full, those farther away little."""

E = TypeVar("E", bound=Embedding)


@dataclass(frozen=True, eq=False)
class DecoderLesson:
    """One object: the image as the segmenter took it in, the box of the reviewer's mask and, with a margin, the ``mask`` there, whose upper
    left pixel is ``corner_px`` (x, y); ``target`` (h, w), the share of each cell of the mask grid that the mask covers, ``weight`` (h, w),
    what the cell counts, and ``seen`` (h, w), whether it is of the image.
    """

    embedding: Embedding
    mask: NDArray[np.bool_]
    corner_px: NDArray[np.float32]
    box_px: NDArray[np.float32]
    target: Tensor
    weight: Tensor
    seen: Tensor


def make_lessons(
    segmenter: Promptable, image: NDArray[np.uint8], masks: NDArray[np.bool_], boxes_px: NDArray[np.float32]
) -> list[DecoderLesson]:
    """Lessons of the objects in an image (H, W, 3): masks (N, H, W) and boxes (N, 4)."""
    embedding = trainable(segmenter.encode(image))
    seen = _shares(segmenter, embedding, np.ones(image.shape[:2], np.bool_)) > 0
    lessons = []
    for mask, box_px in zip(masks, boxes_px, strict=True):
        target = _shares(segmenter, embedding, mask)
        near = cv2.dilate((target.numpy() > 0).astype(np.uint8), NEAR).astype(np.float32)
        weight = (torch.from_numpy(near) + FAR_WEIGHT) * seen
        rows, columns = window_of(mask)
        top, left = max(0, rows.start - 1), max(0, columns.start - 1)  # points beyond count as on the margin
        window = mask[top : rows.stop + 1, left : columns.stop + 1].copy()
        corner_px = np.array([left, top], np.float32)
        where = (target.to(segmenter.device), weight.to(segmenter.device), seen.to(segmenter.device))
        lessons.append(DecoderLesson(embedding, window, corner_px, box_px, *where))
    return lessons


def fit_decoder(segmenter: Promptable, lessons: Sequence[DecoderLesson], steps: int = STEPS, seed: int = 0) -> tuple[PeftModel, float]:
    """Train an adapter on the segmenter's mask decoder, which it draws with from now on; the adapter, and the loss of the last step.

    Raises TrainingError if a loss is no number.
    """
    plain = segmenter.with_decoder(deepcopy(segmenter.model.mask_decoder), "")
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 17])
    model = attach_to_decoder(segmenter, RANK)
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, steps)
    for step in range(1, steps + 1):
        chosen = [lessons[index] for index in rng.integers(len(lessons), size=BATCH)]
        loss = torch.stack([_loss(segmenter, plain, lesson, draw_prompt(lesson, rng)) for lesson in chosen]).mean()
        if not loss.isfinite():
            raise TrainingError(f"the loss is {loss.item()} at step {step}; the segmenter's weights or a picture are damaged")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model, loss.item()


def draw_prompt(lesson: DecoderLesson, rng: np.random.Generator) -> Prompt:
    """The object's box as an MLLM gives it, alone or with points as it answers them."""
    x1, y1, x2, y2 = lesson.box_px
    sides = np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
    shift = np.clip(rng.normal(0, BOX_SHAKE, 4), -MOST_SHAKE, MOST_SHAKE)
    box_px = (lesson.box_px + shift * sides).astype(np.float32)
    if rng.random() < BARE_SHARE:
        return Prompt(box_px, np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    points_px = spread(box_px, PATTERN_SIZE)
    labels = lies_on(lesson.mask, points_px - lesson.corner_px) ^ (rng.random(len(points_px)) < FLIPPED)
    return Prompt(box_px, points_px, labels.astype(np.int64))


def trainable(embedding: E) -> E:
    """The embedding with copies of its tensors that gradients may flow past: what inference mode made cannot be learned from."""
    kept = {field.name: _copied(getattr(embedding, field.name)) for field in fields(embedding)}
    return replace(embedding, **kept)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(one) for name, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


def _shares(segmenter: Promptable, embedding: Any, mask: NDArray[np.bool_]) -> Tensor:
    """(h, w) from 0 to 1 on the mask grid."""
    return torch.from_numpy((segmenter.as_logits(embedding, mask)[0] / SURE + 1) / 2)


def _loss(segmenter: Promptable, plain: Promptable, lesson: DecoderLesson, prompt: Prompt) -> Tensor:
    """Of the candidate that would be served: cross-entropy and dice; that its IoU is known; that all are near what they were before."""
    embedding: Any = lesson.embedding
    logits, predicted = segmenter.logits(embedding, [prompt])
    with torch.no_grad():
        before, _ = plain.logits(embedding, [prompt])
    best = int(predicted[0].argmax())
    served, target, weight = logits[0, best].float(), lesson.target, lesson.weight
    entropy = (F.binary_cross_entropy_with_logits(served, target, reduction="none") * weight).sum() / weight.sum()
    share = served.sigmoid() * lesson.seen
    dice = 1 - (2 * (share * target).sum() + 1) / ((share**2).sum() + (target**2).sum() + 1)
    with torch.no_grad():
        drawn, true = (served > 0) & lesson.seen, target > 0.5
        iou = (drawn & true).sum() / (drawn | true).sum().clamp(min=1)
    moved = (logits.float().sigmoid() - before.float().sigmoid())[0, :, lesson.seen]
    return 2 * entropy + dice + F.mse_loss(predicted[0, best].float(), iou) + KEEP_WEIGHT * (moved**2).mean()
