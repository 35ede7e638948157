"""Bulk runs with one image a step and with several: whether the answers are the same, and the MLLM's passes and CPU seconds for a picture.

    python -m benchmarks.bulk [--pictures 200] [--seed 990025]

The pictures are demo scenes, each with the first of its phrases. The two kinds of runs alternate every forty pictures, so that other load
on the machine affects both alike. Ends with 1 if an answer differs in a mask, or in a score by more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sam4mllm
from backend.batch import steps
from backend.batch.folder import FolderSource, FolderWork
from backend.batch.work import Shard
from backend.settings import read_settings
from sam4mllm.cli.options import hush
from sam4mllm.data.examples import EXAMPLES
from sam4mllm.demo.dataset import write_scenes
from sam4mllm.grounding.closer import CloserGrounder
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.pipeline import Pipeline

TURN = 40
SCORE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--seed", type=int, default=990_025)
    arguments = parser.parse_args()
    hush()
    pipeline = sam4mllm.load()
    passes = count_passes(pipeline)
    different, spent = 0, {1: [0.0, 0.0], steps.IMAGES_A_STEP: [0.0, 0.0]}
    for turn in range(-(-arguments.pictures // TURN)):
        with tempfile.TemporaryDirectory() as name:
            count = min(TURN, arguments.pictures - turn * TURN)
            draw(Path(name), count, arguments.seed + turn)
            found = {}
            for images, totals in spent.items():
                passes[0], began = 0, time.process_time()
                found[images] = run(pipeline, Path(name), images)
                totals[0] += time.process_time() - began
                totals[1] += passes[0]
            different += sum(differs(*each) for each in zip(*found.values(), strict=True))
    (one, passes_one), (several, passes_several) = spent.values()
    for images, (seconds, run_passes) in spent.items():
        print(f"{images} a step: {seconds / arguments.pictures:.3f} CPU seconds a picture, {run_passes / arguments.pictures:.2f} passes")
    print(
        f"{several / one:.2f} x the CPU seconds, {passes_several / passes_one:.2f} x the passes; {different} of {arguments.pictures} differ"
    )
    raise SystemExit(different > 0)


def draw(folder: Path, count: int, seed: int) -> None:
    """A dataset of demo scenes, each with the first of its phrases."""
    write_scenes(folder, count, seed)
    first = {json.loads(line)["image"]: line for line in reversed((folder / EXAMPLES).read_text().splitlines())}
    (folder / EXAMPLES).write_text("\n".join(reversed(first.values())) + "\n")


def count_passes(pipeline: Pipeline) -> list[int]:
    """Make the pipeline count the MLLM's passes, those that read images included, and return the list whose only item is the count."""
    assert isinstance(pipeline.grounder, CloserGrounder)
    assert isinstance(pipeline.grounder.whole, MllmGrounder)
    model = pipeline.grounder.whole.checkpoint.model.model
    passes, forward = [0], model.forward

    def counted(*given: Any, **named: Any) -> Any:
        passes[0] += 1
        return forward(*given, **named)

    model.forward = counted
    return passes


def run(pipeline: Pipeline, folder: Path, images: int) -> list[Any]:
    """Return the answers of a bulk run over a folder with so many images a step, in the order of the pictures."""
    source = FolderSource(folder, Shard())
    with patch.object(steps, "IMAGES_A_STEP", images), patch.object(steps, "LOADERS", images), patch.object(steps.Pace, "images", images):
        stages = steps.local_stages(pipeline, FolderWork(read_settings(), folder), source)
        outcomes = sorted(stages(source.jobs("")), key=lambda one: one.job.id)
    return [one.answered.result for one in outcomes if one.answered is not None]


def differs(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether two answers about a picture differ: in a mask, or in a score by more than SCORE."""
    masks = [[instance["rle"] for example in answer for instance in example["instances"]] for answer in (one, other)]
    scores = [[example["score"] for example in answer] for answer in (one, other)]
    return masks[0] != masks[1] or any(abs(first - second) > SCORE for first, second in zip(*scores, strict=True))


if __name__ == "__main__":
    main()
