"""The status page, what it shows as JSON, and its buttons."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from flask import Flask, Response, jsonify, redirect, request

from backend.errors import WireError
from backend.service import Service
from backend.web.error_handlers import status_of
from backend.web.form_guard import TOKEN, FormGuard
from backend.web.http_parts import note_reason, read_number
from backend.web.overview import BASE_MODEL, SHOWN_RUNS, look
from sam4mllm.edges import AS_DRAWN
from sam4mllm.errors import Sam4mllmError
from sam4mllm.page import render

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("pages") / "status.html"
SCRIPT = PAGE.with_name("status.js")
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; script-src 'nonce-{nonce}'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
MAX_FIRST = 10**6


@dataclass(frozen=True)
class Button:
    """What a button of the page does with the form's ``subject``, and what the page says afterwards."""

    press: Callable[[Service, str], object]
    said: str


def _stop(service: Service, run: str) -> None:
    if service.learner.stop(run) is None:
        raise WireError("there is no such run")


def _adopt(service: Service, subject: str) -> None:
    learner = service.learner
    offer = next((one for one in learner.edge_offers if one.name == subject), None)
    if offer is None:
        raise WireError("there is no such offer any more")
    learner.adopt_edge(offer.project, offer.label, offer.edge, offer.decoder)


def _take_back(service: Service, subject: str) -> None:
    project, _, label = subject.partition(":")
    if not any(subject == f"{number}:{name}" for number, name, _ in service.learner.edges.adopted):
        raise WireError("no such edge was adopted")
    service.learner.adopt_edge(int(project), label, AS_DRAWN)


def _predict_all(service: Service, project: str) -> None:
    service.bulk.start(read_number(project.strip(), "project"))


def _stop_bulk(service: Service, project: str) -> None:
    service.bulk.stop(read_number(project, "project"))


BUTTONS = {
    "adopt-edge": Button(_adopt, "Masks of this label are drawn so from now on, by a version with a new name."),
    "drop-edge": Button(_take_back, "Masks of this label are drawn as they are again."),
    "train": Button(lambda service, _: service.learner.ask("asked for on the status page"), "A run begins as soon as the server is free."),
    "predict-all": Button(_predict_all, "Every task of the project that has no prediction of the serving version gets one."),
    "stop-bulk": Button(_stop_bulk, "It ends after the task that it is at; what was found is kept."),
    "stop": Button(_stop, "The run is being stopped."),
    "promote": Button(lambda service, version: service.versions.promote(version), "The version serves."),
    "leave-out": Button(lambda service, name: service.learner.leave_out(name), "What they corrected teaches nothing from now on."),
    "take-in": Button(lambda service, name: service.learner.take_in(name), "What they corrected is learned from again."),
    "rollback": Button(lambda service, serving: service.versions.rollback(serving), "The former version serves again."),
}


def add_status_routes(app: Flask, service: Service) -> None:
    """Add ``GET /``, ``GET /api``, and ``POST /actions/<name>`` for the buttons."""
    guard = FormGuard()

    def page(status: HTTPStatus = HTTPStatus.OK, *, said: str = "", wrong: str = "") -> Response:
        nonce = secrets.token_urlsafe(16)
        text = render(
            PAGE,
            now=look(service, _first()),
            root=request.script_root,
            token=guard.token,
            token_field=TOKEN,
            nonce=nonce,
            script=SCRIPT.read_text(encoding="utf-8"),
            said=said,
            wrong=wrong,
            base_model=BASE_MODEL,
            has_model=service.settings.has_model,
            page_size=SHOWN_RUNS,
            can_push=service.can_push,
            train_after=service.settings.train_after,
            unassisted=service.settings.unassisted_share,
        )
        answer = Response(text.encode(errors="replace"), status, mimetype="text/html")  # a phrase may hold an unpaired surrogate
        answer.headers["Content-Security-Policy"] = POLICY.format(nonce=nonce)
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @app.get("/")
    def status() -> Response:
        """The status page."""
        done = BUTTONS.get(request.args.get("done", ""))
        return page(said=done.said if done else "")

    @app.get("/api")
    def overview() -> Response:
        """What the status page shows, as JSON."""
        return jsonify(look(service, _first()).to_json())

    @app.post("/actions/<name>")
    def action(name: str) -> Response:
        """The status page's buttons: train, stop, promote, rollback, leave-out, take-in, adopt-edge, drop-edge, predict-all,
        stop-bulk.
        """
        button = BUTTONS.get(name)
        if button is None:
            return page(HTTPStatus.NOT_FOUND, wrong="there is no such button")
        try:
            guard.check()
            button.press(service, request.form.get("subject", ""))
        except Sam4mllmError as error:
            note_reason(error)
            log.warning("%s on the status page: %s", name, error)
            return page(status_of(error), wrong=str(error))
        answer = redirect(f"{request.script_root}/?done={name}", HTTPStatus.SEE_OTHER)
        return app.make_response(answer)


def _first() -> int:
    """Return how many of the newest runs the page skips: the query's ``first``, at most MAX_FIRST; 0 if it is no number of less than ten
    digits.
    """
    given = request.args.get("first", "0")
    return min(int(given), MAX_FIRST) if given.isascii() and given.isdigit() and len(given) < 10 else 0
