"""What the routes share: a request's body, and a refusal."""

from __future__ import annotations

from http import HTTPStatus

from flask import Response, jsonify, request

from backend.errors import WireError
from backend.wire import read_json


def json_body() -> dict[str, object]:
    """A form or plain text is what a stranger's page could make a browser send."""
    if request.mimetype != "application/json":
        raise WireError("send application/json")
    return read_json(request.get_data(cache=False))


def refusal(status: HTTPStatus, line: str, headers: dict[str, str] | None = None) -> Response:
    answer = jsonify(error=line)
    answer.status_code = status
    answer.headers.update(headers or {})
    return answer
