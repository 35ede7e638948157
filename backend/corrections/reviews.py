"""What reviewers decided, phrase by phrase, worked out from the log alone: the learning data.

Nothing is guessed. An annotation whose regions do not say which phrase they belong to, or whose masks cannot be trusted, is refused with a
reason and stays in the log. An empty annotation proves nothing by itself, for Label Studio at times shows no pre-annotation: that a phrase
means nothing in an image takes a served mask that the reviewer deleted, or a served "no such object" that the reviewer let stand. A mask
that clicks made away from all that was served is no truth for the phrase, and one that a refined mask takes the place of is left out.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from backend.corrections.annotation import Answer, Case, DrawnRegion, quoted, read_case
from backend.corrections.config_of import choose_config
from backend.corrections.log import Served, StoredAnnotation
from backend.corrections.tables import AHEAD_SECONDS, row_id
from backend.errors import TaskError, where
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.outlines import is_outline_of
from backend.label_studio.phrases import has_phrase, wanted
from backend.label_studio.read_regions import Mask
from backend.label_studio.region_ids import stands_alone, superseded
from backend.label_studio.wire import Task
from backend.settings import PROMPT_NAME
from backend.support.byte_cache import ByteCache
from sam4mllm.errors import Sam4mllmError
from sam4mllm.identity import digest_of
from sam4mllm.images import MAX_PIXELS
from sam4mllm.masks import Rle, from_rle, mask_iou

log = logging.getLogger(__name__)

MEMORY = 64 * 1024 * 1024
"""Bytes of reviews that are kept: the log is read again and again, and most of it is as it was."""
DRAWING_TYPES = frozenset(("brushlabels", "bitmasklabels", "polygonlabels", "ellipselabels", "rectanglelabels"))

Outcome = Literal["accepted", "edited", "drawn", "none"]


class Annotations(Protocol):
    """What is known of annotations: the log's, or an export's."""

    def each_annotation(self) -> Iterator[StoredAnnotation]: ...
    def served(self, project: int, task: int) -> list[Served]: ...
    def withheld(self, project: int, task: int) -> bool: ...


@dataclass(frozen=True)
class Review:
    """What a reviewer made of a phrase in a task's image.

    ``instances``: its regions' masks, each once, and none for the outcome "none". ``outcome``: "accepted" as served, "edited", "drawn" by
    hand, or "none": there is no such object. ``iou``: of all that stands against all that was served for the phrase; None if nothing was.
    ``version``: what served it, or empty. ``features``: those of its least sure region. ``lead_time``: seconds; ``reviewer``: the user who
    was last to save; ``updated``: seconds since 1970. ``image``: the reference in the task's data; ``page``: its number there, from 0, in a
    task of several. ``unassisted``: no pre-annotation was shown, on purpose. ``score``: that of the least sure region when it was served,
    None if nothing was. ``changed``: the stamp of the annotation in the log, which says what came first.
    """

    annotation: int
    project: int
    task: int
    phrase: str
    label: str | None
    instances: tuple[Rle, ...]
    width: int
    height: int
    outcome: Outcome
    iou: float | None
    version: str
    features: dict[str, float]
    lead_time: float | None
    reviewer: int | None
    updated: float
    image: str
    unassisted: bool
    score: float | None = None
    page: int = 0
    changed: float = field(default=0.0, compare=False)


def in_order(review: Review) -> tuple[float, float, int]:
    """A key to sort by: the order in which reviews came, and of those that were fetched together that of Label Studio's times."""
    return (review.changed, review.updated, review.annotation)


@dataclass(frozen=True)
class Refused:
    """An annotation that nothing is learnt from, or one of its pages, and why, in one line."""

    annotation: int
    project: int
    task: int
    reason: str


@dataclass(frozen=True)
class Reviews:
    """One review at most for each phrase of a picture, in order of project, task, phrase and page; and what was refused."""

    reviews: list[Review]
    refused: list[Refused]


@dataclass(frozen=True)
class _Found:
    """What an annotation teaches, and why it is refused, or the first of its pages that are; empty if none is."""

    reviews: tuple[Review, ...] = ()
    refusal: str = ""

    @property
    def nbytes(self) -> int:
        return 1000 + sum(1000 + len(mask["counts"]) for review in self.reviews for mask in review.instances)


_memory: ByteCache[str, _Found] = ByteCache(MEMORY, lambda found: found.nbytes)


