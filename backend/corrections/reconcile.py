"""The log made equal to what Label Studio holds: its webhooks are sent once, and imported annotations send none.

A look costs what changed, not what there is. The annotated tasks are listed by their last change, newest first, as far back as the look
before this one went, and the annotations of those that changed are asked for. A task's time changes with its predictions, too: one that was
only predicted is found as it was. What leaves no such trace, a deletion above all, shows in the number of the project's annotations: then
all annotated tasks are listed and compared by how many annotations each has. Once a day all are asked for. No prediction ever is: a
project's take many times the room of its annotations.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.corrections.log import CorrectionLog
from backend.corrections.log_faults import LogError
from backend.corrections.tables import Pulled, instant
from backend.errors import LabelStudioError, where
from backend.label_studio.client import LabelStudio

log = logging.getLogger(__name__)

AT_ONCE = 50
"""Tasks that are taken over together: their masks are in memory meanwhile."""
MARGIN = 60.0
"""Seconds before the newest change seen from which on tasks are asked for again: a change may be saved later than its time says."""
DAY = 24 * 3600.0
"""Seconds after which all tasks are compared whatever the numbers say."""
NEWEST, COMPARED = "newest of", "compared"
"""Marks of the log, by project: Label Studio's time of the newest change seen, and ours of the last whole comparison."""
NO_KEY = (
    "annotations that came with imported tasks, and what Label Studio told while this server was away, are not seen; "
    "set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY"
)


@dataclass(frozen=True)
class Reconciled:
    """``projects`` compared, ``annotations`` that the log lacked or had in another state, those ``dropped`` because Label Studio no longer
    has them; ``problem`` is one line on what could not be seen, or empty.
    """

    projects: int
    annotations: int
    dropped: int
    problem: str = ""


def reconcile(corrections: CorrectionLog, label_studio: LabelStudio | None, projects: Sequence[int]) -> Reconciled:
    """Compare projects with Label Studio, which is right. Never raises; a project that cannot be read keeps what the log has of it."""
    if label_studio is None or not label_studio.has_token:
        return Reconciled(0, 0, 0, NO_KEY)
    if not projects:
        return Reconciled(0, 0, 0)
    pulled: list[Pulled] = []
    problems: list[str] = []
    try:
        seen = set(label_studio.projects())
        for number in projects:
            try:
                pulled.append(_compare(corrections, label_studio, number, seen, seen.isdisjoint(projects)))
            except LabelStudioError as error:
                problems.append(f"project {number}: {error}")
    except (LabelStudioError, LogError) as error:
        problems.append(str(error))
    except Exception as error:  # it runs beside the server, which goes on with what the log has
        problems.append(f"internal error ({where(error)})")
        log.debug("the traceback", exc_info=True)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Reconciled(
        len(pulled), sum(one.annotations for one in pulled), sum(one.dropped for one in pulled), problems[0] + more if problems else ""
    )


def _compare(corrections: CorrectionLog, label_studio: LabelStudio, number: int, seen: set[int], strange: bool) -> Pulled:
    """``seen`` are the projects that Label Studio shows; it is ``strange`` if none of ours is among them."""
    if number in seen:
        return _pull(corrections, label_studio, number)
    if strange:
        raise LabelStudioError(
            "Label Studio does not show it, nor any other known here; use the key of a user who is a member of the project"
        )
    return corrections.drop(number, corrections.position())


def _pull(corrections: CorrectionLog, label_studio: LabelStudio, number: int) -> Pulled:
    look, now = _Look(corrections, label_studio, number), time.time()
    if 0 <= now - corrections.mark(f"{COMPARED} {number}") <= DAY:
        _compare_changed(look, corrections)
        known = corrections.annotation_counts(number)
        if sum(known.values()) != look.count_again():
            _compare_all(look, corrections, lambda task: known.get(task["id"]) != _count_of(task))
    else:
        _compare_all(look, corrections, lambda task: True)
        corrections.replace_mark(f"{COMPARED} {number}", now)
    look.fold()
    if not look.shrank and not look.problem:  # else the next look goes as far back; what was compared is not asked for again
        corrections.replace_mark(f"{NEWEST} {number}", min(look.newest, now))
    if look.problem:
        raise LabelStudioError(look.problem)
    return Pulled(look.annotations, look.dropped)


