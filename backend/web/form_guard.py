"""Buttons of the status page are pressed on the status page: a stranger's page cannot make a browser press them."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from flask import request

from backend.errors import StrangerError
from backend.web.http_parts import same

TOKEN = "token"
"""The form field."""


class FormGuard:
    """A secret that our pages carry and no other page can read, for as long as the server runs; and where the browser says it comes from.

    Either would do. The password is no help here: a browser sends it along whatever page asks.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)

    def check(self) -> None:
        """Raises StrangerError if the request did not come from a form of ours."""
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None and site != "same-origin":
            raise StrangerError("this was asked by another site; use the buttons of the status page itself")
        origin = request.headers.get("Origin")
        if site is None and origin is not None and urlsplit(origin).netloc != request.host:
            raise StrangerError("this was asked by another site; use the buttons of the status page itself")
        if not same(request.form.get(TOKEN, ""), self.token):
            raise StrangerError("the page is older than this server's last start; press the button again")
