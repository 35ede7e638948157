"""Whether a GPU gives the CPU's answers, and how fast it is: all that only a GPU can show, in one command of under nine minutes.

    python -m benchmarks.device --size 7b          # on a CUDA GPU, bf16
    python -m benchmarks.device                    # tiny models, on whatever there is

1. Equality: a tiny model in float32 answers on the device, with several images in a pass, and on the CPU, image by image. Compared are the
   probabilities of "none" and of points, packed and joint.
2. One phrase and ten phrases of an image, in the published way and the project's (:mod:`benchmarks.published`), without and with an
   adapter.
3. A bulk step of 1 and of 8 images: how many images a second the MLLM answers, without and with an adapter.
4. Training at LoRA rank 16 (:mod:`benchmarks.training_speed`).
5. SAM (ViT-H with random weights; at tiny size the demo's): seconds to take an image in, and to draw a mask.

Beside the speeds of the MLLM is the share of the limit: the least time that the counted work could take on this device, divided by the time
that it took. Ends with 1 if an answer differs.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.limits import Limits, Work, measure_limits, timed
from benchmarks.published import PHRASES, inquiries_of, measure
from benchmarks.random_model import SEVEN_B, TINY, Size, make_checkpoint
from benchmarks.sized_scenes import COCO
from benchmarks.training_speed import BATCH, write_data
from benchmarks.training_speed import measure as measure_training
from sam4mllm.adapters.lora import attach
from sam4mllm.cli.options import hush
from sam4mllm.grounding.frames import Frame
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.loading import pick_device
from sam4mllm.precision import default_dtype
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.protocol import Segmenter
from sam4mllm.segmentation.sam import SamSegmenter
from sam4mllm.values import Prompt

CLOSE = 1e-4
RANK = 64
STEPS = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "7b"), default="tiny")
    parser.add_argument("--device")
    parser.add_argument("--images", type=int, default=3)
    arguments = parser.parse_args()
    hush()
    began, device = time.monotonic(), pick_device(arguments.device)
    dtype = default_dtype(device)
    limits, size = measure_limits(device, dtype), SEVEN_B if arguments.size == "7b" else TINY
    speeds = {"size": arguments.size, "TFLOP/s": limits.operations / 1e12, "GB/s": limits.bytes / 1e9}
    show(f"{datetime.date.today()}, {limits.name}, {dtype}", speeds)
    differs = compare(device)
    show("equality", {"largest difference to the processor": differs})
    for adapted in (False, True):
        time_phrases(size, device, limits, arguments.images, adapted)
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        show("training", measure_training(size, 16, device, limits, write_data(Path(folder) / "data", 4 * BATCH), 3))
    gc.collect()
    time_segmenter(arguments.size, device)
    print(f"{time.monotonic() - began:.0f} s in all")
    raise SystemExit(differs > CLOSE)


def show(what: str, figures: dict[str, Any]) -> None:
    told = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items())
    print(f"{what}: {told}", flush=True)


def compare(device: torch.device) -> float:
    """Return the largest difference between a probability in the answers on the device, where several images share a pass, and on the CPU,
    image by image.
    """
    there, here = (MllmGrounder(make_checkpoint(TINY, one, torch.float32), max_new_tokens=12) for one in (device, torch.device("cpu")))
    asked = [inquiries_of(index, 3) for index in range(3)]
    scenes = there.open_each([image for image, _ in asked])
    worst = 0.0
    for joint in (False, True):
        together = there.ask_each([(scene, inquiries) for scene, (_, inquiries) in zip(scenes, asked, strict=True)], joint)
        for (image, inquiries), said in zip(asked, together, strict=True):
            for one, alone in zip(said, here.ask(here.open(image), inquiries, joint), strict=True):
                worst = max(worst, float(np.abs(one.inside - alone.inside).max()), float(np.abs(one.mass - alone.mass).max()))
    phrases = ["the cup", "all plates"]
    for (image, _), found in zip(asked, there.ground_each([(scene, phrases) for scene in scenes]), strict=True):
        for located, other in zip(found, here.ground(here.open(image), phrases), strict=True):
            worst = max(worst, abs(located.no_target_probability - other.no_target_probability))
    return worst


def time_phrases(size: Size, device: torch.device, limits: Limits, images: int, adapted: bool) -> None:
    """Time phrases of an image and bulk steps, with an adapter if ``adapted``, and print the figures."""
    checkpoint = make_checkpoint(size, device, default_dtype(device))
    if adapted:
        attach(checkpoint, RANK, 2 * RANK, 0.0).eval()
    [inquiry] = inquiries_of(0, 1)[1]
    written = len(MllmGrounder(checkpoint).box_answer(Frame(*COCO, COCO), inquiry.grounding.phrase, inquiry.grounding.boxes_px))
    grounder = MllmGrounder(checkpoint, max_new_tokens=written)
    name = f"with an adapter of rank {RANK}" if adapted else "without an adapter"
    for phrases in PHRASES:
        show(f"phrases, {name}", measure(grounder, limits, phrases, images))
    for count in STEPS:
        show(f"bulk, {name}", time_bulk(grounder, limits, count, images))


def time_bulk(grounder: MllmGrounder, limits: Limits, count: int, repeats: int) -> dict[str, Any]:
    """Time a bulk step of ``count`` images with one phrase each, and return its figures. A first step warms up and is not counted."""
    asked = [inquiries_of(index, 1) for index in range(count)]

    def step() -> None:
        scenes = grounder.open_each([image for image, _ in asked])
        grounder.ground_each([(scene, [one.grounding.phrase for one in each]) for scene, (_, each) in zip(scenes, asked, strict=True)])
        grounder.ask_each([(scene, each) for scene, (_, each) in zip(scenes, asked, strict=True)])

    spent, shares = [], []
    for index in range(repeats + 1):
        with Work(grounder.checkpoint.model) as work:
            seconds = timed(step, grounder.device)
        if index:
            spent.append(seconds)
            shares.append(work.seconds(limits) / seconds)
    return {"images a step": count, "images a second": count / statistics.median(spent), "of the limit": statistics.median(shares)}


def time_segmenter(size: str, device: torch.device) -> None:
    segmenter: Segmenter
    if size == "7b":
        from segment_anything import sam_model_registry  # noqa: PLC0415 – weights of two gigabytes, made here alone

        segmenter = SamSegmenter(sam_model_registry["vit_h"]().to(device).eval(), "random")
    else:
        segmenter = load_segmenter("demo", device)
    image, inquiries = inquiries_of(0, 1)
    box = Prompt(inquiries[0].grounding.boxes_px[0], np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    taken, drawn = [], []
    for index in range(4):
        taken.append(timed(lambda: segmenter.encode(image), device))
        embedding = segmenter.encode(image)
        drawn.append(timed(lambda: segmenter.decode(embedding, [box])[0].best, device))  # noqa: B023 – called at once
        if not index:
            taken, drawn = [], []
    show("segmenter", {"image s": statistics.median(taken), "mask s": statistics.median(drawn)})


if __name__ == "__main__":
    main()
