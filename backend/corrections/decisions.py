"""What a reviewer decided about a phrase: the masks that the reviewer left are compared with those that were served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from backend.corrections.annotation import Answer, DrawnRegion, ReviewedAnnotation
from backend.errors import TaskError
from backend.label_studio.outlines import is_outline_of
from backend.label_studio.read_regions import Mask
from sam4mllm.masks import mask_iou
from sam4mllm.run_lengths import Rle, from_rle

Outcome = Literal["accepted", "edited", "drawn", "none"]


@dataclass(frozen=True)
class PhraseDecision:
    """What a reviewer made of the answers to a phrase.

    ``outcome``: as in :class:`backend.corrections.reviews.Review`. ``base``: the answers that the final masks are compared with. They are
    those that the reviewer saw or, if none was seen, the last that may have been shown; it is empty if there is none.
    ``masks``: the final masks, each once, of ``size`` (height, width). ``iou``: the IoU of the final masks' union with the union of the
    masks in ``base``; None if ``base`` is empty.
    """

    outcome: Outcome
    iou: float | None
    base: tuple[Answer, ...]
    size: tuple[int, int]
    masks: tuple[Rle, ...] = ()

    @property
    def served(self) -> tuple[Rle, ...]:
        """The masks of ``base``."""
        return tuple({mask["counts"]: mask for answer in self.base for mask in answer.regions.values()}.values())


def decide_none(case: ReviewedAnnotation, phrase: str) -> PhraseDecision | None:
    """Return the decision "none" if the reviewer said that a phrase without a final region means nothing in the picture; None if that is
    not known.

    The reviewer said so by deleting all regions of the last answer of a batch, or by leaving a "no such object" as it was. An answer to an
    annotator counts only if it is a "no such object" and the phrase was typed. Nothing is known of a phrase that was replaced by typing
    others: the same thing may have been found by better words. Raises TaskError if what was served and the annotation are of different
    sizes.
    """
    if case.typed and phrase not in case.typed:
        return None
    proof = [answer for answer in case.answers_to(phrase, interactive=False)[-1:] if case.was_seen(answer)]
    if not proof and case.typed:
        proof = [answer for answer in case.answers_to(phrase, interactive=True)[-1:] if not answer.regions]
    if not proof:
        return None
    return PhraseDecision("none", 0.0 if proof[0].regions else 1.0, tuple(proof), _one_size(case, proof))


def decide_masks(case: ReviewedAnnotation, phrase: str, drawn: Sequence[DrawnRegion]) -> PhraseDecision:
    """Return what the reviewer made of a phrase whose final regions are ``drawn``, at least one.

    Raises TaskError if their masks are of another size than what was served.
    """
    kept = {region.id for region in drawn}
    base = _base(case, phrase, kept)
    size = _one_size(case, base)
    served = {region: mask for answer in base for region, mask in answer.regions.items()}
    kinds = {_kind(case, phrase, region, served.get(region.id)) for region in drawn}
    missing = served.keys() - kept and any(case.was_loaded(answer) for answer in base)
    outcome: Outcome = kinds.pop() if len(kinds) == 1 else "edited"
    if outcome == "accepted" and missing:
        outcome = "edited"
    final = _final(case, drawn, base, size)
    return PhraseDecision(outcome, _iou(final, list(served.values()), size) if base else None, tuple(base), size, final)


def _base(case: ReviewedAnnotation, phrase: str, kept: set[str]) -> list[Answer]:
    """Return the answers to compare the final regions with, whose ids are ``kept``. A batch's are preferred: clicks may have shaped those
    to an annotator.
    """
    taken = [answer for answer in case.answers if answer.phrase == phrase and kept & answer.regions.keys()]
    batch = case.answers_to(phrase, interactive=False)[-1:]
    return (
        [answer for answer in taken if not answer.interactive]
        or [answer for answer in batch if not taken or case.was_seen(answer)]
        or taken
        or case.answers_to(phrase, interactive=True)[-1:]
    )


def _kind(case: ReviewedAnnotation, phrase: str, region: DrawnRegion, served: Rle | None) -> Outcome:
    """Return what happened to a region. ``served`` is the mask that was served under its id for the phrase, None if none was."""
    if served is None:
        others = [answer.phrase for answer in case.answers if region.id in answer.regions]
        if others:
            # clicks made the mask: they refined a mask that was served for this phrase ("edited"), or made a new one ("drawn")
            return "edited" if phrase in others else "drawn"
        origins: dict[str, Outcome] = {"prediction": "accepted", "prediction-changed": "edited"}
        return origins.get(region.origin, "drawn")
    if region.origin == "prediction-changed":
        return "edited"
    return "accepted" if _is_of(case, region, served) else "edited"


def _is_of(case: ReviewedAnnotation, region: DrawnRegion, served: Rle) -> bool:
    """Whether a region still shows the mask that was served. The masks are compared, because a region that clicks refined keeps its id and
    counts as untouched in Label Studio.
    """
    if _is_exact(case):
        return region.mask["counts"] == served["counts"]
    return region.origin == "prediction" and is_outline_of(region.mask, served, case.config)


def _is_exact(case: ReviewedAnnotation) -> bool:
    """Whether the mask control stores the mask itself and not an outline of it."""
    return case.config.mask.drawing in ("BrushLabels", "BitmaskLabels")


def _final(case: ReviewedAnnotation, drawn: Sequence[DrawnRegion], base: Sequence[Answer], size: tuple[int, int]) -> tuple[Rle, ...]:
    """Return the masks that the regions stand for, each once. An untouched outline stands for the served mask that it was made from."""
    made_from: dict[str, Rle] = {}
    outlines = {} if _is_exact(case) else {region.id: region for region in drawn if region.origin == "prediction"}
    for answer in (*case.answers, *base):
        # one mask may have several outlines: if one of them was changed or deleted, each of the others stands only for itself
        pieces: dict[str, set[str]] = {}
        for region, mask in answer.regions.items():
            pieces.setdefault(mask["counts"], set()).add(region)
        for region, mask in answer.regions.items():
            whole = pieces[mask["counts"]] <= outlines.keys() and mask["size"] == [*size]
            if whole and _is_of(case, outlines[region], mask):
                made_from[region] = mask
    final = [made_from.get(region.id, region.mask) for region in drawn]
    return tuple({mask["counts"]: mask for mask in final}.values())


def _one_size(case: ReviewedAnnotation, base: Sequence[Answer]) -> tuple[int, int]:
    sizes = {(record.height, record.width) for answer in base for record in answer.records} | ({case.size} if case.size else set())
    if len(sizes) != 1:
        raise TaskError("the annotation's masks are of another size than what was served")
    return sizes.pop()


def _iou(final: Sequence[Rle], served: Sequence[Rle], size: tuple[int, int]) -> float:
    if {mask["counts"] for mask in final} == {mask["counts"] for mask in served}:
        return 1.0
    return mask_iou(union_of(final, size), union_of(served, size))


def union_of(masks: Iterable[Rle], size: tuple[int, int]) -> Mask:
    """Return the union of the masks. They are decoded one at a time, because a decoded mask is as large as the image."""
    union = np.zeros(size, np.bool_)
    for mask in masks:
        union |= from_rle(mask, *size, max_pixels=size[0] * size[1])
    return union
