"""Training images a second and peak memory at LoRA ranks 16 and 128, on a Qwen2.5-VL with random weights and images of COCO's size.

    python -m benchmarks.training_speed --size 7b     # on a CUDA GPU, bf16
    python -m benchmarks.training_speed               # a tiny model, on whatever there is

Each image comes with five phrases in one packed row, with the default questions. The share of the limit is the least time that a step's
passes could take at the device's measured speed, divided by the time that they took. The passes are the forward pass, the recomputation
where activation checkpointing is used, and the backward pass.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import resource
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.limits import Limits, Work, measure_limits, timed
from benchmarks.random_model import SEVEN_B, TINY, Size, make_checkpoint
from benchmarks.sized_scenes import sized_scene
from sam4mllm.cli.options import hush
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.loading import pick_device
from sam4mllm.precision import default_dtype
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.pool import Pool
from sam4mllm.training.recipe import Trainer

SEED = 990_033
RANKS = (16, 128)
BATCH = 4


def write_data(folder: Path, images: int) -> Path:
    """Write a dataset of so many scenes of COCO's size, and return its folder."""
    with ExampleWriter(folder) as writer:
        for index in range(images):
            image, examples = sized_scene(SEED, index)
            record = writer.add_image(image)
            for example in examples:
                writer.add_encoded(record, example.phrase, example.instances, example.split, "")
    return folder


def measure(size: Size, rank: int, device: torch.device, limits: Limits, data: Path, steps: int) -> dict[str, Any]:
    """Train adapters of one rank on a new model, and return the figures. A first step warms up and is not counted."""
    checkpoint = make_checkpoint(size, device, default_dtype(device))
    pool = Pool([(data, read_examples(data))])
    plan = TrainingPlan(steps=steps + 1, batch=BATCH, rank=rank, alpha=128, replay_share=0.0, feature_megabytes=0)
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with TemporaryDirectory() as folder, Work(checkpoint.model) as work:
        trainer = Trainer(checkpoint, pool, plan, Path(folder) / "run")
        marks: list[tuple[float, int, int]] = []
        timed(lambda: trainer.train(lambda progress: marks.append((progress.seconds, len(work.tokens), work.patches))), device)
    (began, first, seen), (ended, _, _) = marks[0], marks[-1]
    work.tokens, work.patches = work.tokens[first:], work.patches - seen
    peak = torch.cuda.max_memory_allocated(device) if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return {
        "rank": rank,
        "images a second": steps * BATCH / (ended - began),
        "tokens an image": sum(work.tokens) / (steps * BATCH),
        "peak GiB": peak / 2**30,
        "of the limit": work.seconds(limits, passes=3 if gpu else 2) / (ended - began),
    }


def main() -> None:
    """Print the date, the device with its limits, and a row for each rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "7b"), default="tiny")
    parser.add_argument("--device")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    hush()
    device = pick_device(arguments.device)
    limits = measure_limits(device, default_dtype(device))
    size = SEVEN_B if arguments.size == "7b" else TINY
    rows = []
    with TemporaryDirectory() as folder:
        data = write_data(Path(folder) / "data", 4 * BATCH)
        for rank in RANKS:
            rows.append(measure(size, rank, device, limits, data, arguments.steps))
            gc.collect()  # free this rank's model before the next one is made, so that memory need not hold two
    about = {"date": datetime.date.today().isoformat(), "device": limits.name, "size": arguments.size, "batch": BATCH}
    about |= {"TFLOP/s": f"{limits.operations / 1e12:.4g}", "GB/s": f"{limits.bytes / 1e9:.4g}"}
    if arguments.json:
        print(json.dumps({**about, "rows": rows}))
        return
    for name, value in about.items():
        print(f"{name:20}{value}")
    for row in rows:
        print()
        for name, value in row.items():
            print(f"{name:20}{value:.4g}")


if __name__ == "__main__":
    main()