def _compare_changed(look: _Look, corrections: CorrectionLog) -> None:
    """The tasks that changed since the last look, as far as that shows."""
    since = corrections.mark(f"{NEWEST} {look.number}") - MARGIN
    for task in look.listed(newest_first=True):
        changed = instant(task.get("updated_at"))
        if changed < since:
            break
        if changed != corrections.compared(task["id"]):
            look.compare(task)
    look.fold()


def _compare_all(look: _Look, corrections: CorrectionLog, is_doubtful: Callable[[Mapping[str, Any]], bool]) -> None:
    """The annotated tasks that are doubtful, and those known ones that are not among the annotated."""
    listed = set[int]()
    for task in look.listed(newest_first=False):
        listed.add(task["id"])
        if is_doubtful(task):
            look.compare(task)
    for lost in corrections.annotation_counts(look.number).keys() - listed:  # it is asked for itself: the list may have missed it
        look.compare({"id": lost})


class _Look:
    """A look at a project: tasks that are compared, some of them at a time.

    ``annotations`` and ``dropped`` are those of all so far, ``newest`` is the latest time of a task that was listed, and ``problem`` says
    why one could not be compared. ``shrank``: annotations were deleted meanwhile, so that a list of tasks may have left one out.
    """

    def __init__(self, corrections: CorrectionLog, label_studio: LabelStudio, number: int) -> None:
        self._log, self._label_studio, self.number = corrections, label_studio, number
        self._tasks: list[dict[str, Any]] = []
        self._gone: list[int] = []
        self.annotations = self.dropped = 0
        self.newest, self.problem, self.shrank = 0.0, "", False
        self._began, self._count = corrections.position(), 0
        self._project: dict[str, Any] | None = None
        self._count = self.count_again() or 0

    def count_again(self) -> int | None:
        """How many annotations the project has now, skipped ones included; None if Label Studio does not say."""
        self._project = self._label_studio.project(self.number)
        count = _sum(self._project, "total_annotations_number", "skipped_annotations_number")
        self.shrank |= count is not None and count < self._count
        return count

    def listed(self, newest_first: bool) -> Iterator[dict[str, Any]]:
        """The project's annotated tasks."""
        for task in self._label_studio.annotated_tasks(self.number, newest_first):
            self.newest = max(self.newest, instant(task.get("updated_at")))
            yield task

    def compare(self, task: Mapping[str, Any]) -> None:
        """Ask for a task's annotations, to take them over with those of others. One that is refused does not keep others from it."""
        known = self._log.annotations_of(task["id"])
        try:
            found = self._label_studio.annotations(self.number, task["id"], known, skipped=bool(task.get("cancelled_annotations")))
        except LabelStudioError as error:
            if error.passing:
                raise
            self.problem = self.problem or str(error)
            return
        if found is None:
            self._gone.append(task["id"])
        else:
            self._tasks.append({**{name: task.get(name) for name in ("id", "data", "updated_at")}, "annotations": found})
        if len(self._tasks) + len(self._gone) == AT_ONCE:
            self.fold()

    def fold(self) -> None:
        """Take over what was asked for so far, under the config that the project has now: one of before could replace an event's."""
        project = self._project or self._label_studio.project(self.number)
        title, config = str(project.get("title") or ""), project["label_config"]
        pulled = self._log.reconcile(self.number, title, config, self._tasks, self._began, self._gone)
        self.annotations += pulled.annotations
        self.dropped += pulled.dropped
        self._tasks, self._gone, self._project = [], [], None
        self._began = self._log.position()


def _count_of(task: Mapping[str, Any]) -> int | None:
    """How many annotations a listed task has, skipped ones included; None if that is not told."""
    return _sum(task, "total_annotations", "cancelled_annotations")


def _sum(of: Mapping[str, Any], *names: str) -> int | None:
    numbers = [number for name in names if isinstance(number := of.get(name), int)]
    return sum(numbers) if len(numbers) == len(names) else None
