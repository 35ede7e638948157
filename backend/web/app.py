"""The application: what every request passes through, and the routes, which are in files of their own."""

from __future__ import annotations

from flask import Flask

from backend.service import Service
from backend.web.error_handlers import add_error_handlers
from backend.web.http_parts import SHORT_BODY, give_back_memory
from backend.web.intake import Intake
from backend.web.learning_routes import add_learning_routes
from backend.web.password_guard import ask_for_password
from backend.web.prediction_routes import add_prediction_routes
from backend.web.request_log import follow_requests
from backend.web.state_metrics import add_metrics
from backend.web.status_routes import add_status_routes
from backend.web.try_routes import add_try_routes
from backend.web.webhook_routes import add_webhook_routes


def create_app(service: Service) -> Flask:
    """Return the WSGI application of a service. It neither starts nor ends the service; its caller does."""
    app = Flask("sam4mllm")
    app.extensions["service"] = service
    app.config["MAX_CONTENT_LENGTH"] = SHORT_BODY
    app.extensions["intake"] = Intake()

    follow_requests(app, service.metrics)
    ask_for_password(app, service.settings)

    @app.teardown_request
    def let_go(_: BaseException | None) -> None:
        give_back_memory()

    add_prediction_routes(app, service)
    add_metrics(app, service)
    add_webhook_routes(app, service)
    add_learning_routes(app, service)
    add_status_routes(app, service)
    add_try_routes(app, service)

    add_error_handlers(app)
    return app
