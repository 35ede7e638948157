"""What pre-annotations are worth: the time that a task takes with and without, and what reviewers make of the masks, by version."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backend.corrections.reviews import Review, in_order
from sam4mllm.adapters.manifest import number_of

SHOWN_VERSIONS = 10
"""How many versions are shown, the newest ones; the figures of earlier ones hardly change any more."""


@dataclass(frozen=True)
class TaskGroup:
    """A group of submitted annotations; ``tasks`` is how many there are, so that a task that was annotated twice counts twice.

    ``seconds``: the median of Label Studio's ``lead_time``, None if it is known of none. ``agreement``: the mean IoU of what was served,
    even if the reviewer did not see it, and what the reviewer made of it. ``unchanged``: the share of phrases whose answer the reviewer
    left as it was. The last two are None where nothing was served.
    """

    name: str
    tasks: int
    seconds: float | None
    agreement: float | None
    unchanged: float | None


@dataclass(frozen=True)
class Worth:
    """Tasks with a pre-annotation, those without on purpose, and those with one by the ``versions`` that served it, the newest first."""

    assisted: TaskGroup
    unassisted: TaskGroup
    versions: tuple[TaskGroup, ...] = ()

    @property
    def rows(self) -> tuple[TaskGroup, ...]:
        return (self.assisted, self.unassisted, *self.versions)

    @property
    def saved(self) -> float | None:
        """Seconds that a pre-annotation saves in a task, by the medians; below 0 if it costs time, None if a median is not known."""
        if self.assisted.seconds is None or self.unassisted.seconds is None:
            return None
        return self.unassisted.seconds - self.assisted.seconds

    def cost(self, share: float) -> float | None:
        """Minutes that a hundred tasks take longer if this share of them has no pre-annotation."""
        return None if self.saved is None else 100 * share * self.saved / 60


def measure_worth(reviews: Iterable[Review]) -> Worth:
    """Group the reviews by annotation, and measure what predictions are worth.

    An annotation is left out if no prediction was served for it, unless that was withheld on purpose.
    """
    tasks: defaultdict[tuple[int, int], list[Review]] = defaultdict(list)
    for review in reviews:
        tasks[review.project, review.annotation].append(review)
    assisted: list[list[Review]] = []
    unassisted: list[list[Review]] = []
    versions: defaultdict[str, list[list[Review]]] = defaultdict(list)
    for found in tasks.values():
        if all(one.unassisted and one.outcome == "drawn" for one in found):
            unassisted.append(found)
        elif version := max(found, key=in_order).version:
            assisted.append(found)
            versions[version].append(found)
    newest = sorted(versions, key=number_of, reverse=True)[:SHOWN_VERSIONS]
    return Worth(
        _group("with a mask", assisted), _group("without, on purpose", unassisted), tuple(_group(name, versions[name]) for name in newest)
    )


def _group(name: str, tasks: Sequence[Sequence[Review]]) -> TaskGroup:
    seconds = [lead for found in tasks if (lead := next((one.lead_time for one in found if one.lead_time is not None), None)) is not None]
    served = [(one.outcome, one.iou) for found in tasks for one in found if one.iou is not None]
    return TaskGroup(
        name,
        len(tasks),
        statistics.median(seconds) if seconds else None,
        statistics.fmean(iou for _, iou in served) if served else None,
        statistics.fmean(outcome == "accepted" or (outcome == "none" and iou == 1) for outcome, iou in served) if served else None,
    )


NOTHING = measure_worth([])
