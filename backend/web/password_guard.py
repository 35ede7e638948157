"""Access to the server: requests need the password or, where none is set, a Host header that names loopback."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from flask import Flask, Response, request

from backend.settings import LOOPBACK, Settings
from backend.web.http_parts import knows_password, refusal

OPEN_ENDPOINTS = ("health", "webhook", "webhook_by_path")
"""Routes that do not ask for the password: Label Studio sends none with most webhooks, which have a secret of their own, and a container's
health check knows none.
"""


def ask_for_password(app: Flask, settings: Settings) -> None:
    """Refuse requests before their route is called: if a password is set, those that lack it (401), except to OPEN_ENDPOINTS; if none is
    set, those whose Host header does not name loopback (403), to whichever route.
    """
    password = settings.auth_password.get_secret_value()

    @app.before_request
    def ask_who() -> Response | None:
        if not password and _host_name() not in LOOPBACK:
            # DNS rebinding: a page in somebody's browser may call this server by a host name of its own that resolves to loopback
            return refusal(HTTPStatus.FORBIDDEN, "without a password this server is called 127.0.0.1 or localhost")
        if not password or request.endpoint in OPEN_ENDPOINTS or knows_password(settings):
            return None
        return refusal(HTTPStatus.UNAUTHORIZED, "a user name and a password are needed", {"WWW-Authenticate": "Basic"})


def _host_name() -> str:
    try:
        return urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return ""
