"""What comes next, as a command or a click: the last line of `connect` and of `doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import httpx

from backend.finding import Finding
from backend.label_studio.backend_entry import own_url
from backend.settings import Settings


@dataclass(frozen=True)
class ProjectProgress:
    """How far a project is: how many ``tasks`` it has, and how many ``predictions`` these have.

    ``standing`` is the server's sentence on how far its corrections are, and ``missing`` how many more corrected pictures are needed until
    a training run can be judged. They are empty and None where no server said.
    """

    tasks: int = 0
    predictions: int = 0
    standing: str = ""
    missing: int | None = None


def ask_progress(settings: Settings, client: httpx.Client, project: ProjectProgress) -> ProjectProgress:
    """Return a project's progress with what this machine's server says of its corrections; unchanged if the server does not answer."""
    login = (settings.auth_user, password) if (password := settings.auth_password.get_secret_value()) else None
    try:
        said = client.get(f"{own_url(settings)}/api", auth=login).json()
        missing = said["missing"]
        return replace(project, standing=str(said["standing"]), missing=missing if isinstance(missing, int) else None)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return project


def after_connect(project: int) -> str:
    return f"next: `sam4mllm doctor {project}` checks that Label Studio and this server reach each other and that the tasks can be asked"


def after_doctor(settings: Settings, project: int | None, found: Sequence[Finding], progress: ProjectProgress) -> str:
    """Return the last line of `sam4mllm doctor`. ``found`` are its findings."""
    if found:
        again = "" if project is None else f" {project}"
        which = f"the first of {len(found)} findings: " if len(found) > 1 else ""
        return f"next: {which}{found[0].cure}; then `sam4mllm doctor{again}`"
    if project is None:
        return "next: `sam4mllm connect PROJECT`, with the number in the address of the project's page"
    return f"next: {_of_project(settings, project, progress)}"


def _of_project(settings: Settings, project: int, progress: ProjectProgress) -> str:
    page, own = f"{settings.label_studio_url.rstrip('/')}/projects/{project}/data", own_url(settings)
    if not progress.tasks:
        return f"import pictures at {page}"
    if not progress.predictions:
        return f"try six tasks at {own}/try; if the masks are good, press 'Predict all its tasks' at {own}"
    if settings.untrained or progress.missing is None:
        return f"correct masks at {page}"
    if progress.missing:
        return f"correct masks at {page} ({progress.standing})"
    return f"Start Training in Label Studio's Settings → Model, or Train now at {own} ({progress.standing})"
