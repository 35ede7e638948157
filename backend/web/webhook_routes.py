"""The webhook: an event is on disk before it is acknowledged, and what it means is worked out later."""

from __future__ import annotations

import logging
from http import HTTPStatus

from flask import Flask, Response, jsonify, request

from backend.corrections.log_faults import LogError
from backend.label_studio.events import SECRET_HEADER, START_TRAINING
from backend.service import Service
from backend.web.error_handlers import status_of
from backend.web.http_parts import json_body, knows_password, note_reason, refusal, same

log = logging.getLogger(__name__)


def add_webhook_routes(app: Flask, service: Service) -> None:
    """Add ``POST /webhook`` and ``POST /webhook/<secret>``: Label Studio's webhooks carry the secret in a header or in the path."""
    settings = service.settings
    password = settings.auth_password.get_secret_value()

    @app.post("/webhook")
    def webhook() -> Response:
        """Label Studio's events, with the secret in the header X-Webhook-Secret."""
        return store(request.headers.get(SECRET_HEADER, ""))

    @app.post("/webhook/<secret>")
    def webhook_by_path(secret: str) -> Response:
        """Label Studio's events, with the secret in the path."""
        return store(secret)

    def store(secret: str) -> Response:
        wanted = settings.webhook_secret.get_secret_value()
        if wanted and not same(secret, wanted) and not (password and knows_password(settings)):  # START_TRAINING comes with the password
            return refusal(HTTPStatus.UNAUTHORIZED, f"the webhook's secret is wrong; send it as {SECRET_HEADER} or in the path")
        body = json_body(settings.max_body_mb << 20)
        try:
            event = service.receive(body)
        except LogError as error:  # not acknowledged, so Label Studio logs a failure, and reconciliation takes the change over later
            if error.kind != "full":  # a full disk is counted by its status
                note_reason(error)
            log.error("an event could not be stored: %s", error)
            return refusal(status_of(error), f"the event could not be stored: {error}")
        starts = body.get("action") == START_TRAINING
        told = {"note": settings.untrained or service.learner.standing()} if starts else {}
        answer = jsonify(status="stored", event=event, **told)
        answer.status_code = HTTPStatus.CREATED
        return answer
