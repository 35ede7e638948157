"""Which phrases an annotation is about, and which of its regions belong to each phrase.

Nothing is guessed: if it is not clear which phrase a region belongs to, that is an error.
"""

from __future__ import annotations

from collections.abc import Mapping

from backend.corrections.annotation import Answer, DrawnRegion, ReviewedAnnotation, quoted
from backend.errors import TaskError
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.phrases import wanted
from backend.label_studio.region_ids import stands_alone, superseded
from backend.label_studio.wire import Task

DRAWING_TYPES = frozenset(("brushlabels", "bitmasklabels", "polygonlabels", "ellipselabels", "rectanglelabels"))


def find_phrases(case: ReviewedAnnotation, phrase_field: str) -> dict[str, str | None]:
    """Return the phrases that the annotation may be about, with their labels.

    These are the typed phrases or, if none was typed, the task's own; the phrases whose answers the reviewer was shown; and the phrases
    that the annotation's regions were served for. If there are none of these, they are the phrases of the config's labels. Raises TaskError
    and PhraseError as :func:`~backend.label_studio.phrases.wanted`.
    """
    batch = case.answers_to(None, interactive=False)
    shown = [answer for answer in batch if answer.time == batch[-1].time and case.was_seen(answer)]
    if case.typed:
        # a phrase for which nothing was found no longer counts: the annotation is about what was typed instead
        shown = [answer for answer in shown if answer.regions]
    shown += [answer for answer in case.answers if case.present & answer.regions.keys()]
    phrases = {answer.phrase: _label_of(answer, case.config) for answer in shown if answer.phrase}
    task = Task(case.stored.task, case.stored.data)
    asked = wanted(task, case.config, case.typed, phrase_field, next(iter(phrases), ""), {answer.phrase for answer in case.answers})
    return phrases | {one.phrase: one.label for one in asked if phrases.get(one.phrase) is None}


def _label_of(answer: Answer, config: LabelConfig) -> str | None:
    """Return the label that a phrase was served with or, if the config no longer has that label, the label that the phrase means in it."""
    label = answer.records[0].label
    known = label is None or any(label == one.value for one in config.mask.labels)
    return label if known else config.label_for(answer.phrase)


def share_out(case: ReviewedAnnotation, phrases: Mapping[str, str | None], named_by_labels: bool) -> dict[str, list[DrawnRegion]]:
    """Return each phrase's regions. A region belongs to the phrase that it was served for, or else to the phrase that has its label, if
    just one fits; a phrase without a label fits any. If neither the region nor the config has labels, the region belongs to the only
    phrase.

    A region that a refined region replaces belongs to no phrase. A region that clicks alone made belongs to a phrase only if the phrases
    are the labels themselves (``named_by_labels``), because then the reviewer chose its label.

    Raises TaskError if the label does not decide, if a served region now has the label of another phrase, or
    if another control drew a region that has a phrase's label.
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


def _check_other_controls(case: ReviewedAnnotation, phrases: Mapping[str, str | None]) -> None:
    """Raise TaskError if a region of another control has the label of a phrase. Such a region is not read, so the masks of the phrase would
    be incomplete.
    """
    own = [control.name for control in (case.config.mask, case.config.box) if control is not None]
    for region in case.regions:
        kind, value = region.get("type"), region.get("value")
        names = value.get(kind) if isinstance(kind, str) and kind in DRAWING_TYPES and isinstance(value, dict) else None
        if region.get("from_name") not in own and isinstance(names, list) and any(label in names for label in phrases.values()):
            raise TaskError(f"a region was drawn with {quoted(region.get('from_name'))}; only {case.config.mask.name!r} is read")
