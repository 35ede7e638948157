"""How a project of Label Studio is joined to this server: its backend entry and its webhook, as Label Studio's API tells of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from backend.errors import LabelStudioError, SettingsError
from backend.finding import Finding
from backend.label_studio.client import LIST_TIMEOUT, LabelStudio
from backend.label_studio.events import SECRET_HEADER, WEBHOOK_EVENTS
from backend.settings import LOOPBACK, Settings
from backend.support.addresses import is_address

TITLE = "SAM4MLLM"
"""The entry's title when it is made here."""
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Hosts that mean "listen on all addresses", each with the address to reach such a server by from its own machine."""

_DOTTED = re.compile(r"(?:[\w-]+\.)+(?:[^\W\d_]|-){2,63}\.?")
_GATE = "reserved network address"


@dataclass(frozen=True)
class Entry:
    """A backend entry of a project.

    ``state`` is CO if Label Studio has just reached the backend, ER if it reached the backend but /setup failed, and else DI.
    """

    id: int
    url: str
    title: str
    state: str
    error: str
    interactive: bool
    user: str
    has_password: bool
    version: str
    parameters: object = None
    """The extra parameters, as they were stored."""

    @property
    def connected(self) -> bool:
        return self.state not in ("DI", "ER")


@dataclass(frozen=True)
class Hook:
    """A webhook of a project. ``payload``: it sends what an event is about, not only the event's name. ``everything``: it sends all events;
    otherwise it sends those in ``actions``.
    """

    id: int
    url: str
    active: bool
    payload: bool
    everything: bool
    actions: frozenset[str]
    headers: Mapping[str, str] = field(repr=False)

    @property
    def missing(self) -> list[str]:
        """The events of :data:`WEBHOOK_EVENTS` that the webhook does not send."""
        return [] if self.everything else [event for event in WEBHOOK_EVENTS if event not in self.actions]


def require_label_studio(label_studio: LabelStudio) -> None:
    """Raise LabelStudioError if nothing answers at its address, if a server error does, or if it is something else than a Label Studio."""
    try:
        said = label_studio.open("/api/version")
    except LabelStudioError as error:
        if error.status not in (401, 403, 404, 405):
            raise
        said = None
    if not isinstance(said, dict) or "label-studio-os-package" not in said:
        line = "is not Label Studio, or LABEL_STUDIO_URL lacks its sub-path; check LABEL_STUDIO_URL"
        raise LabelStudioError(f"what answers at {label_studio.url} {line}", HTTPStatus.NOT_FOUND)


def read_entries(label_studio: LabelStudio, project: int) -> list[Entry]:
    """A project's backends; Label Studio calls each of them before it answers. Raises LabelStudioError."""
    return [_entry(one) for one in _listed(label_studio, f"/api/ml?project={project:d}")]


def read_hooks(label_studio: LabelStudio, project: int) -> list[Hook]:
    """A project's webhooks. Raises LabelStudioError."""
    return [_hook(one) for one in _listed(label_studio, f"/api/webhooks/?project={project:d}")]


def pick_entry(entries: Sequence[Entry], url: str, versions: Collection[str]) -> Entry | None:
    """Return this server's entry among a project's backends, None if there is none.

    It is the one with the address ``url``, else one that serves one of this server's ``versions``, else one titled :data:`TITLE`.
    """
    same = [one for one in entries if url and tidy(one.url) == tidy(url)]
    ours = [one for one in entries if one.version and one.version in versions]
    named = [one for one in entries if one.title == TITLE]
    return next(iter([*same, *ours, *named]), None)


def pick_hook(hooks: Sequence[Hook], url: str) -> Hook | None:
    """Return the webhook that leads to the server at ``url``, with a secret in its path or without, None if there is none. An active one is
    preferred.
    """
    found = [one for one in hooks if tidy(one.url) == f"{tidy(url)}/webhook" or one.url.startswith(f"{tidy(url)}/webhook/")]
    return next(iter(sorted(found, key=lambda one: not one.active)), None)


def carries_secret(secret: str, headers: Mapping[str, str], path: str) -> bool:
    """Whether a webhook brings the secret SAM4MLLM_WEBHOOK_SECRET in its header or its path. Always true if ``secret`` is empty.

    ``path`` is the webhook's path below this server's address, as :func:`path_below` returns it.
    """
    sent = {name.lower(): value for name, value in headers.items()}
    return not secret or sent.get(SECRET_HEADER.lower()) == secret or path == f"/webhook/{secret}"


def path_below(hook: Hook, url: str) -> str:
    """Return a webhook's path relative to ``url``, the address of the server that it leads to: ``/webhook``, or ``/webhook/SECRET``."""
    return hook.url.strip()[len(tidy(url)) :]


def server_url(settings: Settings, given: str | None) -> str:
    """Return the address at which Label Studio reaches this server: ``given``, else SAM4MLLM_URL, else where the server listens.

    A server that listens on all addresses (WILDCARDS) does not say where it is reached. Raises SettingsError if nothing says it, or if it
    is no http or https address of a server, or holds a user name.
    """
    url = tidy(given or settings.url)
    if not url and settings.host not in WILDCARDS:
        url = own_url(settings)
    parts = _split(url)
    if not url:
        raise SettingsError(
            "how Label Studio reaches this server is not known; give --url, or set SAM4MLLM_URL, as http://sam4mllm.internal:9090"
        )
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise SettingsError("--url is no address of a server; write it as http://sam4mllm.internal:9090")
    return url


def own_url(settings: Settings) -> str:
    """Return the address by which this server is reached from its own machine."""
    host = WILDCARDS.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def tidy(url: str) -> str:
    return url.strip().rstrip("/")


