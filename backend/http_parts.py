"""What the routes share: a request's body, who sends it, and a refusal."""

from __future__ import annotations

import hmac
from http import HTTPStatus

from flask import Response, g, jsonify, request

from backend.errors import BackendError, WireError
from backend.settings import Settings
from backend.wire import read_json
from sam4mllm.errors import Sam4mllmError


def json_body() -> dict[str, object]:
    """A form or plain text is what a stranger's page could make a browser send."""
    if request.mimetype != "application/json":
        raise WireError("send application/json")
    return read_json(request.get_data(cache=False))


def refusal(status: HTTPStatus, line: str, headers: dict[str, str] | None = None) -> Response:
    answer = jsonify(error=line)
    answer.status_code = status
    answer.headers.update(headers or {})
    return answer


def note_reason(error: Sam4mllmError) -> None:
    """Why the request at hand is refused, for those who count."""
    g.reason = error.reason if isinstance(error, BackendError) else "request"


def knows_password(settings: Settings) -> bool:
    """Whether the request comes with the settings' user name and password."""
    try:
        given = request.authorization
    except ValueError:  # werkzeug on a header that is not ASCII
        return False
    password = settings.auth_password.get_secret_value()
    return given is not None and same(given.username or "", settings.auth_user) & same(given.password or "", password)


def same(given: str, wanted: str) -> bool:
    """Compared in a time that tells nothing."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())
