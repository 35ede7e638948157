"""A run's process killed with SIGKILL at random times and started again: it must end with the weights of an unbroken run.

python -m benchmarks.kills [--kills 20] [--steps 60]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from backend.trainer import Job, read_curve
from benchmarks.novel import novel_tasks, write_tasks
from sam4mllm.adapters import WEIGHTS, check_adapter
from sam4mllm.training.plan import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tasks(root / "data", novel_tasks(10, 771_001), "label-studio:Object")
        plan = Plan(steps=arguments.steps, batch=1, rate=1e-3, seconds_between_saves=2.0)
        data = str(root / "data")
        job = Job("demo", "demo", None, "box", False, data, data, data, str(root), None, "demo-0-base", plan, os.cpu_count() or 1)
        unbroken = weights(run_through(root / "unbroken", job))
        killed = root / "killed"
        kills = kill(killed, job, arguments.kills, random.Random(1))
        resumed = weights(run_through(killed, job))
    difference = max(float((unbroken[name] - resumed[name]).abs().max()) for name in unbroken)
    print(f"{kills} kills of a run of {arguments.steps} steps: its weights differ by {difference:.1e} at most (bar: 1e-6)")


def start(run: Path, job: Job) -> subprocess.Popen[bytes]:
    run.mkdir(exist_ok=True)
    job.write(run)
    return subprocess.Popen([sys.executable, "-m", "backend.trainer", str(run)], stderr=subprocess.DEVNULL)


def run_through(run: Path, job: Job) -> Path:
    assert start(run, job).wait() == 0
    check_adapter(run / "adapter")
    return run / "adapter"


def weights(adapter: Path) -> dict[str, Tensor]:
    return dict(load_file(adapter / WEIGHTS))


def kill(run: Path, job: Job, times: int, rng: random.Random) -> int:
    """Kill the process so often, each time a random moment after it has begun to train, or to write, or to compare."""
    done = 0
    for _ in range(times):
        process = start(run, job)
        told = len(read_curve(run))
        while process.poll() is None and len(read_curve(run)) == told and not (run / "adapter").exists():
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 3))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            done += 1
        process.wait()
    return done


if __name__ == "__main__":
    main()
