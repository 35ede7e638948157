"""Protection from cross-site request forgery: another site's page cannot make a browser send the forms of this server's pages."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from flask import request

from backend.errors import StrangerError
from backend.web.http_parts import same

TOKEN = "token"
"""The name of the form field that carries the token."""


class FormGuard:
    """Checks that a form was sent from a page of this server.

    It checks a token, which is made at the server's start and which no other site's page can read, and the origin that the browser reports.
    Either would be enough. The password does not help here: a browser sends it whichever page the form is on.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)

    def check(self) -> None:
        """Raises StrangerError if the request did not come from a form of ours, or its page was loaded before this server started."""
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None and site != "same-origin":
            raise StrangerError("this was asked by another site; use the buttons of the status page itself")
        origin = request.headers.get("Origin")
        if site is None and origin is not None and urlsplit(origin).netloc != request.host:
            raise StrangerError("this was asked by another site; use the buttons of the status page itself")
        if not same(request.form.get(TOKEN, ""), self.token):
            raise StrangerError("the page is older than this server's last start; press the button again")
