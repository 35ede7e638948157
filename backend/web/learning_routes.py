"""The routes of versions and runs."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus

from flask import Flask, Response, jsonify

from backend.learning.run_folder import Side
from backend.learning.runs import Run
from backend.service import Service
from backend.web.http_parts import json_body, refusal

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def add_learning_routes(app: Flask, service: Service) -> None:
    """Add routes that list versions and runs, start and stop a run, show its report and pictures, and promote or roll back a version."""

    @app.route("/versions", methods=["GET", "POST"])
    def versions() -> Response:
        """Names of all versions, the serving one first."""
        stored = [manifest.version for manifest in service.versions.registry.versions()]
        return jsonify(versions=list(dict.fromkeys([*filter(None, [service.version]), *reversed(stored)])))

    @app.get("/api/runs")
    def runs() -> Response:
        """Training runs with their progress, the newest first."""
        return jsonify(runs=[shown(run, service) for run in service.learner.runs.all()])

    @app.post("/api/runs")
    def start_run() -> Response:
        """Start a training run, or return the one that waits or runs if it would learn from the same corrections."""
        json_body()
        answer = jsonify(shown(service.learner.ask("asked for over the API"), service))
        answer.status_code = HTTPStatus.CREATED
        return answer

    @app.delete("/api/runs/<run>")
    def stop_run(run: str) -> Response:
        """Stop a run for good."""
        stopped = service.learner.stop(run)
        return refusal(HTTPStatus.NOT_FOUND, "there is no such run") if stopped is None else jsonify(shown(stopped, service))

    @app.get("/api/runs/<run>/report")
    def report(run: str) -> Response:
        """A run's page: figures, reasons, pictures."""
        page = service.learner.runs.report(run)
        if page is None:
            return refusal(HTTPStatus.NOT_FOUND, "there is no such run, or it has no report yet")
        return Response(page, mimetype="text/html", headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/api/runs/<run>/pictures/<int:index>-<any(before, after):side>.png")
    def picture(run: str, index: int, side: Side) -> Response:
        """The picture of a held-out phrase as the version before or after the run draws it."""
        data = service.learner.runs.picture(run, index, side)
        if data is None:
            return refusal(HTTPStatus.NOT_FOUND, "there is no such picture")
        return Response(data, mimetype="image/png", headers={"Cache-Control": "private, max-age=86400"})

    @app.post("/api/versions/<version>/promote")
    def promote(version: str) -> Response:
        """Let a version serve."""
        json_body()
        service.versions.promote(version)
        return jsonify(version=service.version)

    @app.post("/api/versions/rollback")
    def roll_back() -> Response:
        """Let the former version serve."""
        json_body()
        service.versions.rollback()
        return jsonify(version=service.version)


def shown(run: Run, service: Service) -> dict[str, object]:
    """Return a run as the API shows it: its fields, and its ``progress``, which is empty before its process tells any and once the run is
    over.
    """
    return {**asdict(run), "progress": {} if run.over else service.learner.runs.folder(run.id).read_progress()}
