"""What reviewers get wrong must not be promoted: runs on the masks of other tasks, each through training, comparison and the gate.

    python -m benchmarks.wrong [--seeds 10] [--minutes 3] [--at-once 2]

As in ``benchmarks/learn.py``, but each task has the true masks of another one; holdout and training are wrong alike. No server takes part.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from backend.learning.gate import Decision
from backend.learning.trainer import draw_scenes
from benchmarks.few import run_once
from benchmarks.novel import NovelTask, novel_tasks
from sam4mllm.training.plan import TrainingPlan

TASKS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--at-once", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.at_once) as pool:
        draw_scenes(Path(folder))
        threads = max(1, (os.cpu_count() or 1) // arguments.at_once)

        def one(seed: int) -> Decision:
            return judge(Path(folder), seed, arguments.minutes, threads)

        promoted = 0
        for seed, decision in enumerate(pool.map(one, range(arguments.seeds))):
            promoted += decision.verdict == "promote"
            figures = decision.figures
            print(
                f"seed {seed}: {decision.verdict}; holdout {figures['champion']:.3f} -> {figures['challenger']:.3f}; "
                f"{'; '.join(decision.reasons)}",
                flush=True,
            )
    print(f"{promoted} of {arguments.seeds} promoted (bar: 0)")


def exchange(tasks: list[NovelTask]) -> list[NovelTask]:
    """Each task with the masks of the next, stretched to its own picture."""
    found = []
    for task, other in zip(tasks, tasks[1:] + tasks[:1], strict=True):
        height, width = task.masks.shape[1:]
        stretched = [cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0 for mask in other.masks]
        found.append(replace(task, masks=np.array(stretched, np.bool_).reshape(-1, height, width)))
    return found


def judge(home: Path, seed: int, minutes: float, threads: int) -> Decision:
    """One run on wrong corrections, and the gate's decision."""
    plan = TrainingPlan(rate=1e-3, seed=seed, budget_seconds=60 * minutes)
    decision, _ = run_once(home, f"run-{seed}", exchange(novel_tasks(TASKS, 880_100 + seed)), plan, threads)
    return decision


if __name__ == "__main__":
    main()
