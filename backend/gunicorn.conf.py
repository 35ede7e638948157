"""Gunicorn's configuration: one worker process owns the models, and its threads each serve a request and wait for the models' answer."""

from __future__ import annotations

import contextlib
import logging.config
import os
import signal
import socket
import sys
import threading
from typing import Any

from backend.errors import SettingsError
from backend.settings import read_settings
from backend.support.home_lock import hold_home, keep_from_children
from backend.support.logs import log_config
from backend.web.worker import MAX_CONNECTIONS, Worker

STOP_LISTENING_SECONDS = 0.2
"""Seconds from SIGTERM until the listening sockets are shut down: gunicorn needs a moment to let go of them. Without the shutdown, new
connections would wait instead of being refused.
"""

try:
    settings = read_settings()
except SettingsError as error:
    sys.exit(f"error: {error}")

bind = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
workers = 1
worker_class = "backend.web.worker.Worker"
worker_connections = MAX_CONNECTIONS + 1  # so that gunicorn never stops accepting: the worker closes connections itself
Worker.max_body = settings.max_body_mb << 20
# every place of the queue, interactive or batch, may hold a thread; eight more serve /setup and the rest (/health has threads of its own)
threads = 2 * settings.queue + 8
timeout = 0
graceful_timeout = int(settings.deadline) + 15
keepalive = 5
preload_app = False
limit_request_line = 8190
control_socket_disable = True
accesslog = None
logconfig_dict = log_config(settings.log, settings.secrets)
logging.config.dictConfig(logconfig_dict)


def on_starting(server: Any) -> None:
    """Lock SAM4MLLM_HOME before anything is bound or loaded; if it cannot be locked, exit with one line on standard error.

    The master holds the lock: workers inherit it, and one may replace another.
    """
    try:
        hold_home(settings.home, bind)
    except SettingsError as error:
        sys.exit(f"error: {error}")


def when_ready(server: Any) -> None:
    """Log the settings, with secrets masked."""
    for line in settings.lines():
        server.log.info(line)


def post_worker_init(worker: Any) -> None:
    """Start the service in the worker: it begins to load the models and to look for what there is to learn.

    On SIGTERM, new requests are refused, bulk runs are stopped, and after STOP_LISTENING_SECONDS connections are refused, too. Gunicorn
    finishes the requests that have begun. Processes that the worker forks do not hold the home's lock.
    """
    service = worker.wsgi.extensions["service"]
    finish = signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: Any) -> None:
        service.engine.drain()
        service.bulk.interrupt()
        threading.Timer(STOP_LISTENING_SECONDS, _stop_listening, (worker,)).start()
        if callable(finish):
            finish(number, frame)

    signal.signal(signal.SIGTERM, end)
    keep_from_children()
    service.start()


def _stop_listening(worker: Any) -> None:
    for listener in worker.sockets:
        if listener.sock is None:  # gunicorn has closed it
            continue
        with contextlib.suppress(OSError):  # gunicorn closes it at this moment
            listener.sock.shutdown(socket.SHUT_RDWR)


def worker_exit(server: Any, worker: Any) -> None:
    """Close the service; all requests are answered by now. A worker that could not start has no app, and nothing is to be closed then.

    If the thread of the models still runs, because they are loading, the process ends at once: at the usual end of Python, the threads that
    torch has for it would abort the process.
    """
    app = getattr(worker, "wsgi", None)
    if app is not None and not app.extensions["service"].close(seconds=5.0):
        logging.shutdown()
        os._exit(0)
