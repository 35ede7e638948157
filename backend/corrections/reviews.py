"""What reviewers decided, phrase by phrase, worked out from the log alone: the learning data.

Nothing is guessed. An annotation whose regions do not say which phrase they belong to, or whose masks cannot be trusted, is refused with a
reason and stays in the log. An empty annotation proves nothing by itself, for Label Studio at times shows no pre-annotation: that a phrase
means nothing in an image takes a served mask that the reviewer deleted, or a served "no such object" that the reviewer let stand. A mask
that clicks made away from all that was served is no truth for the phrase, and one that a refined mask takes the place of is left out.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from backend.corrections.annotation import DrawnRegion, ReviewedAnnotation, read_annotation
from backend.corrections.config_of import choose_config
from backend.corrections.decisions import Outcome, PhraseDecision, decide_masks, decide_none
from backend.corrections.log_records import Served, StoredAnnotation
from backend.corrections.phrase_shares import find_phrases, share_out
from backend.corrections.tables import AHEAD_SECONDS
from backend.errors import TaskError, where
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.parameters import Parameters
from backend.label_studio.phrases import has_phrase
from backend.label_studio.region_ids import stands_alone
from backend.label_studio.wire import row_id
from backend.settings import PROMPT_NAME
from sam4mllm.errors import Sam4mllmError
from sam4mllm.images import MAX_PIXELS
from sam4mllm.run_lengths import Rle

log = logging.getLogger(__name__)


class Annotations(Protocol):
    """What is known of annotations: the log's, or an export's."""

    def each_annotation(self) -> Iterator[StoredAnnotation]: ...
    def served(self, project: int, task: int) -> list[Served]: ...
    def withheld(self, project: int, task: int) -> bool: ...
    def parameters(self, project: int) -> Parameters: ...


@dataclass(frozen=True)
class Review:
    """What a reviewer made of a phrase in a task's image.

    ``instances``: its regions' masks, each once, and none for the outcome "none". ``outcome``: "accepted" as served, "edited", "drawn" by
    hand, or "none": there is no such object. ``iou``: of all that stands against all that was served for the phrase; None if nothing was.
    ``version``: what served it, or empty. ``features``: those of its least sure region. ``lead_time``: seconds; ``reviewer``: the user who
    was last to save; ``updated``: seconds since 1970. ``image``: the reference in the task's data; ``page``: its number there, from 0, in a
    task of several. ``unassisted``: no pre-annotation was shown, on purpose. ``score``: that of the least sure region when it was served,
    None if nothing was. ``by_label``: the phrase is the label's name, for the task has none of its own. ``served``: the
    masks that were served for it, under ``served_label``. ``changed``: the stamp of the annotation in the log, which says what came first.
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
    by_label: bool = False
    served: tuple[Rle, ...] = ()
    served_label: str | None = None
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
    """One review at most for each phrase of a picture, and what was refused; ``left_out`` are those of whom nothing is to be learned."""

    reviews: list[Review]
    refused: list[Refused]
    left_out: list[Review] = field(default_factory=list)


@dataclass(frozen=True)
class Taught:
    """What one annotation teaches, and why it is refused, or the first of its pages that are; empty if none is. ``truth``: Label Studio has
    it as a ground truth.
    """

    reviews: tuple[Review, ...] = ()
    refusal: str = ""
    truth: bool = False


Key = tuple[int, int, str, int]
"""Project, task, phrase and page of a review: what there is one of at most."""


def key_of(review: Review) -> Key:
    return (review.project, review.task, review.phrase, review.page)


def read_reviews(corrections: Annotations, phrase_field: str, max_pixels: int = MAX_PIXELS, prompt_control: str = PROMPT_NAME) -> Reviews:
    """All that the annotations teach, in order of project, task, phrase and page; skipped and deleted ones teach nothing.

    ``phrase_field`` is where a task's data holds its phrase, ``prompt_control`` the TextArea with what was typed; masks of more than
    ``max_pixels`` are refused.
    """
    found: dict[Key, list[tuple[bool, Review]]] = {}
    refused: list[Refused] = []
    for stored in corrections.each_annotation():
        one = read_one(stored, corrections, phrase_field, max_pixels, prompt_control)
        if one.refusal:
            refused.append(Refused(stored.id, stored.project, stored.task, one.refusal))
        for review in one.reviews:
            found.setdefault(key_of(review), []).append((one.truth, review))
    return Reviews([choose(found[key]) for key in sorted(found)], refused)


