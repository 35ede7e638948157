"""`sam4mllm doctor`: makes all checks of a set-up in turn; each finding is one line that says what is wrong and what to do.

A check that needs what another found missing is left out, so that one fault gives one finding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from backend.errors import LabelStudioError, SettingsError
from backend.finding import Finding, as_finding
from backend.images.store import image_store
from backend.label_studio.backend_entry import carries_secret, is_loopback, require_label_studio, server_url
from backend.label_studio.client import LabelStudio
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.parameters import Parameters
from backend.settings import Settings
from backend.setup.machine_checks import (
    SERVER_SECONDS,
    Server,
    ask_server,
    check_adapters,
    check_disk,
    check_models,
    check_secrets,
    check_server,
    check_token,
    webhook_refused,
)
from backend.setup.machine_notes import (
    tell_fit,
    tell_score,
    tell_strategy,
)
from backend.setup.next_step import ProjectProgress, after_doctor, ask_progress
from backend.setup.project_checks import (
    Link,
    check_config,
    check_entry,
    check_extra_parameters,
    check_gate,
    check_hook,
    check_images,
    check_phrases,
    hook_path,
    read_link,
    sample_tasks,
)
from backend.setup.project_notes import tell_task, tell_typing
from backend.support.demo_project import demo_notice
from sam4mllm.errors import Sam4mllmError


@dataclass
class Report:
    """The names of the checks that were made, and what they found; ``notes`` are what is good to know and not wrong."""

    checks: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    next: str = ""
    """What to do now, in one line."""

    def add(self, check: str, found: list[Finding]) -> bool:
        """Note a check and its findings; return whether it found nothing."""
        self.checks.append(check)
        self.findings += found
        return not found


def examine(settings: Settings, project: int | None, url: str | None = None, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Look at this machine and at Label Studio, and at one of its projects if a number is given. Nothing is changed anywhere.

    ``url``: this server as Label Studio reaches it, where the project has no entry of it yet. ``progress`` is told what comes next.
    """
    report = Report()
    progress_made = _look(settings, project, url, progress, report)
    report.next = after_doctor(settings, project, report.findings, progress_made)
    return report


def _look(settings: Settings, project: int | None, url: str | None, progress: Callable[[str], None], report: Report) -> ProjectProgress:
    """Make all checks, note them in ``report``, and return how far the project is, as far as the checks could tell."""
    with httpx.Client(timeout=SERVER_SECONDS, trust_env=False) as client:
        progress("this machine")
        report.add("disk", check_disk(settings.home))
        report.add("secrets", check_secrets(settings))
        server = ask_server(settings, client)
        report.add("server", check_server(settings, server))
        settings = server.known(settings)
        report.add("model", check_models(settings, running=bool(server.state)))
        report.add("adapter", check_adapters(settings.home))
        report.notes += [tell_strategy(settings), tell_score(settings.home)]
        report.notes += [] if server.state else tell_fit(settings)
        progress("Label Studio")
        label_studio = _label_studio(settings, report)
        if label_studio is None:
            return ProjectProgress()
        try:
            if _answers(label_studio, report) and project is not None:
                case = _Case(settings, label_studio, client, server, project, _url(settings, url))
                return ask_progress(settings, client, _examine_project(case, report, progress))
        except LabelStudioError as error:  # Label Studio ended meanwhile, or answers in an unexpected way
            report.add("Label Studio", [as_finding("Label Studio", error, "see its log")])
        finally:
            label_studio.close()
    return ProjectProgress()


@dataclass(frozen=True)
class _Case:
    """A project, and all that its checks need. ``url`` is empty where it is not known."""

    settings: Settings
    label_studio: LabelStudio
    client: httpx.Client
    server: Server
    project: int
    url: str


def _label_studio(settings: Settings, report: Report) -> LabelStudio | None:
    """Return a client of Label Studio; None, with a finding in ``report``, if the address or a token that may be valid is missing."""
    token = settings.label_studio_api_key.get_secret_value()
    if not settings.label_studio_url:
        missing = Finding("Label Studio", "LABEL_STUDIO_URL is not set", "set it to Label Studio's address as this server reaches it")
        report.add("Label Studio", [missing])
        return None
    found = check_token(token, time.time())
    report.add("token", found)
    if any(not finding.passing for finding in found):
        return None
    try:
        return LabelStudio(settings.label_studio_url, token)
    except LabelStudioError as error:
        report.add("Label Studio", [as_finding("token", error, "correct it")])
        return None


