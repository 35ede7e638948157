"""The server and its training run, killed with SIGKILL at 20 random times and started again each time.

    python -m benchmarks.kills [--kills 20] [--seed 1]

A real server with the demo models and a champion trains on corrections while more webhooks come. After each kill the champion's files must
pass verification, and the log must hold every event that was acknowledged. After each start the champion must serve; the run goes on or is
marked as failed, and where none goes on another is started. That a resumed run gives the weights of an uninterrupted one is tested in
tests/test_recipe.py.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

from backend.corrections.log import CorrectionLog
from backend.support.child import serve_command
from benchmarks.beside import correction
from benchmarks.novel import NovelTask, novel_tasks
from benchmarks.random_adapter import write_random_adapter
from benchmarks.waiting import wait_for
from sam4mllm.adapters.registry import Registry
from sam4mllm.adopt import Claims, adopt

PORT = 9394
URL = f"http://127.0.0.1:{PORT}"
LONGEST = 20.0
"""Most seconds from when the server is ready to the kill. By then its run is being prepared, is training or, least often, is writing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        champion = add_champion(home)
        writer = Writer(novel_tasks(60, 771_001))
        found: Counter[str] = Counter()
        for _ in range(arguments.kills):
            process = start(home)
            try:
                found["another champion served"] += wait_until_ready() != champion
                if all(run["ended"] for run in runs()):
                    writer.send_all()
                    httpx.post(f"{URL}/api/runs", json={}, timeout=30).raise_for_status()
                    found["runs asked for"] += 1
                with writer.writing():
                    time.sleep(rng.uniform(0, LONGEST))
                    found[f"killed while {stage()}"] += 1
                    os.killpg(process.pid, signal.SIGKILL)
            finally:
                kill_all(process, home)
            Registry(home).verify(champion)
            found["acknowledged events lost"] += writer.lost(home)
        process = start(home)
        try:
            found["another champion served"] += wait_until_ready() != champion
            found.update(f"runs {run['state']} at the end" for run in runs())
        finally:
            kill_all(process, home)
    for what, number in sorted(found.items()):
        print(f"{what}: {number}")
    print(f"{arguments.kills} kills, {len(writer.acknowledged)} events acknowledged; lost events and other champions: bars 0")
    sys.exit(found["another champion served"] + found["acknowledged events lost"] > 0)


def add_champion(home: Path) -> str:
    """Add a version with random weights to the registry, make it the champion, and return its name."""
    registry = Registry(home)
    version = adopt(write_random_adapter(home / "adapter", 1), registry, Claims(model="demo", device="cpu")).version
    registry.promote(version)
    return version


class Writer:
    """Sends corrections as webhooks, and remembers which were acknowledged."""

    def __init__(self, tasks: list[NovelTask]) -> None:
        self.acknowledged: list[int] = []
        self._tasks = tasks

    def send_all(self) -> None:
        for number in range(len(self._tasks)):
            self.send(number)

    def send(self, number: int) -> None:
        """Send the correction with this number, and remember it if it is acknowledged.

        The tasks repeat; a correction of one that was corrected before is like an edit.
        """
        updated = f"2026-01-{1 + number // 86400:02d}T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}Z"
        index = number % len(self._tasks)
        body = {**correction(1 + index, self._tasks[index], updated), "number": number}
        if httpx.post(f"{URL}/webhook", json=body, timeout=30).status_code == 201:
            self.acknowledged.append(number)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """During the block, send five corrections a second, until the server no longer answers."""

        def write() -> None:
            try:
                while True:
                    self.send(max(self.acknowledged, default=0) + 1)
                    time.sleep(0.2)
            except httpx.HTTPError:
                pass

        thread = threading.Thread(target=write)
        thread.start()
        yield
        thread.join()

    def lost(self, home: Path) -> int:
        """Return how many acknowledged events are not in the log."""
        log = CorrectionLog(home / "corrections.sqlite")
        try:
            return len(set(self.acknowledged) - {event.body.get("number") for event in log.events()})
        finally:
            log.close()


def start(home: Path) -> subprocess.Popen[bytes]:
    home.mkdir(parents=True, exist_ok=True)
    plan = home / "plan.toml"
    plan.write_text("steps = 60\nrate = 1e-3\n")
    environment = {**os.environ, "SAM4MLLM_PORT": str(PORT), "SAM4MLLM_HOME": str(home), "SAM4MLLM_TRAIN_CONFIG": str(plan)}
    return subprocess.Popen(serve_command(), env=environment, stderr=subprocess.DEVNULL, start_new_session=True)


def wait_until_ready(seconds: float = 120) -> str:
    """Wait until the server is ready, and return the version that serves. Raises TimeoutError."""

    def version() -> str:
        answer = httpx.get(f"{URL}/ready")
        return str(answer.json()["version"]) if answer.is_success else ""

    return wait_for("the server", version, seconds)


def runs() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{URL}/api/runs", timeout=30).json()["runs"]
    return found


def stage() -> str:
    """Return the newest run's state and stage."""
    newest = runs()[0]
    return f"{newest['state']} {newest['progress'].get('stage', '')}".strip()


def kill_all(process: subprocess.Popen[bytes], home: Path) -> None:
    """Kill the server and its worker, and the training process of this home, which is in a process group of its own."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if "backend.learning.trainer" in words and any(word.startswith(str(home)) for word in words):
            os.kill(int(entry.name), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
