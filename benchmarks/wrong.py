"""Runs on wrong corrections: whether the gate promotes what was learned from them, and what a share of them costs.

    python -m benchmarks.wrong [--seeds 10] [--minutes 15] [--at-once 2] [--share 1]

The tasks are as in ``benchmarks/learn.py``, but each one, or a ``--share`` of them, has the true masks of another task. The tasks for
training and those of the holdout are wrong alike. Each run consists of training, comparison and the gate; no server takes part.

With a ``--share`` below 1, a second run learns the same tasks without errors, and the versions of both runs, promoted or not, are evaluated
on 200 unseen scenes that ask for the same things.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from backend.learning.gate import Decision
from backend.learning.trainer import draw_scenes
from benchmarks.few import run_once, worth
from benchmarks.novel import NovelTask, novel_tasks, write_tests
from sam4mllm.training.config import read_config

TASKS = 60


class Judged(NamedTuple):
    """The result of a run: the gate's decision, the number of training steps, and its version's gIoU on unseen scenes.

    ``unseen`` is None if the version was not evaluated.
    """

    decision: Decision
    steps: int
    unseen: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0, help="of a run; with fewer it gets fewer steps than a server's")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--share", type=float, default=1.0, help="of the tasks, more than 0")
    parser.add_argument("--tests", type=Path, default=Path(tempfile.gettempdir()) / "sam4mllm-learn", help="where the test scenes are kept")
    arguments = parser.parse_args()
    tests = None if arguments.share == 1 else write_tests(arguments.tests)[0]
    threads = max(1, (os.cpu_count() or 1) // arguments.at_once)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.at_once) as pool:
        draw_scenes(Path(folder))
        one = partial(judge, Path(folder), minutes=arguments.minutes, threads=threads, tests=tests)
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        wrong = list(pool.map(partial(tell, one, arguments.share), seeds))
        print(
            f"{sum(found.decision.verdict == 'promote' for found in wrong)} of {len(wrong)} promoted{' (bar: 0)' if tests is None else ''}"
        )
        if tests is not None:
            clean = list(pool.map(partial(tell, one, 0.0), seeds))
            report_gains(worth(None, tests), wrong, clean)


def tell(one: Callable[[int, float], Judged], share: float, seed: int) -> Judged:
    """Make one run by calling ``one`` with the seed and the share of wrong tasks, print its figures, and return them."""
    found = one(seed, share)
    figures = found.decision.figures
    print(
        f"seed {seed}, {share:.0%} wrong: {found.decision.verdict}; holdout {figures['champion']:.3f} -> {figures['challenger']:.3f}; "
        f"{'' if found.unseen is None else f'unseen scenes {found.unseen:.3f}; '}{found.steps} steps; {'; '.join(found.decision.reasons)}",
        flush=True,
    )
    return found


def report_gains(before: float, wrong: Sequence[Judged], clean: Sequence[Judged]) -> None:
    """Print the mean gain in gIoU on unseen scenes of the runs with errors and of those without; ``before`` is the base model's gIoU."""
    gains = [np.mean([found.unseen for found in runs if found.unseen is not None]) - before for runs in (wrong, clean)]
    print(f"gain on unseen scenes: {gains[0]:+.3f} with errors, {gains[1]:+.3f} without (bar: half of it)")


def exchange(tasks: list[NovelTask], share: float, seed: int) -> list[NovelTask]:
    """Return the tasks, of which a share, drawn with the seed, is wrong.

    Each wrong task has the masks of the next wrong one, stretched to its own picture; the last has those of the first.
    """
    count = round(share * len(tasks))
    assert count != 1, "one task has no other to exchange its masks with"
    wrong = sorted(np.random.default_rng(seed).permutation(len(tasks))[:count].tolist())
    found = list(tasks)
    for at, other in zip(wrong, wrong[1:] + wrong[:1], strict=True):
        height, width = tasks[at].masks.shape[1:]
        masks = tasks[other].masks
        stretched = [cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0 for mask in masks]
        found[at] = replace(tasks[at], masks=np.array(stretched, np.bool_).reshape(-1, height, width))
    return found


def judge(home: Path, seed: int, share: float, *, minutes: float, threads: int, tests: Path | None) -> Judged:
    """Make one run on corrections of which a share is wrong; ``tests`` is the dataset to evaluate its version on, or None."""
    plan = replace(read_config("demo").plan, seed=seed, budget_seconds=60 * minutes)
    tasks = exchange(novel_tasks(TASKS, 880_100 + seed), share, seed)
    decision, run = run_once(home, f"run-{seed}-{share}", tasks, plan, threads)
    steps = len(run.curve.read_text().splitlines())
    return Judged(decision, steps, None if tests is None else worth(run.adapter, tests))


if __name__ == "__main__":
    main()
