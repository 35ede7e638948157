"""Boxes for a model that answers with points: the segmenter draws a mask from each point, and the box around that mask is taken.

With these boxes every step that needs boxes can follow: the model is asked about points in them, candidates are matched with them, and
reviewers' clicks are assigned to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sam4mllm.candidates import SAME
from sam4mllm.drawing import PROMPTS_AT_ONCE
from sam4mllm.masks import box_of, clean, mask_iou
from sam4mllm.segmentation.protocol import Embedding, Segmenter
from sam4mllm.values import Candidate, Grounding, Prompt

NOTHING_DRAWN = "the segmenter drew nothing at the model's points"


def draw_first(segmenter: Segmenter, embedding: Embedding, told: Sequence[Grounding], stand: bool) -> list[Grounding]:
    """Return the groundings; those that have points in place of boxes get a box around the mask of each point.

    A mask that repeats an earlier one (IoU of SAME or more) comes from a second point on the same thing. Its point is dropped, and so is
    the point of an empty mask; if none is left, a note says so, unless there is another note. ``stand``: whether the masks become the
    grounding's candidates, which are then the answer. If not, only the boxes are kept, and the segmenter draws from them later. Raises
    PromptError if the segmenter takes no point without a box.
    """
    return [_draw(segmenter, embedding, one, stand) if one.boxless else one for one in told]


def _draw(segmenter: Segmenter, embedding: Embedding, told: Grounding, stand: bool) -> Grounding:
    drawn = _first_masks(segmenter, embedding, told)
    kept: list[int] = []
    for index, one in enumerate(drawn):
        if one.mask.any() and not any(mask_iou(one.mask, drawn[other].mask) >= SAME for other in kept):
            kept.append(index)
    return replace(
        told,
        boxes_px=np.array([box_of(drawn[index].mask) for index in kept], np.float32).reshape(-1, 4),
        box_probabilities=told.box_probabilities[kept],
        points=tuple(told.points[index] for index in kept),
        candidates=tuple(drawn[index] for index in kept) if stand else (),
        note=told.note or (NOTHING_DRAWN if drawn and not kept else ""),
        boxless=False,
    )


def _first_masks(segmenter: Segmenter, embedding: Embedding, told: Grounding) -> list[Candidate]:
    """Return a candidate for each entry of ``told.points``, prompted by its inside points alone, without a box. Of the segmenter's masks it
    is the one with the highest predicted IoU, cleaned.
    """
    prompts = [Prompt(None, one.inside_px, np.ones(len(one.inside_px), np.int64)) for one in told.points]
    found = []
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        for masks in segmenter.decode(embedding, prompts[start : start + PROMPTS_AT_ONCE]):
            best = masks.best
            found.append(Candidate(clean(masks.mask(best)), float(masks.predicted_iou[best]), stability=float(masks.stability[best])))
    return found
