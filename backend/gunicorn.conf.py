"""One worker owns the model; its threads wait for it. Read by gunicorn."""

from __future__ import annotations

import logging
import sys
from typing import Any

from backend.errors import SettingsError
from backend.settings import read_settings

try:
    settings = read_settings()
except SettingsError as error:
    sys.exit(f"error: {error}")

bind = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
workers = 1
worker_class = "gthread"
# every place of the queue may hold a thread, of both kinds; the others keep /health and /setup fast
threads = 2 * settings.queue + 8
timeout = 0
graceful_timeout = int(settings.deadline) + 10
keepalive = 5
preload_app = False
limit_request_line = 8190
control_socket_disable = True
accesslog = None
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
for name in ("httpx", "httpcore"):  # they write whole addresses, presigned ones too
    logging.getLogger(name).setLevel(logging.WARNING)


def when_ready(server: Any) -> None:
    """Say what is set, secrets masked."""
    for line in settings.lines():
        server.log.info(line)


def post_worker_init(worker: Any) -> None:
    """Begin to load the models, in the worker."""
    worker.wsgi.extensions["service"].start()


def worker_exit(server: Any, worker: Any) -> None:
    """All requests are answered by now."""
    worker.wsgi.extensions["service"].close(seconds=5.0)
