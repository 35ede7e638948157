"""What the segmenter finds by a phrase itself, and which of it the MLLM means: the strategies ``concept`` and ``choose``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sam4mllm.geometry import box_iou
from sam4mllm.grounding.protocol import Grounder, Scene
from sam4mllm.head_noun import head_noun
from sam4mllm.masks import mask_iou
from sam4mllm.segmentation.concept import Candidates, ConceptSegmenter
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Candidate, Grounding

FITS = 0.5
"""Least IoU of an MLLM's box with a candidate's box at which the first means the second. Two boxes that do not overlap cannot both have
more than a half with a third box, so neither takes its neighbour's candidate. A mask, too, counts as right from this IoU (ACCEPTED_IOU)."""
SAME = 0.7
"""IoU of two masks from which they are of one thing, found twice: by a detector's two boxes, or by the phrase and by its noun."""
_NEAR = 0.5
"""IoU of two boxes below which their masks are not compared: such masks are hardly ever of one thing, and there may be many pairs."""


def find(segmenter: ConceptSegmenter, embedding: Embedding, phrases: Sequence[str], threshold: float) -> list[Grounding]:
    """The segmenter's own answers, one entry a phrase in order: all that it finds with a score of at least ``threshold``, each thing
    once.
    """
    found = segmenter.find(embedding, phrases, threshold)
    return [_as_grounding(phrase, one) for phrase, one in zip(phrases, found, strict=True)]


def find_heads(grounder: Grounder, scene: Scene, phrases: Sequence[str]) -> list[str]:
    """Return the noun that each phrase is about, by the rule of :mod:`sam4mllm.head_noun`.

    Where the rule is not sure, the MLLM is asked to name the thing, and the rule's noun counts only if it names none. A noun is empty if
    neither finds one.
    """
    nouns = [head_noun(phrase) for phrase in phrases]
    doubtful = [phrase for phrase, head in zip(phrases, nouns, strict=True) if not head.sure]
    named = dict(zip(doubtful, grounder.name(scene, doubtful), strict=True)) if doubtful else {}
    return [named.get(phrase) or head.noun for phrase, head in zip(phrases, nouns, strict=True)]


def choose(
    segmenter: ConceptSegmenter, embedding: Embedding, told: Sequence[Grounding], heads: Sequence[str], threshold: float
) -> list[Grounding]:
    """Return the MLLM's groundings, ``told``, each box with the candidate that it means, or with None if none fits.

    A candidate is what the segmenter finds by the phrase or by its noun (``heads``) with a score of at least ``threshold``. A box that has
    a candidate takes over the candidate's box. For a phrase without a box the segmenter is not asked: the MLLM says that there is no such
    object.
    """
    wanted = [one.phrase for one in told if len(one.boxes_px)]
    wanted += [head for one, head in zip(told, heads, strict=True) if len(one.boxes_px) and head]
    texts = list(dict.fromkeys(wanted))
    found = dict(zip(texts, segmenter.find(embedding, texts, threshold), strict=True)) if texts else {}
    return [
        _with_candidates(one, [found[text] for text in dict.fromkeys((one.phrase, head)) if text in found])
        for one, head in zip(told, heads, strict=True)
    ]


def _as_grounding(phrase: str, found: Candidates) -> Grounding:
    # one score serves as the box's probability and as the candidate's score, because it says how sure the segmenter is of both
    boxes_px, scores, masks = _pool([found])
    candidates = tuple(Candidate(mask, score) for mask, score in zip(masks, scores, strict=True))
    return Grounding(phrase, boxes_px, np.array(scores, np.float64), 1.0 - found.presence, note=found.note, candidates=candidates)


def _with_candidates(told: Grounding, found: Sequence[Candidates]) -> Grounding:
    if not len(told.boxes_px):
        return told
    boxes_px, scores, masks = _pool(found)
    overlaps = box_iou(told.boxes_px, boxes_px)
    meant = _match(overlaps)
    drawn, fitted = told.boxes_px.copy(), list[Candidate | None]()
    for index in range(len(told.boxes_px)):
        which = meant.get(index)
        if which is None:
            fitted.append(None)
            continue
        drawn[index] = boxes_px[which]
        fitted.append(Candidate(masks[which], scores[which], float(overlaps[index, which])))
    return replace(told, boxes_px=drawn, candidates=tuple(fitted))


def _pool(found: Sequence[Candidates]) -> tuple[NDArray[np.float32], list[float], list[NDArray[np.bool_]]]:
    """Return boxes (N, 4), scores and masks of all that was found, best first and each thing once, without empty masks."""
    each = [(float(score), box, mask) for one in found for score, box, mask in zip(one.scores, one.boxes_px, one.masks, strict=True)]
    kept: list[tuple[float, NDArray[np.float32], NDArray[np.bool_]]] = []
    for score, box, mask in sorted(each, key=lambda entry: -entry[0]):
        near = [other for _, place, other in kept if box_iou(place[None], box[None])[0, 0] >= _NEAR]
        if mask.any() and not any(mask_iou(mask, other) >= SAME for other in near):
            kept.append((score, box, mask))
    boxes_px = np.array([box for _, box, _ in kept], np.float32).reshape(-1, 4)
    return boxes_px, [score for score, *_ in kept], [mask for *_, mask in kept]


def _match(overlaps: NDArray[np.float64]) -> dict[int, int]:
    """Return which candidate each box means, as indices: one to one, the best fit first. ``overlaps`` (B, C) is the IoU of each box with
    each candidate's box.
    """
    matched: dict[int, int] = {}
    for flat in np.argsort(-overlaps, axis=None, kind="stable"):
        box, candidate = divmod(int(flat), overlaps.shape[1])
        if overlaps[box, candidate] < FITS:
            break
        if box not in matched and candidate not in matched.values():
            matched[box] = candidate
    return matched
