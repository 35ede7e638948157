"""Follow every step of the Dockerfile without Docker, in a fresh Debian under chroot, then start the server there and stop it.

This shows that each instruction works in a clean system and as the user it names, that the installed backend becomes healthy, and that it
ends by itself on the stop signal. It does not test the base image itself, in whose place there is a Debian of the same release with the
same Python, nor Docker's network, volumes and limits.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rehearse_base import ROOT, base, timed, tracked

HEALTHY_SECONDS, STOP_SECONDS = 180, 60
PORT = "9390"


@dataclass
class System:
    """A folder that holds a whole system, and what the Dockerfile's instructions so far have set.

    ``arguments`` are those of ARG, ``folder`` is that of WORKDIR, and ``stop`` is that of STOPSIGNAL.
    """

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"})
    arguments: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0"
    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    healthcheck: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    stop: signal.Signals = signal.SIGTERM

    def popen(self, command: list[str], further: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command inside the system, as the user and in the folder that are set; ``further`` are more environment variables."""
        home = "/root" if self.user == "0" else "/home/sam4mllm"
        inside = ["chroot", f"--userspec={self.user}:{self.user}", str(self.root), "/usr/bin/env", "--chdir", self.folder, *command]
        return subprocess.Popen(inside, env={"HOME": home, **self.arguments, **self.environment, **(further or {})}, **options)

    def run(self, command: list[str], further: dict[str, str] | None = None) -> int:
        return self.popen(command, further).wait()


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Yield each instruction of a Dockerfile as (name, the rest), with continued lines joined and comments left out."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


@contextmanager
def with_proc(root: Path) -> Iterator[None]:
    """Mount a /proc in the system for the block. Nothing else is mounted, so that removing the system cannot delete anything outside it."""
    place = str(root / "proc")
    subprocess.run(["mount", "-t", "proc", "proc", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def follow(system: System, name: str, rest: str) -> None:
    """Carry out one instruction. Exits if it fails or is not known here."""
    if name in SETTINGS:
        SETTINGS[name](system, rest)
    elif name == "WORKDIR":
        system.folder = rest
        (system.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif name == "COPY":
        copy(system, rest.split())
    elif name == "RUN":
        pip = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
        if code := system.run([*system.shell, rest], {**pip, "PIP_QUIET": "1"}):
            sys.exit(f"error: RUN ended with {code}: {rest}")
    elif name not in ("VOLUME", "EXPOSE"):
        sys.exit(f"error: {name} cannot be rehearsed; teach {Path(__file__).name} what it does")


def set_argument(system: System, rest: str) -> None:
    key, _, value = rest.partition("=")
    system.arguments[key] = "".join(shlex.split(value))


def set_environment(system: System, rest: str) -> None:
    for part in shlex.split(rest):
        key, _, value = part.partition("=")
        system.environment[key] = re.sub(r"\$(\w+)", lambda match: system.environment.get(match[1], ""), value)


SETTINGS: dict[str, Callable[[System, str], None]] = {
    "ARG": set_argument,
    "ENV": set_environment,
    "USER": lambda system, rest: setattr(system, "user", rest),
    "SHELL": lambda system, rest: setattr(system, "shell", json.loads(rest)),
    "CMD": lambda system, rest: setattr(system, "command", json.loads(rest)),
    "HEALTHCHECK": lambda system, rest: setattr(system, "healthcheck", json.loads(rest.partition("CMD")[2])),
    "STOPSIGNAL": lambda system, rest: setattr(system, "stop", signal.Signals[rest]),
}


def copy(system: System, words: list[str]) -> None:
    """Copy the files that git tracks from ``words`` but the last, the sources, to the last, the target. Exits if a source has none.

    Only tracked files are copied, so that the image cannot depend on an untracked file.
    """
    *sources, target = words
    inside = system.root / system.folder.lstrip("/")
    for source in sources:
        known = tracked(source)
        if not known:
            sys.exit(f"error: COPY {source}: no such file in git")
        whole = (ROOT / source).is_dir()
        for file in known:
            place = inside / target / (Path(file).relative_to(source) if whole else Path(file).name if target.endswith("/") else "")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, place)


def serve(system: System) -> None:
    """Start what the image starts, wait until it is healthy and its models are loaded, and stop it. Exits if any of it fails."""
    settings = {"SAM4MLLM_AUTH_PASSWORD": "rehearsal", "SAM4MLLM_WEBHOOK_SECRET": "rehearsal", "SAM4MLLM_PORT": PORT}
    process = system.popen(system.command, {**settings, "SAM4MLLM_HOST": "127.0.0.1"})
    end = time.monotonic() + HEALTHY_SECONDS
    try:
        while not is_ready(system, settings):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"error: not healthy after {HEALTHY_SECONDS} s, or ended with {process.poll()}")
            time.sleep(2)
        process.send_signal(system.stop)
        if code := process.wait(STOP_SECONDS):
            sys.exit(f"error: ended with {code} on {system.stop.name}")
    finally:
        if process.poll() is None:
            process.kill()


def is_ready(system: System, settings: dict[str, str]) -> bool:
    """Run the health check, and return whether it succeeds and says that the models are loaded."""
    check = system.popen(system.healthcheck, settings, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    said, _ = check.communicate()
    return check.returncode == 0 and said.strip() == b"ready"


def rehearse(folder: Path) -> None:
    """Follow the Dockerfile in a new folder, then start the server and stop it. Exits if the folder exists or a step fails."""
    if folder.exists():
        sys.exit(f"error: {folder} exists; name a new folder")
    system = System(folder)
    (_, image), *steps = instructions(ROOT / "docker/Dockerfile")
    timed(base, image, system.root)
    with with_proc(system.root):
        for name, rest in steps:
            timed(follow, system, name, rest)
        serve(system)
    print("healthy, and stopped by itself")
