"""The log: lines for people or JSON objects for machines, each with the id of its request, none with a secret or an image.

Where text comes from elsewhere (an address in an error, a library's message) it is cleaned on its way out, whoever wrote the line: secrets
are hidden, and control characters are written out, so that a record is one line and none can be forged. Only a traceback has more lines,
each behind a bar.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from sam4mllm.plain_text import one_line

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that the line is about; a thread that works for a request runs in a copy of its context."""

HIDDEN = "…"
BAR = "    | "
"""Before each line of a traceback."""
SHORTEST_SECRET = 4
"""A shorter one would be found in ordinary words."""
# each begins where its first word does, so that a long word is read once and not from each of its letters
_QUERY = re.compile(r"(?<![^\s?\"'<>])([^\s?\"'<>/]*+/[^\s?\"'<>]*+)\?[^\s\"'<>]+")
"""An address or a path with a query: a presigned link's is its key."""
_USER = re.compile(r"(?<!\w)(\w++://)[^/\s@]++@")
_DATA = re.compile(r"data:[\w/+.;=-]*,[^\s\"'<>)]*")
_JWT = re.compile(r"(?<![\w-])(?=[\w-]++\.[\w-]++\.)([\w-]*?)\beyJ[\w-]++\.[\w-]++\.[\w-]*")
_WEBHOOK = re.compile(r"(/webhook/)[^\s\"'<>]+")


def clean(text: str, secrets: Sequence[str] = ()) -> str:
    """The text without these secrets, and without what looks like one: queries, passwords in addresses, tokens, images in ``data:``."""
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    text = _DATA.sub(f"data:{HIDDEN}", text)
    text = _QUERY.sub(rf"\1?{HIDDEN}", text)
    text = _USER.sub(rf"\1{HIDDEN}@", text)
    text = _WEBHOOK.sub(rf"\1{HIDDEN}", text)
    return _JWT.sub(rf"\1{HIDDEN}", text)


class TextFormatter(logging.Formatter):
    """``time level logger [request]: message``."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s")
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        number = REQUEST_ID.get()
        record.request = f" [{number}]" if number else ""
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        line = one_line(self.formatMessage(record))
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        return clean("\n".join([line, *(BAR + one_line(told) for told in trace)]), self._secrets)


class JsonFormatter(logging.Formatter):
    """An object a line: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``; ``request`` and ``traceback`` if there are any."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        super().__init__()
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": clean(one_line(record.getMessage()), self._secrets),
        }
        if number := REQUEST_ID.get():
            told["request"] = number
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            told["traceback"] = clean("\n".join(map(one_line, trace)), self._secrets)
        return json.dumps(told, ensure_ascii=False)


def log_config(kind: Literal["text", "json"], secrets: Sequence[str]) -> dict[str, Any]:
    """For ``logging.config.dictConfig``: all that the server and its libraries say goes to standard error, alike."""
    formatter = {"text": "TextFormatter", "json": "JsonFormatter"}[kind]
    quiet = {"level": "WARNING"}  # they write whole addresses
    only_errors = {"level": "ERROR"}  # it warns, in use or not, of what it lacks to be fast
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": f"backend.support.logs.{formatter}", "secrets": [*secrets]}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
        "root": {"level": "INFO", "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            "httpx": quiet,
            "httpcore": quiet,
            "bitsandbytes": only_errors,
        },
    }
