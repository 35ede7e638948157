"""Connects a project of Label Studio to this server: label config, backend entry, webhook and score column. Idempotent."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from backend.errors import ConfigError, LabelStudioError, ParametersError
from backend.finding import Finding
from backend.label_studio.backend_entry import (
    TITLE,
    Entry,
    Hook,
    call_failure,
    carries_secret,
    gate_finding,
    hook_refusal,
    is_gate,
    path_below,
    pick_entry,
    pick_hook,
    read_entries,
    read_hooks,
    require_label_studio,
    tidy,
)
from backend.label_studio.client import LIST_TIMEOUT, LabelStudio
from backend.label_studio.config_template import offer_config
from backend.label_studio.events import SECRET_HEADER, WEBHOOK_EVENTS
from backend.label_studio.label_config import read_label_config
from backend.label_studio.parameters import NO_PARAMETERS, Parameters, check_parameters, read_parameters
from backend.settings import Settings
from backend.setup.data_manager import show_score
from backend.support.demo_project import demo_notice


@dataclass(frozen=True)
class Step:
    """What was done, or found to be as it should be, in one line."""

    line: str
    changed: bool


class UnfitConfigError(ConfigError):
    """The project's config lacks what is needed; ``offered`` is one to set instead."""

    def __init__(self, message: str, offered: str) -> None:
        super().__init__(message)
        self.offered = offered


def connect(
    label_studio: LabelStudio,
    settings: Settings,
    project_id: int,
    url: str,
    versions: Collection[str] = (),
    config: str | None = None,
    force: bool = False,
    parameters: str | None = None,
) -> list[Step]:
    """Join a project to the server at ``url``, which must be running: Label Studio calls it before it stores the entry.

    Args:
        label_studio: with a token of a user who may change the project.
        settings: those that the server runs with: its password and its webhook secret are handed to Label Studio.
        project_id: the number in the address of the project's page.
        url: this server as Label Studio reaches it.
        versions: what this server serves or has served, by which its entry is found again after its address has changed.
        config: a label config to set; ``default`` for one with the project's labels; None to leave the project's.
        force: set ``config`` although the project has annotations.
        parameters: the project's extra parameters to set, as JSON; None to leave them as they are.

    Raises:
        UnfitConfigError: the project's config will not do, and none was given.
        ParametersError: the parameters cannot be used, or do not fit the config. At most the config was changed then.
        ConfigError: ``config`` cannot be used.
        LabelStudioError: the project has annotations and ``force`` is not set, or Label Studio refuses something or cannot be asked; the
            text says what and why, in one line. What was changed before that stays.
    """
    if (refusal := hook_refusal("webhook", url)) is not None:
        raise _refused(refusal)
    require_label_studio(label_studio)
    project = _project(label_studio, project_id)
    notice = demo_notice(settings, project_id)
    with _saying_of_what():
        given = None if parameters is None else read_parameters(parameters)
    field = (given or NO_PARAMETERS).phrase_field(settings.phrase_field)
    config_step = _set_config(label_studio, settings, project, config, force, field)
    if given is not None:
        _check_fit(label_studio, settings, project_id, given)
    return [
        config_step,
        _set_entry(label_studio, settings, project_id, url, versions, given),
        _set_hook(label_studio, settings, project_id, url),
        _set_columns(label_studio, project_id),
        *([Step(f"models: {notice}", False)] if notice else []),
    ]


def _project(label_studio: LabelStudio, number: int) -> dict[str, Any]:
    try:
        return label_studio.project(number)
    except LabelStudioError as error:
        if error.status == 404:
            line = f"there is no project {number} at {label_studio.url}; its number is in its page's address"
            raise LabelStudioError(line, error.status) from error
        raise


