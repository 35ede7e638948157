"""Makes the log equal to what Label Studio holds: a webhook is sent only once, and imported annotations send none.

The cost of a look at a project depends on what changed, not on the project's size. The annotated tasks are listed by their last change,
newest first, back to the newest change that the look before saw, and the annotations of those that changed are requested. Predictions
change a task's time, too; such a task is compared and found unchanged. A deletion leaves no trace in that list but changes the number of
the project's annotations. If that number differs from the log's, all annotated tasks are listed, and those whose own number differs are
compared. Once a day all annotated tasks are compared. Predictions are never requested: they take many times the space of annotations.
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
"""Seconds that a look goes back beyond the newest change seen: a change may be saved later than its time says."""
DAY = 24 * 3600.0
"""Seconds after a comparison of all annotated tasks of a project after which all are compared again, whatever the numbers of annotations
say."""
NEWEST, COMPARED = "newest of", "compared"
"""First words of the names of two marks in the log; the project's number follows. The marks hold Label Studio's time of the newest change
seen, and this server's time of the last comparison of all tasks."""
NO_KEY = (
    "annotations that came with imported tasks, and what Label Studio told while this server was away, are not seen; "
    "set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY"
)


@dataclass(frozen=True)
class Reconciled:
    """What a comparison with Label Studio came to.

    ``projects`` is how many were compared, ``annotations`` how many the log lacked or had in another state, and ``dropped`` how many were
    marked as deleted because Label Studio no longer has them. ``problem`` is one line on what could not be compared, or empty.
    """

    projects: int
    annotations: int
    dropped: int
    problem: str = ""


def reconcile(corrections: CorrectionLog, label_studio: LabelStudio | None, projects: Sequence[int]) -> Reconciled:
    """Make what the log has of projects equal to what Label Studio has.

    This never raises. Of a project that cannot be read, the log keeps what it has. The tasks and annotations of a project that Label
    Studio no longer shows are marked as deleted, but only if it still shows another of ``projects``.
    """
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
    """Compare one project, or drop it from the log if Label Studio no longer shows it.

    ``seen`` are the projects that Label Studio shows. ``strange`` says that none of the projects to compare is among them, which points to
    the key of another user and raises LabelStudioError.
    """
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
    if not look.shrank and not look.problem:  # else the next look begins at the same time again
        corrections.replace_mark(f"{NEWEST} {number}", min(look.newest, now))
    if look.problem:
        raise LabelStudioError(look.problem)
    return Pulled(look.annotations, look.dropped)


def _compare_changed(look: _Look, corrections: CorrectionLog) -> None:
    """Compare the tasks that changed since the last look, as far as the list of tasks shows it."""
    since = corrections.mark(f"{NEWEST} {look.number}") - MARGIN
    for task in look.listed(newest_first=True):
        changed = instant(task.get("updated_at"))
        if changed < since:
            break
        if changed != corrections.compared(task["id"]):
            look.compare(task)
    look.fold()


def _compare_all(look: _Look, corrections: CorrectionLog, is_doubtful: Callable[[Mapping[str, Any]], bool]) -> None:
    """Compare the annotated tasks that ``is_doubtful`` picks, and those that have annotations in the log but are not in the list."""
    listed = set[int]()
    for task in look.listed(newest_first=False):
        listed.add(task["id"])
        if is_doubtful(task):
            look.compare(task)
    for lost in corrections.annotation_counts(look.number).keys() - listed:  # the list may have missed this task
        look.compare({"id": lost})


class _Look:
    """One look at a project, which compares its tasks with the log, some at a time.

    ``annotations`` and ``dropped`` count what changed in the log so far, as in :class:`Reconciled`. ``newest`` is the latest time of a
    task that was listed. ``problem`` says why a task could not be compared, or is empty. ``shrank`` says that annotations were deleted
    during the look, so that a list of tasks may have left one out.
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
        """Request how many annotations the project has now, skipped ones included; None if Label Studio does not say.

        Sets ``shrank`` if there are fewer than at the start of the look. Raises LabelStudioError.
        """
        self._project = self._label_studio.project(self.number)
        count = _sum(self._project, "total_annotations_number", "skipped_annotations_number")
        self.shrank |= count is not None and count < self._count
        return count

    def listed(self, newest_first: bool) -> Iterator[dict[str, Any]]:
        """Yield the project's annotated tasks, the last changed first or by number, and keep the latest of their times in ``newest``."""
        for task in self._label_studio.annotated_tasks(self.number, newest_first):
            self.newest = max(self.newest, instant(task.get("updated_at")))
            yield task

    def compare(self, task: Mapping[str, Any]) -> None:
        """Request a task's annotations, to take them over together with those of other tasks.

        If Label Studio refuses them, ``problem`` says so and the look goes on. Raises LabelStudioError for an error that may pass.
        """
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
        """Take over what was requested so far, with the config that the project has now: an older one could replace that of an event."""
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
