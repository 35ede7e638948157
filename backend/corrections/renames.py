"""Labels that were renamed: what was corrected under a former name is learned under the present one.

A label of one config and a label of the next are the same label if they share a name, be it the value or an alias. If exactly one label is
then left over in each config, that label was renamed, too. If more are left over, nothing shows which became which; a mapping in the
settings (``SAM4MLLM_RENAMED``) can say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from backend.corrections.reviews import Review, key_of
from backend.label_studio.label_config import Label

Renames = Mapping[str, Label]
"""What a label is now, by its former value."""


def follow(configs: Sequence[Sequence[Label]], told: Mapping[str, str] | None = None) -> dict[str, Label]:
    """Return, by its value, what each label in a project's configs is in the last of them; ``configs`` are in the order of time.

    Labels that are gone are left out. ``told`` maps former values to present ones and overrides what the configs show. An empty text there
    means that the former label was not renamed, so it is left out; a text that is no present label is ignored.
    """
    present: dict[str, Label] = {}
    before: Sequence[Label] = ()
    for labels in configs:
        step = _match(before, labels)
        present = {former: step.get(label.value, label) for former, label in present.items()}
        present |= {label.value: label for label in labels}
        before = labels
    last = {label.value: label for label in before}
    found = {former: last[label.value] for former, label in present.items() if label.value in last}
    told = told or {}
    kept = {former: label for former, label in found.items() if told.get(former) != ""}
    return kept | {former: last[now] for former, now in told.items() if now in last}


def unknown(configs: Sequence[Sequence[Label]], told: Mapping[str, str]) -> list[str]:
    """Return the values in the mapping ``told`` that do not exist: former ones that no config has, and present ones that the last config
    lacks.
    """
    ever = {label.value for labels in configs for label in labels}
    now = {label.value for label in configs[-1]} if configs else set()
    return sorted({former for former in told if former not in ever} | {value for value in told.values() if value and value not in now})


def rename(reviews: Iterable[Review], renames: Renames) -> list[Review]:
    """Return the reviews of an annotation under the labels' present names.

    A phrase that is the name of its label changes with it. Reviews that thereby get the same key are joined into one.
    """
    found: dict[tuple[int, int, str, int], Review] = {}
    for review in (_renamed(one, renames) for one in reviews):
        key = key_of(review)
        found[key] = _joined(found[key], review) if key in found else review
    return list(found.values())


def _renamed(review: Review, renames: Renames) -> Review:
    label = renames.get(review.label or "")
    if label is None:
        return review
    return replace(review, label=label.value, phrase=(label.phrase if review.by_label else None) or review.phrase)


def _joined(one: Review, other: Review) -> Review:
    """Return one review with the masks of two, which are of one annotation and now have the same key. The lower IoU is kept.

    If the outcomes differ, that of the review with masks is kept, or the outcome is "edited" if both have masks. All else is from ``one``.
    """
    ious = [review.iou for review in (one, other) if review.iou is not None]
    instances, served = (*one.instances, *other.instances), (*one.served, *other.served)
    outcome = one.outcome if one.outcome == other.outcome or not other.instances else other.outcome if not one.instances else "edited"
    return replace(one, instances=instances, served=served, outcome=outcome, iou=min(ious, default=None))


def _match(before: Sequence[Label], after: Sequence[Label]) -> dict[str, Label]:
    """Return, by its value, what each label of a config is in the next config."""
    values = {label.value: label for label in after}
    found = {label.value: values[label.value] for label in before if label.value in values}
    for label in before:
        if label.value not in found:
            shared = [one for one in after if one not in found.values() and set(one.names) & set(label.names)]
            if shared:
                found[label.value] = shared[0]
    went = [label for label in before if label.value not in found]
    came = [label for label in after if label not in found.values()]
    if len(went) == len(came) == 1:
        found[went[0].value] = came[0]
    return found
