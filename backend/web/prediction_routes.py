"""The routes of Label Studio's protocol: is the backend up, is the config understood, and predictions for tasks."""

from __future__ import annotations

from http import HTTPStatus

from flask import Flask, Response, jsonify

from backend.errors import NotReadyError
from backend.label_studio.label_config import read_label_config
from backend.label_studio.wire import read_predict, read_setup
from backend.service import Service
from backend.web.http_parts import SETUP_BODY, json_body
from backend.web.request_log import note_tasks


def add_prediction_routes(app: Flask, service: Service) -> None:
    """Add the routes ``GET /health``, ``GET /ready``, ``POST /setup`` and ``POST /predict``."""
    settings, engine = service.settings, service.engine

    @app.get("/health")
    def health() -> Response:
        """The state of the server: loading, ready, paused, failed or draining. Always answers fast."""
        return jsonify(status="UP", state=engine.state, model_class="SAM4MLLM", error=engine.failure)

    @app.get("/ready")
    def ready() -> Response:
        """200 if the models can answer, else 503."""
        models = {"model": settings.model, "segmenter": settings.segmenter, "strategy": settings.strategy}
        answer = jsonify(state=engine.state, version=service.version, error=engine.failure, **models)
        answer.status_code = HTTPStatus.OK if engine.state == "ready" else HTTPStatus.SERVICE_UNAVAILABLE
        return answer

    @app.post("/setup")
    def setup() -> Response:
        """Called by Label Studio: checks and notes the label config and the parameters, and answers with the version that serves."""
        asked = read_setup(json_body(SETUP_BODY))
        config = read_label_config(asked.label_config, settings.prompt_control)
        service.predictor.note_config(asked.project, asked.label_config)
        service.note_parameters(asked.project, asked.parameters, config)
        if not service.version:
            raise NotReadyError(engine.failure or "the models are loading; ask again in a few seconds")
        return jsonify(model_version=service.version)

    @app.post("/predict")
    def predict() -> Response:
        """Called by Label Studio: predictions for tasks, or for what an annotator typed and clicked."""
        asked = read_predict(json_body(settings.max_body_mb << 20))
        note_tasks(asked.tasks)
        results = service.predictor.predict(asked)
        return Response(b'{"results":[' + b",".join(results) + b"]}", mimetype="application/json")
