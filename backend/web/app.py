"""The routes that Label Studio asks, and who may ask; those of webhooks, of runs and of the status page are in files of their own."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from flask import Flask, Response, jsonify, request

from backend.errors import NotReadyError
from backend.label_studio.label_config import read_label_config
from backend.label_studio.wire import read_predict, read_setup
from backend.service import Service
from backend.settings import LOOPBACK
from backend.web.error_handlers import add_error_handlers
from backend.web.http_parts import SETUP_BODY, SHORT_BODY, give_back_memory, json_body, knows_password, refusal
from backend.web.intake import Intake
from backend.web.learning_routes import add_learning_routes
from backend.web.request_log import follow_requests, note_tasks
from backend.web.state_metrics import StateCollector
from backend.web.status_routes import add_status_routes
from backend.web.webhook_routes import add_webhook_routes

OPEN_ENDPOINTS = ("health", "webhook", "webhook_by_path")
"""Routes that do not ask for the password: Label Studio sends none with most webhooks, which have a secret of their own."""


def create_app(service: Service) -> Flask:
    """The WSGI application of a service that somebody else starts and ends."""
    app = Flask("sam4mllm")
    app.extensions["service"] = service
    app.config["MAX_CONTENT_LENGTH"] = SHORT_BODY
    app.extensions["intake"] = Intake()
    settings, engine = service.settings, service.engine

    password = settings.auth_password.get_secret_value()

    service.metrics.registry.register(StateCollector(service))
    follow_requests(app, service.metrics)

    @app.before_request
    def ask_who() -> Response | None:
        if not password and _host_name() not in LOOPBACK:
            # a page in somebody's browser may call us by a name of its own that leads to loopback
            return refusal(HTTPStatus.FORBIDDEN, "without a password this server is called 127.0.0.1 or localhost")
        if not password or request.endpoint in OPEN_ENDPOINTS or knows_password(settings):
            return None
        return refusal(HTTPStatus.UNAUTHORIZED, "a user name and a password are needed", {"WWW-Authenticate": "Basic"})

    @app.get("/health")
    def health() -> Response:
        """Always fast; says loading, ready, paused, failed or draining."""
        return jsonify(status="UP", state=engine.state, model_class="SAM4MLLM", error=engine.failure)

    @app.get("/ready")
    def ready() -> Response:
        """200 if the models can answer, else 503."""
        answer = jsonify(state=engine.state, version=service.version, error=engine.failure)
        answer.status_code = HTTPStatus.OK if engine.state == "ready" else HTTPStatus.SERVICE_UNAVAILABLE
        return answer

    @app.post("/setup")
    def setup() -> Response:
        """Label Studio's: checks the label config, answers with the version."""
        asked = read_setup(json_body(SETUP_BODY))
        read_label_config(asked.label_config, settings.prompt_control)
        service.predictor.note_config(asked.project, asked.label_config)
        if not service.version:
            raise NotReadyError(engine.failure or "the models are loading; ask again in a few seconds")
        return jsonify(model_version=service.version)

    @app.post("/predict")
    def predict() -> Response:
        """Label Studio's: predictions for tasks, or for what an annotator typed and clicked."""
        asked = read_predict(json_body(settings.max_body_mb << 20))
        note_tasks(asked.tasks)
        results = service.predictor.predict(asked)
        return Response(b'{"results":[' + b",".join(results) + b"]}", mimetype="application/json")

    @app.get("/metrics")
    def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), mimetype="text/plain; version=0.0.4")

    @app.teardown_request
    def let_go(_: BaseException | None) -> None:
        give_back_memory()

    add_webhook_routes(app, service)
    add_learning_routes(app, service)
    add_status_routes(app, service)

    add_error_handlers(app)
    return app


def _host_name() -> str:
    try:
        return urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return ""
