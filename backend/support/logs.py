"""The log, as lines for people or JSON objects for machines. Each record has the id of its request; none shows a secret or an image.

Text from elsewhere (an address in an error, a library's message) is cleaned when it is written out, whoever logged it: secrets are hidden,
and control characters are escaped, so that a record is one line and none can be forged. Only a traceback has further lines, each of which
begins with a bar.
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
"""The id of the request that a log line is about. A thread that works for a request runs in a copy of its context."""

HIDDEN = "…"
BAR = "    | "
"""What each line of a traceback begins with."""
SHORTEST_SECRET = 4
"""Secrets shorter than this are not hidden, as they would be found within ordinary words."""
# each can match at the start of a word only, so that a long word is scanned once and not again from each of its letters
_QUERY = re.compile(r"(?<![^\s?\"'<>])([^\s?\"'<>/]*+/[^\s?\"'<>]*+)\?[^\s\"'<>]+")
"""An address or a path with a query; the query of a presigned address is its key."""
_USER = re.compile(r"(?<!\w)(\w++://)[^/\s@]++@")
_DATA = re.compile(r"data:[\w/+.;=-]*,[^\s\"'<>)]*")
_JWT = re.compile(r"(?<![\w-])(?=[\w-]++\.[\w-]++\.)([\w-]*?)\beyJ[\w-]++\.[\w-]++\.[\w-]*")
_WEBHOOK = re.compile(r"(/webhook/)[^\s\"'<>]+")


def clean(text: str, secrets: Sequence[str] = ()) -> str:
    """Return the text without these ``secrets`` and without what looks like one: queries of addresses, passwords in them, webhook paths,
    tokens, and images in ``data:`` URIs.
    """
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
    """Return the configuration for ``logging.config.dictConfig``: the server and its libraries all write to standard error, in the same
    format.
    """
    formatter = {"text": "TextFormatter", "json": "JsonFormatter"}[kind]
    quiet = {"level": "WARNING"}  # these log whole addresses
    only_errors = {"level": "ERROR"}  # bitsandbytes warns that parts are missing that would make it faster, even if it is not used
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
