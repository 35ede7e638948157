"""The routes, nothing else; those of versions and runs are in :mod:`backend.learning_routes`."""

from __future__ import annotations

import hmac
import logging
import secrets
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from flask import Flask, Response, jsonify, render_template, request
from werkzeug.exceptions import HTTPException

from backend.errors import BackendError, NotReadyError, QueueFullError, where
from backend.http_parts import json_body, refusal
from backend.label_config import read_label_config
from backend.learning_routes import PAGE_POLICY, add_learning_routes, shown
from backend.service import Service
from backend.settings import LOOPBACK
from backend.wire import MAX_BODY, read_predict, read_setup
from sam4mllm.errors import Sam4mllmError

log = logging.getLogger(__name__)

RETRY_SECONDS = 5
SHOWN_RUNS = 10
OPEN_ENDPOINTS = ("health", "webhook", "webhook_by_path")
"""Routes that do not ask for the password: Label Studio sends none with most webhooks, which have a secret of their own."""
ACTIONS = frozenset(
    (
        *("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "START_TRAINING"),
        *("PROJECT_UPDATED", "TASKS_CREATED", "TASKS_DELETED"),
    )
)
"""The events that are counted by name; any other is counted as OTHER."""


def create_app(service: Service) -> Flask:
    """The WSGI application of a service that somebody else starts and ends."""
    app = Flask("sam4mllm", template_folder=str(Path(__file__).with_name("pages")))
    app.extensions["service"] = service
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    settings, engine = service.settings, service.engine

    password = settings.auth_password.get_secret_value()

    def knows_password() -> bool:
        try:
            given = request.authorization
        except ValueError:  # werkzeug on a header that is not ASCII
            return False
        return given is not None and _same(given.username or "", settings.auth_user) & _same(given.password or "", password)

    @app.before_request
    def ask_who() -> Response | None:
        if not password and _host_name() not in LOOPBACK:
            # a page in somebody's browser may call us by a name of its own that leads to loopback
            return refusal(HTTPStatus.FORBIDDEN, "without a password this server is called 127.0.0.1 or localhost")
        if not password or request.endpoint in OPEN_ENDPOINTS or knows_password():
            return None
        return refusal(HTTPStatus.UNAUTHORIZED, "a user name and a password are needed", {"WWW-Authenticate": "Basic"})

    @app.get("/health")
    def health() -> Response:
        return jsonify(status="UP", state=engine.state, model_class="SAM4MLLM", error=engine.failure)

    @app.get("/ready")
    def ready() -> Response:
        answer = jsonify(state=engine.state, version=service.version, error=engine.failure)
        answer.status_code = HTTPStatus.OK if engine.state == "ready" else HTTPStatus.SERVICE_UNAVAILABLE
        return answer

    @app.post("/setup")
    def setup() -> Response:
        asked = read_setup(json_body())
        read_label_config(asked.label_config)
        if not service.version:
            raise NotReadyError(engine.failure or "the models are loading; ask again in a few seconds")
        return jsonify(model_version=service.version)

    @app.post("/predict")
    def predict() -> Response:
        results = service.predictor.predict(read_predict(json_body()))
        return Response(b'{"results":[' + b",".join(results) + b"]}", mimetype="application/json")

    @app.post("/webhook")
    def webhook() -> Response:
        return _store(request.headers.get("X-Webhook-Secret", ""))

    @app.post("/webhook/<secret>")
    def webhook_by_path(secret: str) -> Response:
        return _store(secret)

    def _store(secret: str) -> Response:
        wanted = settings.webhook_secret.get_secret_value()
        if wanted and not _same(secret, wanted) and not (password and knows_password()):  # START_TRAINING comes with the password
            return refusal(HTTPStatus.UNAUTHORIZED, "the webhook's secret is wrong; send it as X-Webhook-Secret or in the path")
        body = json_body()
        action = str(body.get("action", ""))
        event = service.corrections.store(body)
        service.metrics.stored(action if action in ACTIONS else "OTHER")
        service.learner.heard(action)
        answer = jsonify(status="stored", event=event)
        answer.status_code = HTTPStatus.CREATED
        return answer

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(service.metrics.text(), mimetype="text/plain; version=0.0.4")

    add_learning_routes(app, service)

    @app.get("/")
    def status() -> Response:
        runs = [shown(run, service) for run in service.learner.runs.all()[:SHOWN_RUNS]]
        page = render_template(
            "status.html", service=service, engine=engine, failures=service.metrics.recent, runs=runs, learner=service.learner
        )
        return Response(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.errorhandler(Sam4mllmError)
    def known(error: Sam4mllmError) -> Response:
        service.metrics.refused(error.reason if isinstance(error, BackendError) else "request")
        if isinstance(error, QueueFullError | NotReadyError):
            return refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": str(RETRY_SECONDS)})
        return refusal(HTTPStatus.BAD_REQUEST, str(error))

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

    return app


def _host_name() -> str:
    try:
        return urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return ""


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())
