"""What doctor looks at without Label Studio: the token's form and expiry, the disk, the secrets, the server of these settings, the models
that it runs or is to run, and the adapters in its home.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from backend.errors import SettingsError
from backend.finding import Finding, as_finding
from backend.label_studio.backend_entry import own_url
from backend.settings import Settings
from sam4mllm.adapters.registry import Registry
from sam4mllm.errors import ModelError, RegistryError
from sam4mllm.options import BY_CONCEPT, Strategy, check_strategy, resolve_strategy

FREE_BYTES = 2_000_000_000
"""Bytes that should be free, enough for one training state: a LoRA of rank 64 on Qwen2.5-VL-7B's linear layers has 161 M parameters, and
AdamW keeps two more numbers for each.
"""
PROBE_BYTES = 1 << 20
SERVER_SECONDS = 10.0
"""Seconds that the server on this machine has to answer; ``/ready`` does not wait for the models."""
EXPIRES_SOON = 7 * 86400.0
"""Seconds: a token that expires in less is reported."""
_FULL = (errno.ENOSPC, errno.EDQUOT)

_ALONE = "set the token alone: a legacy token gets its header here, a personal access token is exchanged for access here"
_COPY = "Label Studio shows it whole only once; revoke it, make another, and set all of it as LABEL_STUDIO_API_KEY"
_RENEW = "make a personal access token in Label Studio (Account & Settings) and set it as LABEL_STUDIO_API_KEY"


@dataclass(frozen=True)
class Server:
    """What the server that these settings describe says of itself.

    ``state`` is empty if nothing answers as this server does. ``version`` is the one that serves or, while the models load, served last;
    ``versions`` are that one and all in its registry. ``models`` are the settings ``model``, ``segmenter`` and ``strategy`` that it runs
    with.
    """

    state: str = ""
    error: str = ""
    version: str = ""
    versions: tuple[str, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)

    def known(self, settings: Settings) -> Settings:
        """Return the settings with the models that the server runs with, for its command line may have named others."""
        return settings.model_copy(update=dict(self.models))


def check_token(key: str, now: float) -> list[Finding]:
    """Check the form of a key for Label Studio, and whether it has expired. Nothing is sent. ``now``: seconds since 1970."""
    key = key.strip()
    if not key:
        return [Finding("token", "LABEL_STUDIO_API_KEY is not set", _RENEW)]
    scheme, _, rest = key.partition(" ")
    if rest and scheme.lower() in ("token", "bearer"):
        what = "is a personal access token used directly, in a header's words" if _claims(rest.strip()) else "is written as a header"
        return [Finding("token", f"LABEL_STUDIO_API_KEY {what} ({scheme!r} and the token)", _ALONE)]
    claims = _claims(key)
    return [] if claims is None else _check_personal(key, claims, now)


def _check_personal(key: str, claims: Mapping[str, Any], now: float) -> list[Finding]:
    if key.count(".") < 2 or key.endswith("."):
        return [Finding("token", "LABEL_STUDIO_API_KEY is a personal access token without its last part", _COPY)]
    if claims.get("token_type") == "access":
        return [Finding("token", "LABEL_STUDIO_API_KEY is an access token, which lasts five minutes", _RENEW)]
    end = claims.get("exp")
    if not isinstance(end, int | float) or end > now + EXPIRES_SOON:
        return []
    try:
        day = f"{datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return []
    return [Finding("token", f"the personal access token {'expired on' if end <= now else 'expires on'} {day}", _RENEW, passing=end > now)]


def require_token(settings: Settings, now: float) -> None:
    """Raise SettingsError if the settings lack Label Studio's address, or their token is missing, malformed or expired.

    Nothing is sent. ``now``: seconds since 1970.
    """
    if not settings.label_studio_url:
        raise SettingsError("LABEL_STUDIO_URL is not set; set it to Label Studio's address as this server reaches it")
    for finding in check_token(settings.label_studio_api_key.get_secret_value(), now):
        if not finding.passing:
            raise SettingsError(f"{finding.problem}; {finding.cure}")


def check_disk(home: Path, usage: Callable[[Path], Any] = shutil.disk_usage) -> list[Finding]:
    """Check that SAM4MLLM_HOME can be written, by writing a temporary file, and that its disk has FREE_BYTES free.

    A home that does not exist yet is checked at its nearest parent that does.
    """
    place = next(one for one in (home, *home.absolute().parents) if one.is_dir())
    cure = "free space there, or set SAM4MLLM_HOME to a folder with room"
    try:
        free = int(usage(place).free)
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in _FULL:
            return [Finding("disk", f"the disk of SAM4MLLM_HOME is full ({home})", cure)]
        return [Finding("disk", f"SAM4MLLM_HOME cannot be written ({home}: {error.strerror})", "let the server's user write there")]
    if free < FREE_BYTES:
        problem = f"the disk of SAM4MLLM_HOME ({home}) has {free / 1e9:.1f} GB free, and the training state of a run may need "
        return [Finding("disk", f"{problem}{FREE_BYTES / 1e9:.0f} GB", cure)]
    return []


def ask_server(settings: Settings, client: httpx.Client) -> Server:
    """Ask the server that these settings describe, on this machine. If it does not answer as it should, an empty Server is returned."""
    try:
        said = client.get(f"{own_url(settings)}/ready", auth=_login(settings)).json()
        state = said["state"]
        listed = client.get(f"{own_url(settings)}/versions", auth=_login(settings)).json().get("versions", []) if state else []
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        return Server()
    models = {name: said[name] for name in ("model", "segmenter", "strategy") if isinstance(said.get(name), str)}
    return Server(str(state), str(said.get("error") or ""), str(said.get("version") or ""), tuple(map(str, listed)), models)


def check_server(settings: Settings, server: Server) -> list[Finding]:
    """Check that the server runs and has loaded its models."""
    if server.state == "ready":
        return []
    if not server.state:
        return [
            Finding(
                "server",
                f"no server of these settings answers at {own_url(settings)}",
                "start `sam4mllm serve`, or run doctor where it runs and with its environment",
            )
        ]
    if server.state == "failed":
        return [as_finding("server", ModelError(server.error or "the models could not be loaded"), "see the server's log")]
    return [Finding("server", f"the server is not ready ({server.state})", "wait until its models are loaded and run doctor again")]


def check_secrets(settings: Settings) -> list[Finding]:
    """Check that a webhook secret is not set without a password: Start Training can carry only the password."""
    if settings.webhook_secret.get_secret_value() and not settings.auth_password.get_secret_value():
        return [
            Finding(
                "secrets",
                "with SAM4MLLM_WEBHOOK_SECRET alone, Label Studio's Start Training is refused: it carries no secret",
                "set SAM4MLLM_AUTH_PASSWORD too, and connect again",
            )
        ]
    return []


def webhook_refused(settings: Settings, headers: dict[str, str], path: str, client: httpx.Client) -> bool:
    """Whether the running server refuses, with status 401, a webhook of these headers and this path; False if it does not answer.

    The request has an empty body that is not JSON, so the server stores nothing.
    """
    try:
        answer = client.post(f"{own_url(settings)}{path}", headers={**headers, "Content-Type": "text/plain"}, content=b"")
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.UNAUTHORIZED


def check_models(settings: Settings, running: bool) -> list[Finding]:
    """Check the model, the segmenter, and the memory that serving and a training run need.

    Where the server is ``running``, it has shown that it can serve, so only the memory of a training run beside it is checked. With the
    demo model nothing is checked then: its few million parameters fit anywhere, and importing torch takes seconds. The memory of a training
    run is not checked where serving pauses for it or no LoRA is trained.
    """
    if running and settings.model == "demo":
        return []
    from sam4mllm.cli.options import hush  # noqa: PLC0415

    hush()
    from sam4mllm.loading import pick_device  # noqa: PLC0415 – torch takes seconds to import
    from sam4mllm.memory import announce  # noqa: PLC0415

    try:
        if not running:
            _check_sources(settings)
        if not running and settings.has_model:
            announce(settings.model, pick_device(settings.device), settings.precision, segmenter=settings.segmenter)
    except ModelError as error:
        return [as_finding("model", error, "set SAM4MLLM_MODEL and SAM4MLLM_SEGMENTER to what docs/reference.md lists")]
    if settings.train_mode == "pause" or settings.untrained:
        return []
    from sam4mllm.training.plan import TrainingPlan  # noqa: PLC0415

    try:
        announce(settings.model, pick_device(settings.train_device), settings.precision, rank=TrainingPlan().rank)
    except ModelError as error:
        return [
            Finding("memory", f"a training run does not fit beside the server: {str(error).partition('; ')[0]}", "set SAM4MLLM_TRAIN_MODE")
        ]
    return []


def _check_sources(settings: Settings) -> None:
    """Raise ModelError if the model or the segmenter of the settings cannot be found, or they cannot do the strategy."""
    from sam4mllm.grounding.families import find_family, resolve  # noqa: PLC0415
    from sam4mllm.segmentation.loading import is_brought  # noqa: PLC0415
    from sam4mllm.segmentation.names import split_name  # noqa: PLC0415

    if settings.has_model:
        find_family(resolve(settings.model), settings.model)
    drawing = split_name(settings.segmenter)[1]
    file = drawing.partition(":")[2].partition("#")[0]
    if file and not is_brought(drawing) and not Path(file).is_file():
        raise ModelError(f"there is no file {file}; correct SAM4MLLM_SEGMENTER")
    check_possible(resolve_strategy(settings.strategy, demo=False, has_adapter=False, has_model=settings.has_model), settings)


def check_possible(strategy: Strategy, settings: Settings) -> None:
    """Raises ModelError if the models of these settings cannot do a strategy."""
    from sam4mllm.segmentation.loading import takes_phrases  # noqa: PLC0415

    takes = strategy not in BY_CONCEPT or takes_phrases(settings.segmenter)
    check_strategy(strategy, has_model=settings.has_model, takes_phrases=takes, segmenter=settings.segmenter)


def check_adapters(home: Path) -> list[Finding]:
    """Check that the version that is to serve, if there is one, is undamaged. If it is damaged, report only that; else report each other
    version whose folder cannot be used.
    """
    registry = Registry(home)
    cure = "promote another with `sam4mllm adapters promote`, or restore its files"
    try:
        serving = registry.serving()
        if serving is not None:
            registry.verify(serving)
        broken = [one for one in registry.broken() if one.name != serving]
    except RegistryError as error:
        return [Finding("adapter", f"the version that is to serve cannot be used ({error})", cure)]
    return [Finding("adapter", f"a version is damaged ({one.reason})", f"restore {one.name} or remove its folder") for one in broken]


def _login(settings: Settings) -> tuple[str, str] | None:
    password = settings.auth_password.get_secret_value()
    return (settings.auth_user, password) if password else None


def _claims(key: str) -> dict[str, Any] | None:
    """What a JSON web token says, unverified; None for a key of another form."""
    parts = key.split(".")
    if len(parts) not in (2, 3) or not key.isascii():
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