def read_reviews(corrections: Annotations, phrase_field: str, max_pixels: int = MAX_PIXELS, prompt_control: str = PROMPT_NAME) -> Reviews:
    """All that the log's annotations teach; skipped and deleted ones teach nothing.

    Of several reviews of a phrase in a picture a ground truth comes first, then the newest. ``phrase_field`` is where a task's data holds
    its phrase, ``prompt_control`` the TextArea with what was typed; masks of more than ``max_pixels`` are refused.
    """
    best: dict[tuple[int, int, str, int], tuple[bool, Review]] = {}
    refused: list[Refused] = []
    for stored in corrections.each_annotation():
        if stored.state == "skipped":
            continue
        truth = stored.body.get("ground_truth") is True
        found = _remembered(stored, corrections, phrase_field, max_pixels, prompt_control)
        if found.refusal:
            refused.append(Refused(stored.id, stored.project, stored.task, found.refusal))
        for one in found.reviews:
            review = replace(one, changed=stored.changed)
            key = (review.project, review.task, review.phrase, review.page)
            if key not in best or truth > best[key][0] or (truth == best[key][0] and _is_newer(review, best[key][1])):
                best[key] = truth, review
    return Reviews([best[key][1] for key in sorted(best)], refused)


def _is_newer(one: Review, other: Review) -> bool:
    """By Label Studio's times, unless one of them is yet to come, so that its clock was ahead."""
    if max(one.updated, other.updated) > time.time() + AHEAD_SECONDS:
        return in_order(one) > in_order(other)
    return (one.updated, one.annotation) > (other.updated, other.annotation)


def _remembered(stored: StoredAnnotation, corrections: Annotations, phrase_field: str, max_pixels: int, prompt_control: str) -> _Found:
    """The reviews of an annotation, or why it is refused; worked out once for as long as nothing that they hang on has changed."""
    served, unassisted = corrections.served(stored.project, stored.task), corrections.withheld(stored.project, stored.task)
    known_of = {"annotation": stored.digest, "served": json.dumps([vars(one) for one in served], sort_keys=True), "unassisted": unassisted}
    key = digest_of({**known_of, "phrase_field": phrase_field, "max_pixels": max_pixels, "prompt_control": prompt_control})
    known = _memory.get(key)
    if known is None:
        try:
            known = _find(stored, choose_config(stored, prompt_control), served, unassisted, phrase_field, max_pixels)
        except Sam4mllmError as error:
            known = _Found(refusal=str(error))
        except Exception as error:  # an annotation is foreign: one must not keep the others from being learnt
            known = _Found(refusal=f"internal error ({where(error)})")
            log.error("annotation %d: %s", stored.id, known.refusal)
        _memory.put(key, known)
    return known


def _find(
    stored: StoredAnnotation, config: LabelConfig, served: Sequence[Served], unassisted: bool, phrase_field: str, max_pixels: int
) -> _Found:
    """Raises Sam4mllmError: why the annotation is refused. One page that is does not spoil the others."""
    pictures = config.pictures(stored.data)
    if not config.paged:
        case = read_case(stored, config, None, served, max_pixels)
        return _Found(tuple(_reviews(case, pictures[0], 0, unassisted, phrase_field)))
    found: list[Review] = []
    refusals: list[str] = []
    for page, image in enumerate(pictures):
        try:
            case = read_case(stored, config, page, served, max_pixels)
            found += _reviews(case, image, page, unassisted, phrase_field)
        except Sam4mllmError as error:
            refusals.append(f"page {page + 1}: {error}")
    return _Found(tuple(found), next(iter(refusals), ""))


def _reviews(case: Case, image: str, page: int, unassisted: bool, phrase_field: str) -> Iterator[Review]:
    """Raises Sam4mllmError: why what is about this picture is refused."""
    phrases = _phrases(case, phrase_field)
    labels_of_config = {label.phrase or label.value for label in case.config.mask.labels}
    named_by_labels = phrases.keys() <= labels_of_config and not (case.typed or has_phrase(case.stored.data, phrase_field))
    shares = _share_out(case, phrases, named_by_labels)
    alone = [region for region in case.drawn if stands_alone(region.id) and not named_by_labels]
    if alone and not any(shares.values()):
        # it may be the thing that the phrase means, or another
        raise TaskError("its only masks were made by clicks away from what was found; paint them, or type what they are, to teach it")
    for phrase, label in phrases.items():
        drawn = shares[phrase]
        decided = _decide_masks(case, phrase, drawn) if drawn else None if alone else _decide_none(case, phrase)
        if decided is not None:
            labels = {name for region in drawn for name in region.labels}
            review = _review(case, phrase, labels.pop() if len(labels) == 1 else label, drawn, decided, image, unassisted)
            yield replace(review, page=page)


# -- regions to phrases --------------------------------------------------------------------------------------------------------------------


