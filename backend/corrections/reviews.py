"""What reviewers decided, phrase by phrase, worked out from the log alone: the learning data.

Nothing is guessed. An annotation whose regions do not say which phrase they belong to, or whose masks cannot be trusted, is refused with a
reason and stays in the log. An empty annotation proves nothing by itself, because Label Studio at times shows no pre-annotation. A phrase
counts as meaning nothing in an image only if the reviewer deleted its served masks or let a served "no such object" stand. A mask that
clicks made away from all served masks teaches nothing about the phrase, unless the phrases are the labels themselves: then the
reviewer chose its label. A mask that a refined mask replaces is left out.
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
    """A source of annotations and of what was served for their tasks: the log, or an export."""

    def each_annotation(self) -> Iterator[StoredAnnotation]: ...
    def served(self, project: int, task: int) -> list[Served]: ...
    def withheld(self, project: int, task: int) -> bool: ...
    def parameters(self, project: int) -> Parameters: ...


@dataclass(frozen=True)
class Review:
    """What a reviewer made of a phrase in a task's image.

    ``instances``: the masks of the phrase's regions, each once; empty for the outcome "none". ``outcome``: "accepted" as served, "edited",
    "drawn" by hand, or "none": there is no such object. ``iou``: the IoU of the final masks' union with the union of the masks served for
    the phrase; None if nothing was served. ``version``: the version that served the phrase, or empty. ``score`` and ``features``: those of
    the served region with the lowest score; None and empty if nothing was served. ``lead_time``: seconds. ``reviewer``: the user who saved
    last. ``updated``: Label Studio's time, in seconds since 1970. ``image``: the picture's reference in the task's data. ``page``: the
    picture's number, from 0, in a task of several. ``unassisted``: no pre-annotation was shown, on purpose. ``by_label``: the phrase is the
    label's name, because the task has no phrase of its own. ``served``: the masks that were served for the phrase, with the label
    ``served_label``. ``changed``: the stamp of the annotation in the log, which says what came first.
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
    """Return a sort key: the order in which reviews came and, for reviews with the same stamp, Label Studio's times."""
    return (review.changed, review.updated, review.annotation)


@dataclass(frozen=True)
class Refused:
    """An annotation that is refused, as a whole or for one of its pages; ``reason`` says why, in one line."""

    annotation: int
    project: int
    task: int
    reason: str


@dataclass(frozen=True)
class Reviews:
    """At most one review for each phrase of a picture, and the annotations that were refused.

    ``left_out`` are reviews from which nothing is to be learned.
    """

    reviews: list[Review]
    refused: list[Refused]
    left_out: list[Review] = field(default_factory=list)


@dataclass(frozen=True)
class Taught:
    """What one annotation teaches.

    ``refusal`` says why the annotation, or the first refused one of its pages, is refused; empty if nothing is. ``truth`` says that Label
    Studio marks the annotation as a ground truth.
    """

    reviews: tuple[Review, ...] = ()
    refusal: str = ""
    truth: bool = False


Key = tuple[int, int, str, int]
"""The project, task, phrase and page of a review. At most one review is chosen for each key."""


def key_of(review: Review) -> Key:
    return (review.project, review.task, review.phrase, review.page)


def read_reviews(corrections: Annotations, phrase_field: str, max_pixels: int = MAX_PIXELS, prompt_control: str = PROMPT_NAME) -> Reviews:
    """All that the annotations teach, in order of project, task, phrase and page; skipped and deleted ones teach nothing.

    ``phrase_field`` is where a task's data holds its phrase, unless the project's parameters name another field. ``prompt_control`` is the
    TextArea with what was typed. An annotation with a mask of more than ``max_pixels`` is refused.
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
    """Return the review that counts among several of the same phrase in a picture: one of a ground truth before others, then the newest.

    Each candidate is a pair: whether its annotation is a ground truth, and the review.
    """
    best = candidates[0]
    for one in candidates[1:]:
        if one[0] > best[0] or (one[0] == best[0] and _is_newer(one[1], best[1])):
            best = one
    return best[1]


def _is_newer(one: Review, other: Review) -> bool:
    """Whether ``one`` is newer than ``other`` by Label Studio's times.

    If one of these lies in the future, Label Studio's clock was ahead, and the order in which the reviews came decides.
    """
    if max(one.updated, other.updated) > time.time() + AHEAD_SECONDS:
        return in_order(one) > in_order(other)
    return (one.updated, one.annotation) > (other.updated, other.annotation)


def read_one(stored: StoredAnnotation, corrections: Annotations, phrase_field: str, max_pixels: int, prompt_control: str) -> Taught:
    """What one annotation teaches, or why it is refused; a skipped one teaches nothing and is not refused. What is wrong with the
    annotation is never raised; what ``corrections`` raises is.
    """
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
    """Return what an annotation teaches. Raises Sam4mllmError if all of it is refused; the text says why.

    In a task of several pages, a page that is refused does not spoil the others.
    """
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
    """Yield the reviews of one picture. Raises Sam4mllmError if the annotation is refused for this picture; the text says why."""
    phrases = find_phrases(case, phrase_field)
    prompts = {prompt for some in case.config.prompts.values() for prompt in some}
    labels_of_config = {label.phrase or label.value for label in case.config.mask.labels} | prompts
    named_by_labels = phrases.keys() <= labels_of_config and not (case.typed or has_phrase(case.stored.data, phrase_field))
    shares = share_out(case, phrases, named_by_labels)
    alone = [region for region in case.drawn if stands_alone(region.id) and not named_by_labels]
    if alone and not any(shares.values()):
        # the masks may show the object that the phrase means, or another one
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