def _set_config(
    label_studio: LabelStudio, settings: Settings, project: dict[str, Any], config: str | None, force: bool, field: str
) -> Step:
    """Set the label config, or only check the project's own if ``config`` is None.

    ``field`` is the key of the tasks' data that holds their phrase; a default config displays it. Raises UnfitConfigError if the project's
    own will not do, ConfigError if ``config`` cannot be used, and LabelStudioError if the project has annotations and ``force`` is not set,
    or if Label Studio refuses.
    """
    current: str = project["label_config"]
    if config is None:
        try:
            found = read_label_config(current, settings.prompt_control)
        except ConfigError as error:
            raise UnfitConfigError(
                f"{error}, or `sam4mllm connect {project['id']} --config default`, which sets the one above",
                offer_config(current, field, settings.prompt_control),
            ) from error
        typed = f'<TextArea name="{settings.prompt_control}" toName="{found.image}"/>'
        silent = "" if found.prompt else f"; masks work, and typing a description does not: add {typed}, or connect with --config default"
        return Step(f"label config: left as it is{silent}", False)
    wanted = offer_config(current, field, settings.prompt_control) if config == "default" else config
    read_label_config(wanted)
    if wanted.strip() == current.strip():
        return Step("label config: is set already", False)
    count = project.get("total_annotations_number")
    if count and not force:
        raise LabelStudioError(
            f"project {project['id']} has {count} annotations, which another label config may hide; add --force if it may be changed"
        )
    try:
        label_studio.request("PATCH", f"/api/projects/{project['id']:d}/", {"label_config": wanted})
    except LabelStudioError as error:
        raise LabelStudioError(f"Label Studio refuses the label config: {error.detail or error}", error.status) from error
    return Step("label config: set", True)


@contextmanager
def _saying_of_what() -> Iterator[None]:
    """Say in a ParametersError that it is about the project's parameters, which its own text does not say."""
    try:
        yield
    except ParametersError as error:
        raise ParametersError(f"the project's parameters are not set: {error}") from error


def _check_fit(label_studio: LabelStudio, settings: Settings, project: int, parameters: Parameters) -> None:
    """Check the parameters against the config that the project has now.

    Raises ParametersError if they do not fit it, ConfigError if it cannot be used, and LabelStudioError if it cannot be had.
    """
    config = read_label_config(_project(label_studio, project)["label_config"], settings.prompt_control)
    with _saying_of_what():
        check_parameters(parameters, config)


def change_parameters(
    label_studio: LabelStudio, settings: Settings, project: int, change: Callable[[Parameters], Parameters], versions: Collection[str]
) -> Step:
    """Change a connected project's extra parameters.

    ``change`` gets the present parameters and returns the new ones. ``versions`` are what this server serves or has served, by which its
    entry is found if its address is another. Raises ParametersError if the present parameters cannot be read or the new ones do not fit the
    config, ConfigError if the config cannot be used, and LabelStudioError if there is no entry or Label Studio refuses.
    """
    entry = pick_entry(read_entries(label_studio, project), tidy(settings.url), versions)
    if entry is None:
        raise LabelStudioError(f"project {project} has no entry of this server; run `sam4mllm connect {project}` first")
    with _saying_of_what():
        parameters = change(read_parameters(entry.parameters))
    _check_fit(label_studio, settings, project, parameters)
    return _set_entry(label_studio, settings, project, entry.url, versions, parameters)


def _set_entry(
    label_studio: LabelStudio, settings: Settings, project: int, url: str, versions: Collection[str], parameters: Parameters | None
) -> Step:
    """Make or update this server's backend entry in the project; its extra parameters stay as they are if ``parameters`` is None."""
    entry = pick_entry(read_entries(label_studio, project), url, versions)
    password = settings.auth_password.get_secret_value()
    told = None if parameters is None else parameters.to_json()
    if entry is not None and _is_right(entry, settings, url) and told in (None, _told_of(entry)):
        return Step(f"backend: entry {entry.id} leads to {url} already", False)
    login = {"auth_method": "BASIC_AUTH", "basic_auth_user": settings.auth_user, "basic_auth_pass": password}
    body = {
        "url": url,
        "project": project,
        "title": entry.title if entry else TITLE,
        "is_interactive": True,
        **(login if password else {"auth_method": "NONE", "basic_auth_user": ""}),
        # always sent: otherwise Label Studio would for a moment tell the server that there are none
        "extra_params": (entry.parameters if entry else None) if told is None else json.loads(told or "null"),
    }
    method, path = ("POST", "/api/ml/") if entry is None else ("PATCH", f"/api/ml/{entry.id:d}")
    try:
        stored = label_studio.request(method, path, body, timeout=LIST_TIMEOUT)
    except LabelStudioError as error:
        raise _entry_refused(error, url) from error
    verb = "made" if entry is None else "updated"
    guarded = ", with the password" if password else ""
    with_parameters = "" if told is None else f", with the parameters {told}" if told else ", without parameters"
    return Step(f"backend: entry {stored['id']} {verb} for {url}, interactive preannotations on{guarded}{with_parameters}", True)