def _phrases(case: Case, phrase_field: str) -> dict[str, str | None]:
    """The phrases that the annotation may be about, with their labels.

    These are what was typed or else the task's own, what the reviewer had been shown, and whatever the regions were served for.
    """
    batch = case.answers_to(None, interactive=False)
    shown = [answer for answer in batch if answer.time == batch[-1].time and case.was_seen(answer)]
    if case.typed:
        # whoever typed something else for want of an answer speaks of that
        shown = [answer for answer in shown if answer.regions]
    shown += [answer for answer in case.answers if case.present & answer.regions.keys()]
    phrases = {answer.phrase: _label_of(answer, case.config) for answer in shown if answer.phrase}
    task = Task(case.stored.task, case.stored.data)
    asked = wanted(task, case.config, case.typed, phrase_field, next(iter(phrases), ""))
    return phrases | {one.phrase: one.label for one in asked}


def _label_of(answer: Answer, config: LabelConfig) -> str | None:
    """The label that a phrase was served with, or what it is in a config that no longer has that one."""
    label = answer.records[0].label
    known = label is None or any(label == one.value for one in config.mask.labels)
    return label if known else config.label_for(answer.phrase)


def _share_out(case: Case, phrases: Mapping[str, str | None], named_by_labels: bool) -> dict[str, list[DrawnRegion]]:
    """Each phrase's regions: by what they were served for, else by their label. Raises TaskError where that does not decide.

    What stands alone has a phrase only if the phrases are the labels themselves (``named_by_labels``): the reviewer chose its label.
    """
    served = {
        region: (answer.phrase, _label_of(answer, case.config)) for answer in case.answers for region in answer.regions if answer.phrase
    }
    shares: dict[str, list[DrawnRegion]] = {phrase: [] for phrase in phrases}
    replaced = superseded(case.regions)
    for region in case.drawn:
        if region.id in replaced or (stands_alone(region.id) and not named_by_labels):
            continue
        if region.id in served:
            phrase, label = served[region.id]
            moved = [name for name in region.labels if label is not None and name != label and name in phrases.values()]
            if moved:
                raise TaskError(f"a region was served for {quoted(phrase)} and is now labelled {quoted(moved[0])}")
        else:
            phrase = _phrase_of(region, phrases, case.config)
        shares[phrase].append(region)
    _check_other_controls(case, phrases)
    return shares


def _phrase_of(region: DrawnRegion, phrases: Mapping[str, str | None], config: LabelConfig) -> str:
    if not region.labels and not config.mask.labels and len(phrases) == 1:
        return next(iter(phrases))
    if not region.labels:
        raise TaskError("a region has no label that would tell its phrase")
    fit = [phrase for phrase, label in phrases.items() if label is None or label in region.labels]
    if len(fit) != 1:
        which = f"{len(fit)} phrases" if fit else "none of the task's phrases"
        raise TaskError(f"a region's label {quoted(region.labels[0])} fits {which}")
    return fit[0]


def _check_other_controls(case: Case, phrases: Mapping[str, str | None]) -> None:
    """What was drawn with another control is not read, so that a phrase which it may be about is not known as a whole."""
    own = [control.name for control in (case.config.mask, case.config.box) if control is not None]
    for region in case.regions:
        kind, value = region.get("type"), region.get("value")
        names = value.get(kind) if isinstance(kind, str) and kind in DRAWING_TYPES and isinstance(value, dict) else None
        if region.get("from_name") not in own and isinstance(names, list) and any(label in names for label in phrases.values()):
            raise TaskError(f"a region was drawn with {quoted(region.get('from_name'))}; only {case.config.mask.name!r} is read")


# -- decisions -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Decision:
    """``base`` is what was served for the phrase, as the reviewer saw it or, unseen, as it would have been; ``size`` (height, width);
    ``masks`` are what stands.
    """

    outcome: Outcome
    iou: float | None
    base: tuple[Answer, ...]
    size: tuple[int, int]
    masks: tuple[Rle, ...] = ()


def _decide_none(case: Case, phrase: str) -> _Decision | None:
    """Whether the reviewer said that the phrase means nothing here; None if that is not known.

    Of a phrase in whose place another one was typed it is not: the same thing may have been found by better words.
    """
    if case.typed and case.typed != phrase:
        return None
    proof = [answer for answer in case.answers_to(phrase, interactive=False)[-1:] if case.was_seen(answer)]
    if not proof and case.typed:
        proof = [answer for answer in case.answers_to(phrase, interactive=True)[-1:] if not answer.regions]
    if not proof:
        return None
    return _Decision("none", 0.0 if proof[0].regions else 1.0, tuple(proof), _one_size(case, proof))


def _decide_masks(case: Case, phrase: str, drawn: Sequence[DrawnRegion]) -> _Decision:
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
    return _Decision(outcome, _iou(final, list(served.values()), size) if base else None, tuple(base), size, final)


