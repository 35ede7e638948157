"""Each request has an id, in its answer and in the log, and is counted once, by its route and never by its path: a path may be a secret."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Sequence
from http import HTTPStatus

from flask import Flask, Response, g, request

from backend.support.logs import REQUEST_ID
from backend.support.metrics import Metrics, Request

log = logging.getLogger(__name__)

HEADER = "X-Request-ID"
GIVEN = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""The form of an id. An id of this form in the request's HEADER, which a proxy may have set, is kept; otherwise a new one is made."""
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
"""Methods that a metric's label may hold. All others are counted as ``other``, for a client can send any word."""
OF_LABEL_STUDIO = frozenset(("setup", "predict", "webhook", "webhook_by_path"))
SHOWN_TASKS = 3
REASONS = {
    HTTPStatus.UNAUTHORIZED: "unauthorized",
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too_large",
    HTTPStatus.INTERNAL_SERVER_ERROR: "internal",
    HTTPStatus.INSUFFICIENT_STORAGE: "disk_full",
}
"""The reason, by status, under which a refusal is counted if no error of this project has set one; ``request`` for any other status."""


def follow_requests(app: Flask, metrics: Metrics) -> None:
    """Give each request an id and count its answer; those OF_LABEL_STUDIO are also logged and kept for the status page.

    Call it before any other hook is added, so that it sees what those refuse, too.
    """

    @app.before_request
    def begin() -> None:
        given = request.headers.get(HEADER, "")
        g.began = time.perf_counter()
        g.id = given if GIVEN.fullmatch(given) else secrets.token_hex(8)
        REQUEST_ID.set(g.id)

    @app.after_request
    def end(answer: Response) -> Response:
        answer.headers[HEADER] = g.id
        done = Request(
            when=time.time(),
            id=g.id,
            method=request.method if request.method in METHODS else "other",
            route=request.url_rule.rule if request.url_rule is not None else "none",
            tasks=g.get("tasks", ""),
            seconds=time.perf_counter() - g.began,
            status=answer.status_code,
            message=_message(answer),
        )
        metrics.answered(done)
        if answer.status_code >= HTTPStatus.BAD_REQUEST:
            metrics.refused(g.get("reason") or REASONS.get(HTTPStatus(answer.status_code), "request"))
        if request.endpoint in OF_LABEL_STUDIO:
            metrics.remember(done)
            tasks, why = done.tasks and f" (task {done.tasks})", done.message and f": {done.message}"
            log.info("%s %s: %d in %.2f s%s%s", done.method, done.route, done.status, done.seconds, tasks, why)
        return answer

    @app.teardown_request
    def leave(_: BaseException | None) -> None:
        REQUEST_ID.set("")  # what the thread logs later is not about this request


def note_tasks(tasks: Sequence[object]) -> None:
    """Note for the log which tasks the current request is about: the ids of the first SHOWN_TASKS, and how many more there are."""
    names = [str(task["id"]) if isinstance(task, dict) and isinstance(task.get("id"), int) else "?" for task in tasks[:SHOWN_TASKS]]
    more = f" and {len(tasks) - SHOWN_TASKS} more" if len(tasks) > SHOWN_TASKS else ""
    g.tasks = ", ".join(names) + more


def _message(answer: Response) -> str:
    """The line of a refusal, as ``http_parts.refusal`` writes it; empty for any other answer."""
    if answer.status_code < HTTPStatus.BAD_REQUEST or answer.mimetype != "application/json":
        return ""
    body = answer.get_json(silent=True)
    return str(body.get("error", "")) if isinstance(body, dict) else ""