def _told_of(entry: Entry) -> str | None:
    """Return an entry's extra parameters as :meth:`Parameters.to_json` writes them; None if they cannot be read."""
    try:
        return read_parameters(entry.parameters).to_json()
    except ParametersError:
        return None


def _is_right(entry: Entry, settings: Settings, url: str) -> bool:
    """Whether an entry is as it should be, as far as can be seen: Label Studio does not show the password, but with a wrong one the entry
    does not stay connected.
    """
    password = bool(settings.auth_password.get_secret_value())
    guarded = entry.has_password and entry.user == settings.auth_user
    return tidy(entry.url) == tidy(url) and entry.interactive and entry.connected and (guarded if password else not entry.user)


def _set_hook(label_studio: LabelStudio, settings: Settings, project: int, url: str) -> Step:
    """Make or update the project's webhook to this server.

    A webhook to the entry's former address, which Label Studio keeps, is left alone: that may be another server's address by now.
    """
    hook = pick_hook(read_hooks(label_studio, project), url)
    secret = settings.webhook_secret.get_secret_value()
    if hook is not None and _is_complete(hook, url, secret):
        return Step(f"webhook: {hook.id} brings corrections to this server already", False)
    kept = {name: value for name, value in hook.headers.items() if name.lower() != SECRET_HEADER.lower()} if hook else {}
    body = {
        "url": f"{tidy(url)}/webhook",
        "project": project,
        "is_active": True,
        "send_payload": True,
        "send_for_all_actions": False,
        "actions": list(WEBHOOK_EVENTS),  # left out, Label Studio would clear them
        "headers": {**kept, **({SECRET_HEADER: secret} if secret else {})},
    }
    method, path = ("POST", "/api/webhooks/") if hook is None else ("PATCH", f"/api/webhooks/{hook.id:d}/")
    try:
        stored = label_studio.request(method, path, body)
    except LabelStudioError as error:
        if is_gate(error.detail):
            raise _refused(gate_finding("webhook", webhooks_only=True)) from error
        raise LabelStudioError(f"Label Studio refuses the webhook: {error.detail or error}", error.status) from error
    carried = f"the header {SECRET_HEADER} and " if secret else ""
    return Step(f"webhook: {stored['id']} {'made' if hook is None else 'updated'} with {carried}{len(WEBHOOK_EVENTS)} events", True)


def _set_columns(label_studio: LabelStudio, project: int) -> Step:
    """Show the score in the Data Manager. Nothing depends on that, so an error of Label Studio is told in the step and not raised."""
    try:
        changed = show_score(label_studio, project)
    except LabelStudioError as error:
        return Step(f"data manager: Prediction score is not shown ({error}); tick it under Columns", False)
    shown = f"Prediction score is shown{'' if changed else ' already'}"
    return Step(f"data manager: {shown}; in ascending order, what to look at first comes first", changed)


def _is_complete(hook: Hook, url: str, secret: str) -> bool:
    return hook.active and hook.payload and not hook.missing and carries_secret(secret, hook.headers, path_below(hook, url))


def _entry_refused(error: LabelStudioError, url: str) -> LabelStudioError:
    """Return an error that says as `sam4mllm doctor` does why Label Studio refuses the entry; ``error`` itself if no reason is known."""
    said = error.detail
    if is_gate(said):
        return _refused(gate_finding("gate"))
    if error.status in (400, 500) and said:
        return _refused(call_failure("backend", said, url))
    return error


def _refused(finding: Finding) -> LabelStudioError:
    return LabelStudioError(f"{finding.problem}; {finding.cure}")
