"""Waiting for another process or thread, with a time limit and an error that names what did not come. The tests use it, too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import httpx

from backend.demo.launch import is_ready
from backend.support.child import HOST, Child, serve_command

READY_SECONDS = 600.0
"""Seconds in which the demo models must be loaded, on a machine that is busy with other work."""

Found = TypeVar("Found")


def wait_for(what: str, find: Callable[[], Found | None], seconds: float, pause: float = 0.2) -> Found:
    """Call ``find`` again and again until its result is neither false nor empty, and return that. An ``httpx.HTTPError`` counts as none.

    Args:
        what: what is waited for, for the error's line.
        find: returns what is waited for, or something false.
        seconds: how long to wait.
        pause: seconds between two calls.

    Raises:
        TimeoutError: it did not come in time.
    """
    end = time.monotonic() + seconds
    while True:
        with suppress(httpx.HTTPError):
            if found := find():
                return found
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {seconds:g} s")
        time.sleep(pause)


@contextmanager
def server(home: Path, port: int) -> Iterator[Child]:
    """Run the project's server as a child process. The block begins when the demo models are loaded; the server is stopped at its end."""
    child = Child("server", serve_command(), {**os.environ, "SAM4MLLM_PORT": str(port), "SAM4MLLM_HOME": str(home)}, home / "server.log")
    try:
        child.wait_until(lambda: is_ready(f"http://{HOST}:{port}"), READY_SECONDS, print)
        yield child
    finally:
        child.stop()
