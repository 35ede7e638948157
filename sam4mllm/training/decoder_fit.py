"""Fitting the segmenter's adapter offline: LoRA on the mask decoder learns where a team draws edges and whether it fills holes.

From few pictures it learns such conventions but no recognition, because the image encoder stays frozen. A penalty on changed masks keeps it
near what the decoder drew before, so that masks of objects that nobody corrected stay right.
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
from sam4mllm.options import PATTERN_SIZE
from sam4mllm.points import spread
from sam4mllm.segmentation.former import SURE
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Prompt

RANK, RATE, STEPS, BATCH = 8, 1e-3, 40, 8
"""The adapter's rank, the first learning rate (it falls linearly), the number of steps, and the number of objects drawn for each step.

Of ranks 4, 8 and 16, 8 gained as much as any; 40 steps take 20 s on one core with the demo segmenter.
"""
KEEP_WEIGHT = 120.0
"""Weight, in the loss, of the mean squared difference between the mask probabilities now and those before training.

It was measured with ten pictures of reviewers who draw 3 pixels wider, as the gain in IoU on masks like theirs against the loss of IoU on
plainly true masks. Without this term they were .072 against .055; with the weights 20, 60, 100 and 150, .069, .058, .050 and .045 against
.037, .019, .012 and .009. A penalty on the change of the decoder's weights instead gave .043 against .017.
"""
BARE_SHARE = 0.3
"""Share of the prompts that are a box alone; the others have the points of the published pattern too."""
BOX_SHAKE, MOST_SHAKE, FLIPPED = 0.06, 0.15, 0.05
"""The errors of an MLLM that prompts imitate: standard deviation and limit of the shift of a box's sides, as shares of its width or height,
and the share of points with a wrong label.
"""
NEAR, FAR_WEIGHT = np.ones((13, 13), np.uint8), 0.05
"""NEAR is the kernel that widens an object by 6 cells of the mask grid on each side. In the loss, a cell of the widened object has the
weight 1 + FAR_WEIGHT, a cell farther away FAR_WEIGHT, and a cell of the image's padding 0.
"""

E = TypeVar("E", bound=Embedding)


@dataclass(frozen=True, eq=False)
class DecoderLesson:
    """One object to learn from: the ``embedding`` of its image, and the reviewer's mask of it.

    ``box_px`` (4,) is the box of the mask. ``mask`` is the mask cropped to its extent with a margin of one pixel; the crop's upper left
    pixel is ``corner_px`` (x, y). The tensors (h, w) are on the segmenter's mask grid: ``target`` is the share of each cell that the mask
    covers, ``weight`` is how much a cell counts in the loss, ``seen`` is whether a cell lies in the image and not in its padding.
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
        # a margin of background, because lies_on takes a point outside the crop as on the crop's edge
        top, left = max(0, rows.start - 1), max(0, columns.start - 1)
        window = mask[top : rows.stop + 1, left : columns.stop + 1].copy()
        corner_px = np.array([left, top], np.float32)
        where = (target.to(segmenter.device), weight.to(segmenter.device), seen.to(segmenter.device))
        lessons.append(DecoderLesson(embedding, window, corner_px, box_px, *where))
    return lessons


def fit_decoder(segmenter: Promptable, lessons: Sequence[DecoderLesson], steps: int = STEPS, seed: int = 0) -> tuple[PeftModel, float]:
    """Train an adapter on the segmenter's mask decoder, and return it with the loss of the last step.

    The adapter stays attached: ``segmenter`` draws with it from now on. Raises TrainingError if a loss is no finite number.
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
    """Draw a prompt as an MLLM might give it: a box that is a little off, alone or with points, some of them mislabelled."""
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
    """Return the embedding with copies of its tensors: autograd refuses tensors that were made in inference mode."""
    kept = {field.name: _copied(getattr(embedding, field.name)) for field in fields(embedding)}
    return replace(embedding, **kept)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(one) for name, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


def _shares(segmenter: Promptable, embedding: Any, mask: NDArray[np.bool_]) -> Tensor:
    """Return, on the mask grid (h, w), the share of each cell that the mask covers, from 0 to 1."""
    return torch.from_numpy((segmenter.as_logits(embedding, mask)[0] / SURE + 1) / 2)


def _loss(segmenter: Promptable, plain: Promptable, lesson: DecoderLesson, prompt: Prompt) -> Tensor:
    """Return the loss of one prompt.

    It is a weighted sum of the cross-entropy and dice loss of the candidate mask that would be served, the squared error of that
    candidate's predicted IoU, and the mean squared distance of all candidates' probabilities from those of ``plain``, the segmenter with
    the decoder before training.
    """
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