def choose(candidates: Sequence[tuple[bool, Review]]) -> Review:
    """Of several reviews of a phrase in a picture a ground truth, then the newest; each is told with whether it is a truth."""
    best = candidates[0]
    for one in candidates[1:]:
        if one[0] > best[0] or (one[0] == best[0] and _is_newer(one[1], best[1])):
            best = one
    return best[1]


def _is_newer(one: Review, other: Review) -> bool:
    """By Label Studio's times, unless one of them is yet to come, so that its clock was ahead."""
    if max(one.updated, other.updated) > time.time() + AHEAD_SECONDS:
        return in_order(one) > in_order(other)
    return (one.updated, one.annotation) > (other.updated, other.annotation)


def read_one(stored: StoredAnnotation, corrections: Annotations, phrase_field: str, max_pixels: int, prompt_control: str) -> Taught:
    """What one annotation teaches, or why it is refused."""
    if stored.state == "skipped":
        return Taught()
    served, unassisted = corrections.served(stored.project, stored.task), corrections.withheld(stored.project, stored.task)
    parameters = corrections.parameters(stored.project)
    try:
        config = parameters.apply(choose_config(stored, prompt_control))
        found = _find(stored, config, served, unassisted, parameters.phrase_field(phrase_field), max_pixels)
    except Sam4mllmError as error:
        return Taught(refusal=str(error))
    except Exception as error:  # an annotation is foreign: one must not keep the others from being learnt
        reason = f"internal error ({where(error)})"
        log.error("annotation %d: %s", stored.id, reason)
        return Taught(refusal=reason)
    dated = tuple(replace(review, changed=stored.changed) for review in found.reviews)
    return replace(found, reviews=dated, truth=stored.body.get("ground_truth") is True)


def _find(
    stored: StoredAnnotation, config: LabelConfig, served: Sequence[Served], unassisted: bool, phrase_field: str, max_pixels: int
) -> Taught:
    """Raises Sam4mllmError: why the annotation is refused. One page that is does not spoil the others."""
    pictures = config.pictures(stored.data)
    if not config.paged:
        case = read_annotation(stored, config, None, served, max_pixels)
        return Taught(tuple(_reviews(case, pictures[0], 0, unassisted, phrase_field)))
    found: list[Review] = []
    refusals: list[str] = []
    for page, image in enumerate(pictures):
        try:
            case = read_annotation(stored, config, page, served, max_pixels)
            found += _reviews(case, image, page, unassisted, phrase_field)
        except Sam4mllmError as error:
            refusals.append(f"page {page + 1}: {error}")
    return Taught(tuple(found), next(iter(refusals), ""))


def _reviews(case: ReviewedAnnotation, image: str, page: int, unassisted: bool, phrase_field: str) -> Iterator[Review]:
    """Raises Sam4mllmError: why what is about this picture is refused."""
    phrases = find_phrases(case, phrase_field)
    prompts = {prompt for some in case.config.prompts.values() for prompt in some}
    labels_of_config = {label.phrase or label.value for label in case.config.mask.labels} | prompts
    named_by_labels = phrases.keys() <= labels_of_config and not (case.typed or has_phrase(case.stored.data, phrase_field))
    shares = share_out(case, phrases, named_by_labels)
    alone = [region for region in case.drawn if stands_alone(region.id) and not named_by_labels]
    if alone and not any(shares.values()):
        # it may be the thing that the phrase means, or another
        raise TaskError("its only masks were made by clicks away from what was found; paint them, or type what they are, to teach it")
    for phrase, label in phrases.items():
        drawn = shares[phrase]
        decided = decide_masks(case, phrase, drawn) if drawn else None if alone else decide_none(case, phrase)
        if decided is not None:
            labels = {name for region in drawn for name in region.labels}
            review = _review(case, phrase, labels.pop() if len(labels) == 1 else label, drawn, decided, image, unassisted)
            yield replace(review, page=page, by_label=named_by_labels and phrase not in prompts)


def _review(
    case: ReviewedAnnotation,
    phrase: str,
    label: str | None,
    drawn: Sequence[DrawnRegion],
    decided: PhraseDecision,
    image: str,
    unassisted: bool,
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
        served=decided.served,
        served_label=records[0].label if records else None,
    )


def _seconds(value: Any) -> float | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9 and math.isfinite(value)
    return float(value) if whole else None
