"""What the routes share: a request's body, who sends it, and a refusal."""

from __future__ import annotations

import hmac
from http import HTTPStatus

from flask import Response, current_app, g, jsonify, request
from werkzeug.exceptions import HTTPException

from backend.errors import BackendError, WireError
from backend.settings import Settings
from backend.support.bounded_json import memory_of, read_json
from backend.web.intake import SMALL, Intake
from sam4mllm.errors import Sam4mllmError

SHORT_BODY = 1 << 20
"""Most bytes of a body, where a route does not say otherwise."""
SETUP_BODY = 8 << 20
"""Most bytes of the body of ``/setup``: it holds a label config, which may have thousands of labels."""
MAX_DIGITS = 18
"""Most digits of the number that Label Studio's database gives a project or a task."""


def json_body(most: int = SHORT_BODY) -> dict[str, object]:
    """Return the JSON object in the request's body, which may have at most ``most`` bytes.

    Only ``application/json`` is taken, for another site's page could make a browser send a form or plain text (cross-site request forgery).
    For a body above SMALL, or of unknown length, memory is reserved until ``give_back_memory`` is called (:class:`Intake`).

    Raises WireError for another type and for a body that is cut short or that ``read_json`` refuses, QueueFullError if the memory for it is
    not free in time, and werkzeug's HTTPException of status 413 for a longer body.
    """
    if request.mimetype != "application/json":
        raise WireError("send application/json")
    request.max_content_length = most
    if (request.content_length or 0) <= SMALL and "chunked" not in request.headers.get("Transfer-Encoding", ""):
        return read_json(_bytes_of_body())
    intake: Intake = current_app.extensions["intake"]
    with intake.admit(request.content_length or most) as portion:
        body = _bytes_of_body()
        portion.change(memory_of(body))
        value = read_json(body)
    g.portion = portion
    return value


def _bytes_of_body() -> bytes:
    try:
        return request.get_data(cache=False)
    except HTTPException:
        raise
    except Exception as error:  # a broken chunk, for example: the server's own reader raises errors of its own
        raise WireError("the request's body is cut short or not well formed; send it again") from error


def give_back_memory() -> None:
    """Give back the memory that was reserved for the body of the request, which has ended."""
    if (portion := g.pop("portion", None)) is not None:
        portion.give_back()


def refusal(status: HTTPStatus, line: str, headers: dict[str, str] | None = None) -> Response:
    answer = jsonify(error=line)
    answer.status_code = status
    answer.headers.update(headers or {})
    return answer


def note_reason(error: Sam4mllmError) -> None:
    """Note why the current request is refused; the metrics count refusals by this reason."""
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
    """Whether two texts are equal, by a constant-time comparison."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())


def read_number(text: str, name: str) -> int:
    """Return the number that somebody typed. ``name`` says in the error what has that number: a project or a task. Raises WireError."""
    if not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS:
        raise WireError(f"a {name} is given by its number, as in the address of its page")
    return int(text)
