"""Servers as child processes on loopback, and the command line that starts this project's own server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from backend.errors import LabelStudioError, SettingsError

HOST = "127.0.0.1"
STOP_TIMEOUT = 10.0
GUNICORN_CONFIG = Path(__file__).parents[1] / "gunicorn.conf.py"
Progress = Callable[[str], None]


def serve_command(app: str = "backend.wsgi:app") -> list[str]:
    """Return the command line of the server, which takes its settings from the environment. Modules in the working directory are not
    imported.
    """
    return [sys.executable, "-P", "-m", "backend.web.gunicorn_server", "--config", str(GUNICORN_CONFIG), app]


def check_port(port: int) -> int:
    """Return the port, or a free one for 0. Raises SettingsError if the loopback address cannot be bound to it, as when another program
    listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SettingsError(f"port {port} of {HOST} cannot be used ({error.strerror}); choose another one") from error
        return int(probe.getsockname()[1])


class Child:
    """A server as a child process in its own process group, with its output in a log file, which is emptied first.

    Raises SettingsError if it cannot be started, and OSError if the log file cannot be written.
    """

    def __init__(self, name: str, command: Sequence[str | Path], environment: dict[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("wb") as output:
            try:
                self.process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0
                )
            except OSError as error:
                raise SettingsError(f"{command[0]} cannot be run: {error.strerror}") from error

    def check(self) -> None:
        """Raise LabelStudioError with the log's last line if the process has ended."""
        if self.process.poll() is not None:
            raise LabelStudioError(f"{self.name} ended with code {self.process.returncode}: {self._last_line()} (log: {self.log})")

    def wait_until(self, ready: Callable[[], bool], timeout: float, progress: Progress) -> None:
        """Ask ``ready`` twice a second until it is true, at most ``timeout`` seconds, and call ``progress`` about every ten seconds.

        Raises LabelStudioError if the process ends or time runs out.
        """
        began, told = time.monotonic(), 0
        while not ready():
            self.check()
            passed = time.monotonic() - began
            if passed > timeout:
                raise LabelStudioError(f"{self.name} was not ready after {timeout:.0f} s: {self._last_line()} (log: {self.log})")
            if passed // 10 > told:
                told = int(passed // 10)
                progress(f"{self.name} is starting, {passed:.0f} s")
            time.sleep(0.5)

    def stop(self) -> None:
        """End the process and all others of its group: by SIGTERM, and by SIGKILL if one still runs after ten seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            deadline = time.monotonic() + 10
            while self._alive() and time.monotonic() < deadline:
                time.sleep(0.05)
            if not self._alive():
                break

    def _alive(self) -> bool:
        self.process.poll()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, 0)
            return True
        return False

    def _last_line(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").split("\n")]
        return next(filter(None, reversed(lines)), "it wrote nothing")
