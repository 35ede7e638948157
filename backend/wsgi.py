"""``gunicorn --config backend/gunicorn.conf.py backend.wsgi:app``: the app of the environment's settings.

gunicorn's worker then starts the service, after the fork: a GPU must not be touched before it.
"""

from __future__ import annotations

import sys

from backend.service import build
from backend.settings import read_settings
from backend.support.home_lock import hold_home
from backend.web.app import create_app
from sam4mllm.errors import Sam4mllmError

BOOT_FAILED = 3
"""The exit status of a worker (``Arbiter.WORKER_BOOT_ERROR``) after which gunicorn ends instead of starting another worker."""

try:
    settings = read_settings()
    hold_home(settings.home, f"{settings.host}:{settings.port}")  # gunicorn's master does already; other servers do not
    app = create_app(build(settings))
except Sam4mllmError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(BOOT_FAILED)