def _base(case: Case, phrase: str, kept: set[str]) -> list[Answer]:
    """The answers that the final regions are compared with: a batch's before an annotator's, in which clicks may have a part."""
    taken = [answer for answer in case.answers if answer.phrase == phrase and kept & answer.regions.keys()]
    batch = case.answers_to(phrase, interactive=False)[-1:]
    return (
        [answer for answer in taken if not answer.interactive]
        or [answer for answer in batch if not taken or case.was_seen(answer)]
        or taken
        or case.answers_to(phrase, interactive=True)[-1:]
    )


def _kind(case: Case, phrase: str, region: DrawnRegion, served: Rle | None) -> Outcome:
    """What happened to a region, given the mask that was served under its id for its phrase."""
    if served is None:
        others = [answer.phrase for answer in case.answers if region.id in answer.regions]
        if others:
            return "edited" if phrase in others else "drawn"  # asked for anew, with clicks; or with clicks alone
        origins: dict[str, Outcome] = {"prediction": "accepted", "prediction-changed": "edited"}
        return origins.get(region.origin, "drawn")
    if region.origin == "prediction-changed":
        return "edited"
    return "accepted" if _is_of(case, region, served) else "edited"


def _is_of(case: Case, region: DrawnRegion, served: Rle) -> bool:
    """Whether a region shows a mask as it was served: one that clicks refined keeps its id, and counts as untouched in Label Studio."""
    if _is_exact(case):
        return region.mask["counts"] == served["counts"]
    return region.origin == "prediction" and is_outline_of(region.mask, served, case.config)


def _is_exact(case: Case) -> bool:
    """Whether a region shows its mask as it is, not as an outline."""
    return case.config.mask.drawing in ("BrushLabels", "BitmaskLabels")


def _final(case: Case, drawn: Sequence[DrawnRegion], base: Sequence[Answer], size: tuple[int, int]) -> tuple[Rle, ...]:
    """The masks that the regions stand for, each once. An outline that was not touched stands for the mask that it was made from."""
    made_from: dict[str, Rle] = {}
    outlines = {} if _is_exact(case) else {region.id: region for region in drawn if region.origin == "prediction"}
    for answer in (*case.answers, *base):
        # several outlines may be of one mask: where one of them was changed or deleted, the others are all that is left of it
        pieces: dict[str, set[str]] = {}
        for region, mask in answer.regions.items():
            pieces.setdefault(mask["counts"], set()).add(region)
        for region, mask in answer.regions.items():
            whole = pieces[mask["counts"]] <= outlines.keys() and mask["size"] == [*size]
            if whole and _is_of(case, outlines[region], mask):
                made_from[region] = mask
    final = [made_from.get(region.id, region.mask) for region in drawn]
    return tuple({mask["counts"]: mask for mask in final}.values())


def _one_size(case: Case, base: Sequence[Answer]) -> tuple[int, int]:
    sizes = {(record.height, record.width) for answer in base for record in answer.records} | ({case.size} if case.size else set())
    if len(sizes) != 1:
        raise TaskError("the annotation's masks are of another size than what was served")
    return sizes.pop()


def _iou(final: Sequence[Rle], served: Sequence[Rle], size: tuple[int, int]) -> float:
    if {mask["counts"] for mask in final} == {mask["counts"] for mask in served}:
        return 1.0
    return mask_iou(_union(final, size), _union(served, size))


def _union(masks: Iterable[Rle], size: tuple[int, int]) -> Mask:
    """One at a time: decoded, each is as large as the image."""
    union = np.zeros(size, np.bool_)
    for mask in masks:
        union |= from_rle(mask, *size, max_pixels=size[0] * size[1])
    return union


def _review(
    case: Case, phrase: str, label: str | None, drawn: Sequence[DrawnRegion], decided: _Decision, image: str, unassisted: bool
) -> Review:
    stored, body = case.stored, case.stored.body
    records = [record for answer in decided.base for record in answer.records]
    least = min(records, key=lambda record: record.score, default=None)
    users = (row_id(body.get(name)) for name in ("updated_by", "completed_by"))
    return Review(
        annotation=stored.id,
        project=stored.project,
        task=stored.task,
        phrase=phrase,
        label=label,
        instances=decided.masks,
        width=decided.size[1],
        height=decided.size[0],
        outcome=decided.outcome,
        iou=decided.iou,
        version=decided.base[-1].version if decided.base else "",
        features=dict(least.features) if least else {},
        lead_time=_seconds(body.get("lead_time")),
        reviewer=next((user for user in users if user is not None), None),
        updated=stored.updated,
        image=image,
        unassisted=unassisted,
        score=least.score if least else None,
    )


def _seconds(value: Any) -> float | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9 and math.isfinite(value)
    return float(value) if whole else None
