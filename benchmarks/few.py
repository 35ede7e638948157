"""From how few corrections a version is promoted, and what it gains. The runs have no server: only training, comparison and the gate.

    python -m benchmarks.few [--pictures 25] [--seeds 3] [--first 0] [--threads 1] [--skip-evaluation] [--kept-too] [--set steps=500]

As in ``benchmarks/learn.py``, the tasks ask for three things that the demo model has never seen, and their true masks are the corrections.
Promoted versions (with ``--kept-too`` all versions) are evaluated on 200 unseen scenes that ask for these things, and on 120 that ask for
known ones. ``--set`` changes fields of the training plan: ``--set augment_share=0 paste_share=0`` trains without variety.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from backend.learning.conductor import PATIENT
from backend.learning.evaluation import read_evaluation
from backend.learning.gate import Checks, Decision, decide
from backend.learning.job import TrainingJob
from backend.learning.run_folder import RunFolder
from backend.learning.snapshot import HOLDOUT
from backend.learning.trainer import draw_scenes
from benchmarks.novel import NovelTask, novel_tasks, splits_of, write_tasks, write_tests
from sam4mllm.training.config import read_config
from sam4mllm.training.plan import TrainingPlan


def run_once(home: Path, name: str, tasks: list[NovelTask], plan: TrainingPlan, threads: int) -> tuple[Decision, RunFolder]:
    """Make one run on corrections of these tasks, without a server, and return the gate's decision and the run's folder."""
    run = RunFolder(home / name)
    run.path.mkdir()
    write_tasks(run.data, tasks, "Object")
    TrainingJob("demo", "demo", None, "pqpp", False, str(run.data), None, None, str(home), None, "demo-0-base", plan, threads).write(run)
    environment = {**os.environ, **PATIENT, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(
        [sys.executable, "-m", "backend.learning.trainer", str(run.path)], check=True, env=environment, stderr=subprocess.DEVNULL
    )
    found, pairs = read_evaluation(run)
    return decide(pairs, Checks(found["golden_champion"], found["golden_challenger"], smoke=True)), run


def worth(adapter: Path | None, folder: Path) -> float:
    """Return the gIoU of the demo model on a dataset, with an adapter, or without one if it is None."""
    command = [
        sys.executable,
        "-m",
        "sam4mllm",
        "evaluate",
        str(folder),
        "--json",
        *([] if adapter is None else ["--adapter", str(adapter)]),
    ]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["gIoU"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-evaluation", action="store_true")
    parser.add_argument("--kept-too", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of the plan demo.toml")
    parser.add_argument("--tests", type=Path, default=Path(tempfile.gettempdir()) / "sam4mllm-learn", help="where the test scenes are kept")
    arguments = parser.parse_args()
    plan = replace(
        read_config("demo").plan, **{name: json.loads(value) for name, _, value in (one.partition("=") for one in arguments.set)}
    )
    promoted = 0
    tests = [] if arguments.skip_evaluation else write_tests(arguments.tests)
    before = [worth(None, folder) for folder in tests]
    with tempfile.TemporaryDirectory() as folder:
        draw_scenes(Path(folder))
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            tasks = novel_tasks(arguments.pictures, 881_000 + seed)
            began = time.monotonic()
            decision, run = run_once(Path(folder), f"run-{seed}", tasks, plan, arguments.threads)
            seconds = time.monotonic() - began
            print(f"seed {seed}: {splits_of(tasks).count(HOLDOUT)} held out", end="; ")
            promoted += decision.verdict == "promote"
            figures = decision.figures
            print(f"{decision.verdict} after {seconds:.0f} s; {figures['champion']:.3f} -> {figures['challenger']:.3f}; {decision.reasons}")
            if decision.verdict == "promote" or arguments.kept_too:
                gains = [worth(run.adapter, tried) - was for tried, was in zip(tests, before, strict=True)]
                print("   gains on new and on known things: " + ", ".join(f"{gain:+.3f}" for gain in gains), flush=True)
    print(f"{promoted} of {arguments.seeds} promoted")


if __name__ == "__main__":
    main()