def _answers(label_studio: LabelStudio, report: Report) -> bool:
    """Whether a Label Studio answers and accepts the token; the checks are noted in ``report``."""
    try:
        require_label_studio(label_studio)
    except LabelStudioError as error:
        finding = as_finding("Label Studio", error, "check LABEL_STUDIO_URL")
        if not error.status and is_loopback(label_studio.url):
            hint = ": localhost is this machine or container itself; from a container use http://label-studio:8080 or host.docker.internal"
            finding = Finding(finding.check, finding.problem, finding.cure + hint)
        report.add("Label Studio", [finding])
        return False
    report.add("Label Studio", [])
    try:
        label_studio.request("GET", "/api/current-user/whoami")
    except LabelStudioError as error:
        return report.add("token", [as_finding("token", error, "make a new one")])
    return True


def _examine_project(case: _Case, report: Report, progress: Callable[[str], None]) -> ProjectProgress:
    """Make the checks of a project; return how many tasks and predictions it has by Label Studio's count."""
    progress(f"project {case.project}")
    try:
        project = case.label_studio.project(case.project)
    except LabelStudioError as error:
        gone = Finding("project", f"there is no project {case.project} at {case.label_studio.url}", "its number is in its page's address")
        report.add("project", [gone if error.status == 404 else as_finding("project", error, "see Label Studio's log")])
        return ProjectProgress()
    report.notes += [note for note in [demo_notice(case.settings, case.project)] if note]
    link = read_link(case.label_studio, case.project, case.url, case.server)
    config, found = check_config(project["label_config"], link.entry is None or link.entry.interactive, case.settings.prompt_control)
    report.add("config", found)
    _examine_link(case, link, config, report)
    if config is not None:
        parameters, found = check_extra_parameters(link, config, case.settings)
        report.add("parameters", found)
        _examine_tasks(case, config, parameters, report, progress)
    tasks, predictions = project.get("task_number"), project.get("total_predictions_number")
    return ProjectProgress(tasks if isinstance(tasks, int) else 0, predictions if isinstance(predictions, int) else 0)


def _examine_link(case: _Case, link: Link, config: LabelConfig | None, report: Report) -> None:
    """Check Label Studio's connection to this server: whether it may call the address, its backend entry, and the webhook.

    A check that finds a fault is the last.
    """
    url = link.entry.url if link.entry else case.url
    if url and not report.add("gate", check_gate(case.label_studio, case.project, url)):
        return
    if config is None and link.entry is not None and link.entry.state == "ER":
        return  # /setup refused the config, which the check of the config has reported
    if not report.add("backend", check_entry(case.label_studio, link, case.settings, case.server)):
        return
    carried = hook_path(link)
    refuses = False
    if carried is not None:
        secret = case.settings.webhook_secret.get_secret_value()
        refuses = not carries_secret(secret, *carried) or webhook_refused(case.settings, *carried, client=case.client)
    report.add("webhook", check_hook(link, refuses))


def _examine_tasks(case: _Case, config: LabelConfig, parameters: Parameters, report: Report, progress: Callable[[str], None]) -> None:
    tasks = sample_tasks(case.label_studio, case.project)
    report.notes += tell_typing(config, case.settings.prompt_control)
    report.notes += tell_task(config, tasks, case.settings.phrase_field, case.project, parameters)
    report.add("phrases", check_phrases(config, tasks, case.settings.phrase_field, parameters))
    progress("pictures")
    try:
        report.add("images", check_images(config, tasks, image_store(case.settings, case.label_studio)))
    except Sam4mllmError as error:  # a wrong entry of SAM4MLLM_ALLOW_HOSTS
        report.add("images", [as_finding("images", error, "correct SAM4MLLM_ALLOW_HOSTS")])


def _url(settings: Settings, given: str | None) -> str:
    try:
        return server_url(settings, given)
    except SettingsError:
        return ""
