"""Which phrases an annotation is about, and which of its regions belong to each. Nothing is guessed: what does not decide is an error."""

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
    """The phrases that the annotation may be about, with their labels.

    These are what was typed or else the task's own, what the reviewer had been shown, and whatever the regions were served for.
    """
    batch = case.answers_to(None, interactive=False)
    shown = [answer for answer in batch if answer.time == batch[-1].time and case.was_seen(answer)]
    if case.typed:
        # where nothing had been found for the phrase shown, the annotation is about what was typed
        shown = [answer for answer in shown if answer.regions]
    shown += [answer for answer in case.answers if case.present & answer.regions.keys()]
    phrases = {answer.phrase: _label_of(answer, case.config) for answer in shown if answer.phrase}
    task = Task(case.stored.task, case.stored.data)
    asked = wanted(task, case.config, case.typed, phrase_field, next(iter(phrases), ""), {answer.phrase for answer in case.answers})
    return phrases | {one.phrase: one.label for one in asked if phrases.get(one.phrase) is None}


def _label_of(answer: Answer, config: LabelConfig) -> str | None:
    """The label that a phrase was served with, or what it is in a config that no longer has that one."""
    label = answer.records[0].label
    known = label is None or any(label == one.value for one in config.mask.labels)
    return label if known else config.label_for(answer.phrase)


def share_out(case: ReviewedAnnotation, phrases: Mapping[str, str | None], named_by_labels: bool) -> dict[str, list[DrawnRegion]]:
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


def _check_other_controls(case: ReviewedAnnotation, phrases: Mapping[str, str | None]) -> None:
    """What was drawn with another control is not read, so that a phrase which it may be about is not known as a whole."""
    own = [control.name for control in (case.config.mask, case.config.box) if control is not None]
    for region in case.regions:
        kind, value = region.get("type"), region.get("value")
        names = value.get(kind) if isinstance(kind, str) and kind in DRAWING_TYPES and isinstance(value, dict) else None
        if region.get("from_name") not in own and isinstance(names, list) and any(label in names for label in phrases.values()):
            raise TaskError(f"a region was drawn with {quoted(region.get('from_name'))}; only {case.config.mask.name!r} is read")
