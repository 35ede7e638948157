"""What comes next, as a command or a click: the last line of `connect` and of `doctor`."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from backend.label_studio.backend_entry import own_url
from backend.settings import Settings


@dataclass(frozen=True)
class Progress:
    """How far a project is: its ``tasks``; of the server the sentence on its corrections, and how many are ``missing`` until a run can be
    judged, None where no server said.
    """

    tasks: int = 0
    standing: str = ""
    missing: int | None = None


def ask_progress(settings: Settings, client: httpx.Client, tasks: int) -> Progress:
    """Ask the server of these settings, on this machine, what it has learned from."""
    login = (settings.auth_user, password) if (password := settings.auth_password.get_secret_value()) else None
    try:
        said = client.get(f"{own_url(settings)}/api", auth=login).json()
        missing = said["missing"]
        return Progress(tasks, str(said["standing"]), missing if isinstance(missing, int) else None)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return Progress(tasks)


def after_connect(project: int) -> str:
    return f"next: `sam4mllm doctor {project}` looks whether masks and corrections find their way"


def after_doctor(settings: Settings, project: int | None, found: bool, progress: Progress) -> str:
    """``found``: whether doctor found anything wrong."""
    if found:
        again = "" if project is None else f" {project}"
        return f"next: do what the first line says, then `sam4mllm doctor{again}`"
    if project is None:
        return "next: `sam4mllm connect PROJECT`, with the number in the address of the project's page"
    page = f"{settings.label_studio_url.rstrip('/')}/projects/{project}/data"
    if not progress.tasks:
        return f"next: import pictures at {page}"
    if settings.untrained or progress.missing is None:
        return f"next: open a task at {page}; `sam4mllm batch {project}` has the masks of all tasks ready"
    if progress.missing:
        return f"next: correct the masks of about {progress.missing} more tasks at {page} ({progress.standing})"
    return f"next: press Train now at {own_url(settings)} ({progress.standing})"