def is_loopback(url: str) -> bool:
    parts = _split(url)
    host = parts.hostname or "" if parts else ""
    return host in LOOPBACK or host.startswith("127.")


def hook_refusal(check: str, url: str) -> Finding | None:
    """Return a finding if Label Studio would refuse a webhook to the host of ``url``, else None.

    Label Studio makes webhooks only to localhost, to IP addresses and to host names with a dot. For any other host it makes none and
    reports no error.
    """
    parts = _split(url)
    host = parts.hostname or "" if parts else ""
    if host == "localhost" or is_address(host) or _DOTTED.fullmatch(host):
        return None
    return Finding(
        check,
        f"Label Studio makes no webhooks to a host name without a dot, as {host!r} is",
        "give this server a name with one (a network alias in compose, as sam4mllm.internal) or use its IP address, and connect again",
    )


def call_failure(check: str, said: str, url: str) -> Finding:
    """Return why Label Studio cannot call this server at ``url``. ``said`` is the error that Label Studio reports of its attempt."""
    for pattern, problem, cure in _FAILURES:
        if re.search(pattern, said):
            return Finding(check, problem.format(url=url), cure)
    if is_loopback(url):
        return Finding(
            check,
            f"Label Studio cannot reach {url}: there, localhost is Label Studio's own machine or container",
            "connect with the address that Label Studio reaches this server by: --url http://sam4mllm.internal:9090 for a network alias "
            "in compose, http://host.docker.internal:9090 for this machine seen from a container",
        )
    return Finding(
        check,
        f"Label Studio cannot reach this server at {url} ({_brief(said)})",
        "check that it runs, that SAM4MLLM_HOST is not loopback, and that no firewall is between; connect again if its address has changed",
    )


def gate_finding(check: str, webhooks_only: bool = False) -> Finding:
    """Return the finding that Label Studio 1.23.1 or later blocks private addresses, such as this server's.

    ``webhooks_only``: it drops webhooks to them but calls the backend.
    """
    if webhooks_only:
        return Finding(
            check,
            "Label Studio drops webhooks to private addresses in silence",
            "start Label Studio with SSRF_PROTECTION_ENABLED=false, or with USE_DEFAULT_BANNED_SUBNETS=false",
        )
    return Finding(
        check,
        "Label Studio refuses to call private addresses, as this server's is, and drops webhooks to them in silence",
        "start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false in its environment",
    )


def is_gate(said: str) -> bool:
    return _GATE in said


_PASSWORD = "run `sam4mllm connect` with the SAM4MLLM_AUTH_PASSWORD that the server runs with"
_FAILURES = (
    (
        r"resolve hostname|NameResolution|Name or service|nodename",
        "Label Studio finds no address for the host of {url}",
        "connect with a name or an IP address that Label Studio's machine or container knows",
    ),
    (
        r"ProxyError|proxy",
        "Label Studio calls {url} by way of a proxy, which does not lead there",
        "add this server's host to NO_PROXY in Label Studio's environment",
    ),
    (r"\b401\b|authentication parameters", "this server refuses Label Studio the password at {url}", _PASSWORD),
    (
        r"\b403\b",
        "the server at {url} refuses that name",
        "set SAM4MLLM_AUTH_PASSWORD: without one, the server answers to 127.0.0.1 and localhost only",
    ),
    (
        r"\b503\b",
        "this server's models are not loaded, so Label Studio gets no answer to /setup",
        "wait until its /ready says ready, and try again",
    ),
    (
        r"\b404\b|\b405\b|valid ML backend",
        "what answers at {url} is not this server",
        "connect with the address that Label Studio reaches this server by",
    ),
    (
        r"[Rr]ead timed out",
        "this server does not answer Label Studio in time at {url} (1 s for /health, 3 s for /setup)",
        "see its log and its machine's load",
    ),
)


def _entry(one: Mapping[str, Any]) -> Entry:
    return Entry(
        id=one["id"],
        url=str(one["url"]),
        title=str(one.get("title") or ""),
        state=str(one.get("state") or ""),
        error=str(one.get("error_message") or ""),
        interactive=one.get("is_interactive") is True,
        user=str(one.get("basic_auth_user") or "") if one.get("auth_method") == "BASIC_AUTH" else "",
        has_password=one.get("basic_auth_pass_is_set") is True and one.get("auth_method") == "BASIC_AUTH",
        version=str(one.get("model_version") or ""),
        parameters=one.get("extra_params"),
    )


def _hook(one: Mapping[str, Any]) -> Hook:
    headers, actions = one.get("headers"), one.get("actions")
    return Hook(
        id=one["id"],
        url=str(one["url"]),
        active=one.get("is_active") is not False,
        payload=one.get("send_payload") is not False,
        everything=one.get("send_for_all_actions") is True,
        actions=frozenset(map(str, actions)) if isinstance(actions, list) else frozenset(),
        headers={str(name): str(value) for name, value in headers.items()} if isinstance(headers, dict) else {},
    )


def _listed(label_studio: LabelStudio, path: str) -> list[dict[str, Any]]:
    found = label_studio.request("GET", path, timeout=LIST_TIMEOUT)
    if not isinstance(found, list) or not all(isinstance(one, dict) and isinstance(one.get("id"), int) and "url" in one for one in found):
        raise LabelStudioError("what answers at LABEL_STUDIO_URL is not Label Studio's API; check the address")
    return found


def _split(url: str) -> Any:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 – raises where it is no number
    except ValueError:
        return None
    return parts


def _brief(said: str) -> str:
    inner = re.findall(r"\[Errno -?\d+\] ([\w ]+)|(timed out)", said)
    return next((text for pair in inner for text in pair if text), " ".join(said.split())[:120] or "no reason given")
