"""The project as it is installed: a wheel in an environment of its own, started from a folder with other people's modules."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

from backend.support.child import HOST, check_port

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "sam4mllm", "backend")
FOREIGN = ("backend/__init__.py", "numpy.py", "flask.py", "typer.py", "jinja2.py")
"""Modules of others in the working directory; importing one fails."""
START_SECONDS = 180
IMPORTS = "import asyncio, email.message, http.client, importlib.metadata, inspect, logging, sqlite3, unittest.mock"
IMPORTS_SECONDS = 0.11
"""The processor time of an interpreter with these modules where ``benchmarks.pace`` says 1: reckoned from 0.24 s where it says 2.2."""
POISON = "raise RuntimeError(f'{__file__} was imported')\n"


@dataclass(frozen=True)
class Done:
    """A process that has ended: what it said, and the processor time that it and its children took."""

    code: int
    out: str
    err: str
    cpu: float


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and the folder that its commands are started from."""

    wheel: Path
    python: Path
    folder: Path

    @property
    def starts(self) -> dict[str, list[str]]:
        """Both ways to start a command."""
        return {"sam4mllm": [str(self.python.with_name("sam4mllm"))], "python -m": [str(self.python), "-m", "sam4mllm"]}

    def environment(self, **further: str) -> dict[str, str]:
        """None of our own variables, and no Label Studio on the path."""
        kept = {name: os.environ[name] for name in ("TMPDIR", "LANG", "OMP_NUM_THREADS") if name in os.environ}
        own = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "HF_HUB_OFFLINE": "1", "COLUMNS": "140"}
        return {**kept, **own, "SAM4MLLM_HOME": str(self.folder / "home"), **further}

    def pace(self) -> float:
        """The processor time of work that is none of ours, in that of the machine of the bars: 2.0 is half as fast."""
        return self.run(self.python, "-I", "-c", IMPORTS).cpu / IMPORTS_SECONDS

    def run(self, *command: object, timeout: float = 240, **environment: str) -> Done:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [str(one) for one in command],
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Done(done.returncode, done.stdout, done.stderr, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def install(folder: Path) -> Installed:
    """Build the wheel from a copy of the sources, install it, and let the environment reach the packages that this process has."""
    sources = folder / "sources"
    sources.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, sources / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", folder, sources], check=True)
    [wheel] = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", *offline, wheel], check=True)
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text("".join(f"{place}\n" for place in _dependencies()))
    place = folder / "elsewhere"
    for name in FOREIGN:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(POISON)
    return Installed(wheel, python, place)


def add_package(folder: Path, name: str, entries: Mapping[str, Mapping[str, str]]) -> None:
    """What an installed package leaves in ``folder`` to be known by, with its entry points."""
    information = folder / f"{name}-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    groups = [f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in some.items()) for group, some in entries.items()]
    (information / "entry_points.txt").write_text("\n".join(groups))


def _dependencies() -> list[Path]:
    """The folders that hold them. A ``.pth`` file inside one is not followed from here, so an editable install there stays unseen."""
    found = [find_spec(name) for name in ("torch", "flask", "typer")]
    return list(dict.fromkeys(Path(spec.origin).parents[1] for spec in found if spec is not None and spec.origin is not None))


@contextlib.contextmanager
def hosting(folder: Path) -> Iterator[str]:
    """The address of a server of files."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer((HOST, 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def serving(installed: Installed, start: str, **settings: str) -> Iterator[str]:
    """The address of the wheel's own server when its models are loaded."""
    port = check_port(0)
    url, log = f"http://{HOST}:{port}", installed.folder / f"server-{port}.log"
    command = [*installed.starts[start], "serve", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=installed.folder, env=installed.environment(**settings), stdout=output, stderr=output, start_new_session=True
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not _ready(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _ready(url: str) -> bool:
    try:
        said: dict[str, Any] = httpx.get(f"{url}/health", timeout=10, trust_env=False).json()
    except httpx.HTTPError:
        return False
    assert said["state"] != "failed", said
    return bool(said["state"] == "ready")
