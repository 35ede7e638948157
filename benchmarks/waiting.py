"""Waiting for another process or thread, with a limit and a word for what did not come; the tests wait by it, too."""

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
"""For the demo models to load, on a machine that is busy with other work."""

Found = TypeVar("Found")


def wait_for(what: str, find: Callable[[], Found | None], seconds: float, pause: float = 0.2) -> Found:
    """What ``find`` gives, once it is neither false nor empty. A server that does not answer yet is asked again.

    Args:
        what: what is waited for, for the error's line.
        find: asked again and again.
        seconds: how long.
        pause: seconds between two tries.

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
    """Our server as a child process with the demo models loaded; it ends with the block."""
    child = Child("server", serve_command(), {**os.environ, "SAM4MLLM_PORT": str(port), "SAM4MLLM_HOME": str(home)}, home / "server.log")
    try:
        child.wait_until(lambda: is_ready(f"http://{HOST}:{port}"), READY_SECONDS, print)
        yield child
    finally:
        child.stop()
