"""What goes wrong in a route becomes one line; no traceback leaves the server."""

from __future__ import annotations

import logging
import secrets
from http import HTTPStatus

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from backend.corrections.log_faults import LogError
from backend.errors import DeadlineError, NotReadyError, QueueFullError, StrangerError, where
from backend.web.http_parts import note_reason, refusal
from sam4mllm.errors import Sam4mllmError

log = logging.getLogger(__name__)

RETRY_SECONDS = 5


def status_of(error: Sam4mllmError) -> HTTPStatus:
    """Return the status for an error: 507 for a LogError of a full disk, 503 for QueueFullError, NotReadyError, DeadlineError and any other
    LogError, 403 for StrangerError, and else 400.
    """
    if isinstance(error, LogError) and error.kind == "full":
        return HTTPStatus.INSUFFICIENT_STORAGE
    if isinstance(error, QueueFullError | NotReadyError | DeadlineError | LogError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.FORBIDDEN if isinstance(error, StrangerError) else HTTPStatus.BAD_REQUEST


def add_error_handlers(app: Flask) -> None:
    """Answer each error of a route with one line: errors of this project with their text, which says what to do, HTTP errors with their
    name, and all others with a number under which the log says what failed.
    """

    @app.errorhandler(Sam4mllmError)
    def known(error: Sam4mllmError) -> Response:
        note_reason(error)
        status = status_of(error)
        later = status == HTTPStatus.SERVICE_UNAVAILABLE
        return refusal(status, str(error), {"Retry-After": str(RETRY_SECONDS)} if later else None)

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        kept = {name: value for name, value in error.get_headers() if name == "Allow"}
        return refusal(HTTPStatus(error.code or 500), error.name, kept)

    @app.errorhandler(Exception)
    def unknown(error: Exception) -> Response:
        number = secrets.token_hex(4)
        log.error("request %s to %s failed: %s", number, request.endpoint, where(error))
        log.debug("the traceback", exc_info=error)
        return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"internal error {number}; see the server's log")
