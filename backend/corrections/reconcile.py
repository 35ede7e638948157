"""The log made equal to what Label Studio holds: its webhooks are sent once, and imported annotations send none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from backend.corrections.log import CorrectionLog
from backend.corrections.log_faults import LogError
from backend.corrections.tables import Pulled
from backend.errors import LabelStudioError, where
from backend.label_studio.client import LabelStudio

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a project is read anew because it changed meanwhile."""
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
    for _ in range(ATTEMPTS):
        began = corrections.position()
        project = label_studio.project(number)
        tasks = [
            {name: task.get(name) for name in ("id", "data", "updated_at", "annotations")}
            for task in label_studio.tasks_with_annotations(number)
        ]
        count = project.get("task_number")
        # where a task was deleted between two pages, the next one slipped from the second to the first
        if not isinstance(count, int) or len(tasks) >= count:
            return corrections.reconcile(number, str(project.get("title") or ""), project["label_config"], tasks, began)
    raise LabelStudioError("it changed while it was read; it is compared again later")
