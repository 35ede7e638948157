"""The lock that keeps a second server out of a home folder, as two servers would start the same training runs. The kernel frees the lock
when the server's last process has ended, however it ended.

gunicorn's master takes the lock and its workers inherit it, so that a restarted worker need not take it. Commands beside the server
(``adapters``, ``batch``, ``doctor``) and the training process do not take it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from backend.errors import SettingsError

log = logging.getLogger(__name__)

FILE = "server.lock"
PATIENCE_SECONDS = 3.0
"""How long to wait for the lock: the worker of a server that was just killed may take a moment to notice."""
_held: dict[Path, int] = {}
"""Descriptors of the locks that this process or the one it was forked from has taken, by home."""


def hold_home(home: Path, address: str, patience: float = PATIENCE_SECONDS) -> None:
    """Take the home's lock, and keep it until this process and those that it forks have ended. If this process holds it already, do
    nothing.

    ``address`` is told to whoever finds the home in use. On a file system without locks, the log warns and nothing is locked. Raises
    SettingsError if another server still holds the home after ``patience`` seconds, or if the file cannot be written.
    """
    home = home.resolve()
    if home in _held:
        return
    path = home / FILE
    try:
        home.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SettingsError(f"SAM4MLLM_HOME: {path} cannot be written ({error.strerror}); choose another folder") from error
    try:
        if not _lock(descriptor, path, patience):
            raise SettingsError(f"SAM4MLLM_HOME: {home} is in use by {_holder(path)}; end it, or choose another folder")
        _sign(descriptor, address)
    except BaseException:
        os.close(descriptor)
        raise
    _held[home] = descriptor


def keep_from_children() -> None:
    """From now on a fork of this process does not hold the home: a helper that outlives its server must not keep the next one out."""

    def close() -> None:
        while _held:
            os.close(_held.popitem()[1])

    os.register_at_fork(after_in_child=close)


def release_home(home: Path) -> None:
    """Release the home's lock (for tests). A process that ends releases it without this."""
    descriptor = _held.pop(home.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, patience: float) -> bool:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)
        except OSError as error:  # some network file systems know no locks
            log.warning("%s cannot be locked (%s); see to it that no other server uses this folder", path, error.strerror)
            return True


def _sign(descriptor: int, address: str) -> None:
    """Write into the lock file who holds it. The file is never replaced: a new file in its place could be locked by a second server."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "address": address}
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(who).encode() + b"\n", 0)
    except OSError as error:
        log.warning("%s does not say who holds it: %s", FILE, error.strerror)


def _holder(path: Path) -> str:
    """The server that holds the lock, as it has signed."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        pid, host, since, address = (str(who[key])[:100] for key in ("pid", "host", "since", "address"))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "another server"
    return f"the server at {address} (process {pid} on {host}, since {since})"
