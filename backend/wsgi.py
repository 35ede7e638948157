"""``gunicorn --config backend/gunicorn.conf.py backend.wsgi:app``: the app of the environment's settings.

The models are loaded by ``service.start()`` in the worker, after the fork: a GPU must not be touched before it.
"""

from __future__ import annotations

import sys

from backend.app import create_app
from backend.errors import SettingsError
from backend.service import build
from backend.settings import read_settings

try:
    settings = read_settings()
except SettingsError as error:
    sys.exit(f"error: {error}")
service = build(settings)
app = create_app(service)
