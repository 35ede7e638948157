"""The routes, nothing else."""

from __future__ import annotations

import hmac
import logging
import secrets
from http import HTTPStatus
from pathlib import Path

from flask import Flask, Response, jsonify, render_template, request
from werkzeug.exceptions import HTTPException

from backend.errors import BackendError, NotReadyError, QueueFullError
from backend.label_config import read_label_config
from backend.service import Service
from backend.wire import MAX_BODY, read_json, read_predict, read_setup
from sam4mllm.errors import Sam4mllmError

log = logging.getLogger(__name__)

RETRY_SECONDS = 5
OPEN_ENDPOINTS = ("health", "webhook", "webhook_by_path")
"""Routes without the password: Label Studio sends none with webhooks, which have a secret of their own."""


def create_app(service: Service) -> Flask:
    """The WSGI application of a service that somebody else starts and ends."""
    app = Flask("sam4mllm", template_folder=str(Path(__file__).with_name("pages")))
    app.extensions["service"] = service
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    settings, engine = service.settings, service.engine

    @app.before_request
    def ask_for_password() -> Response | None:
        password = settings.auth_password.get_secret_value()
        if not password or request.endpoint in OPEN_ENDPOINTS:
            return None
        try:
            given = request.authorization
        except ValueError:  # werkzeug on a header that is not ASCII
            given = None
        same = given is not None and _same(given.username or "", settings.auth_user) & _same(given.password or "", password)
        return None if same else _refusal(HTTPStatus.UNAUTHORIZED, "a user name and a password are needed", {"WWW-Authenticate": "Basic"})

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
        asked = read_setup(_body())
        read_label_config(asked.label_config)
        if not service.version:
            raise NotReadyError(engine.failure or "the models are loading; ask again in a few seconds")
        return jsonify(model_version=service.version)

    @app.post("/predict")
    def predict() -> Response:
        results = service.predictor.predict(read_predict(_body()))
        return Response(b'{"results":[' + b",".join(results) + b"]}", mimetype="application/json")

    @app.post("/webhook")
    def webhook() -> Response:
        return _store(request.headers.get("X-Webhook-Secret", ""))

    @app.post("/webhook/<secret>")
    def webhook_by_path(secret: str) -> Response:
        return _store(secret)

    def _store(secret: str) -> Response:
        wanted = settings.webhook_secret.get_secret_value()
        if wanted and not _same(secret, wanted):
            return _refusal(HTTPStatus.UNAUTHORIZED, "the webhook's secret is wrong; send it as X-Webhook-Secret or in the path")
        body = _body()
        action = str(body.get("action", ""))
        event = service.corrections.store(body)
        service.metrics.stored(action if action.isupper() and len(action) <= 32 else "OTHER")
        answer = jsonify(status="stored", event=event)
        answer.status_code = HTTPStatus.CREATED
        return answer

    @app.route("/versions", methods=["GET", "POST"])
    def versions() -> Response:
        return jsonify(versions=[service.version] if service.version else [])

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(service.metrics.text(), mimetype="text/plain; version=0.0.4")

    @app.get("/api/runs")
    def runs() -> Response:
        return jsonify(runs=[])

    @app.post("/api/runs")
    @app.delete("/api/runs/<run>")
    @app.post("/api/versions/<version>/promote")
    def learning(**_: str) -> Response:
        return _refusal(HTTPStatus.NOT_IMPLEMENTED, "this version collects corrections but does not learn from them yet")

    @app.get("/")
    def status() -> Response:
        page = render_template("status.html", service=service, engine=engine, failures=service.metrics.recent)
        return Response(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    @app.errorhandler(Sam4mllmError)
    def known(error: Sam4mllmError) -> Response:
        service.metrics.refused(error.reason if isinstance(error, BackendError) else "request")
        if isinstance(error, QueueFullError | NotReadyError):
            return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": str(RETRY_SECONDS)})
        return _refusal(HTTPStatus.BAD_REQUEST, str(error))

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        return _refusal(HTTPStatus(error.code or 500), error.name)

    @app.errorhandler(Exception)
    def unknown(error: Exception) -> Response:
        number = secrets.token_hex(4)
        log.error("request %s to %s failed", number, request.path, exc_info=error)
        return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"internal error {number}; see the server's log")

    return app


def _body() -> dict[str, object]:
    return read_json(request.get_data(cache=False))


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())


def _refusal(status: HTTPStatus, line: str, headers: dict[str, str] | None = None) -> Response:
    answer = jsonify(error=line)
    answer.status_code = status
    answer.headers.update(headers or {})
    return answer
