"""Seconds for 1 and for 10 phrases of an image, answered in the published way and in the project's, on a random-weight Qwen2.5-VL.

    python -m benchmarks.published --size 7b          # on a CUDA GPU, bf16
    python -m benchmarks.published                    # a tiny model, on whatever there is

The published way calls ``generate`` twice for each phrase, each time with the whole image; the second call answers about all points in one
line, token by token. The project's way (``ours``) takes the image in once, answers with the boxes of all phrases together, and asks about
all points of all boxes in one packed pass.

A model with random weights neither stops by itself nor gives sensible boxes. So both ways write as many tokens as a true box answer has,
and the points are those of true boxes. Only the MLLM is timed. The least time that each way could take is computed from the weights, the
tokens and the device's measured limits (:mod:`benchmarks.limits`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.limits import Limits, Work, measure_limits, timed
from benchmarks.random_model import SEVEN_B, TINY, make_checkpoint
from benchmarks.sized_scenes import COCO, sized_scene
from sam4mllm.cli.options import hush
from sam4mllm.grounding.frames import Frame
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.protocol import Inquiry
from sam4mllm.loading import pick_device
from sam4mllm.options import PATTERN_SIZE
from sam4mllm.points import spread
from sam4mllm.precision import default_dtype
from sam4mllm.values import Grounding

SEED = 990_032
PHRASES = (1, 10)
PHRASE = "the second cup from the left"


def inquiries_of(index: int, count: int) -> tuple[NDArray[np.uint8], list[Inquiry]]:
    """Return an image (H, W, 3) and, for each of ``count`` phrases, the questions about the points of one true box."""
    image, examples = sized_scene(SEED, index)
    boxes = [example.boxes_px[:1] for example in examples if example.has_target]
    asked = [boxes[number % len(boxes)] for number in range(count)]
    return image, [Inquiry(Grounding(PHRASE, box, np.ones(1), 0.0), 0, spread(box[0], PATTERN_SIZE)) for box in asked]


def ours(grounder: MllmGrounder, image: NDArray[np.uint8], inquiries: list[Inquiry]) -> None:
    """Answer in the project's way, as serving does."""
    scene = grounder.open(image)
    grounder.ground(scene, [inquiry.grounding.phrase for inquiry in inquiries])
    grounder.ask(scene, inquiries)


def published(grounder: MllmGrounder, image: NDArray[np.uint8], inquiries: list[Inquiry]) -> None:
    """Answer in the published way: two calls of ``generate`` for each phrase, each with the whole image."""
    for inquiry in inquiries:
        encoded = grounder.checkpoint.encode(grounder.checkpoint, grounder.markup.opening, Image.fromarray(image))
        inputs = {name: tensor.to(grounder.device) for name, tensor in encoded.inputs.items()}
        frame = Frame(image.shape[1], image.shape[0], encoded.resized)
        phrase, boxes_px = inquiry.grounding.phrase, inquiry.grounding.boxes_px
        question, answer = grounder.question(phrase), grounder.box_answer(frame, phrase, boxes_px)
        generate(grounder, inputs, question, grounder.max_new_tokens)
        points = grounder.joint_question(grounder.point_numbers(frame, inquiry.points_px))
        verdicts = grounder.verdicts.spell(np.ones(len(inquiry.points_px), np.bool_))
        generate(grounder, inputs, [*question, *answer, *grounder.points_head(frame, boxes_px[0]), *points], len(verdicts))


@torch.inference_mode()
def generate(grounder: MllmGrounder, inputs: dict[str, Tensor], said: list[int], tokens: int) -> None:
    """Generate exactly ``tokens`` tokens greedily after the image and the token ids ``said``."""
    ids = torch.cat([inputs["input_ids"], torch.tensor([said], device=grounder.device)], 1)
    further = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}
    if "mm_token_type_ids" in further:  # 0 marks text
        further["mm_token_type_ids"] = F.pad(further["mm_token_type_ids"], (0, len(said)))
    lengths = {"min_new_tokens": tokens, "max_new_tokens": tokens}
    grounder.checkpoint.model.generate(input_ids=ids, **further, attention_mask=torch.ones_like(ids), do_sample=False, **lengths)


def measure(grounder: MllmGrounder, limits: Limits, phrases: int, images: int) -> dict[str, float]:
    """Return the figures of both ways as medians over so many images; one image before them warms up and does not count."""
    seconds: dict[str, list[float]] = {"published": [], "ours": []}
    shares: dict[str, list[float]] = {"published": [], "ours": []}
    for index in range(images + 1):
        image, inquiries = inquiries_of(index, phrases)
        for name, way in (("published", published), ("ours", ours)):
            with Work(grounder.checkpoint.model) as work:
                spent = timed(lambda: way(grounder, image, inquiries), grounder.device)  # noqa: B023 – called at once
            if index:
                seconds[name].append(spent / phrases)
                shares[name].append(work.seconds(limits) / spent)
    row = {f"{name} s a phrase": statistics.median(values) for name, values in seconds.items()}
    row |= {f"{name} of the limit": statistics.median(values) for name, values in shares.items()}
    return {"phrases": phrases, **row, "times faster": row["published s a phrase"] / row["ours s a phrase"]}


def main() -> None:
    """Print the date, the device with its limits, and a row for 1 and for 10 phrases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "7b"), default="tiny")
    parser.add_argument("--device")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    hush()
    device = pick_device(arguments.device)
    dtype = default_dtype(device)
    limits = measure_limits(device, dtype)
    checkpoint = make_checkpoint(SEVEN_B if arguments.size == "7b" else TINY, device, dtype)
    [inquiry] = inquiries_of(0, 1)[1]
    frame = Frame(*COCO, COCO)
    written = len(MllmGrounder(checkpoint).box_answer(frame, inquiry.grounding.phrase, inquiry.grounding.boxes_px))
    grounder = MllmGrounder(checkpoint, max_new_tokens=written)
    rows = [measure(grounder, limits, phrases, arguments.images) for phrases in PHRASES]
    about = {
        "date": datetime.date.today().isoformat(),
        "device": limits.name,
        "dtype": str(dtype).removeprefix("torch."),
        "size": arguments.size,
        "image": f"{COCO[0]} x {COCO[1]}",
        "points": PATTERN_SIZE,
        "TFLOP/s": limits.operations / 1e12,
        "GB/s": limits.bytes / 1e9,
    }
    if arguments.json:
        print(json.dumps({**about, "rows": rows}))
        return
    for name, value in about.items():
        print(f"{name:24}{value:.4g}" if isinstance(value, float) else f"{name:24}{value}")
    for row in rows:
        print()
        for name, value in row.items():
            print(f"{name:24}{value:.4g}")


if __name__ == "__main__":
    main()
