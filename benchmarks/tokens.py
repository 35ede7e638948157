"""How many tokens pass through the MLLM for a training image with five phrases: in one packed row, or in one conversation per phrase.

    python -m benchmarks.tokens [--images 20] [--json]

Both ways ask and answer the same about the same scenes: a conversation is the packed row of a single phrase, with the image before it.
Images have as many tokens as each family's own processor makes of them. The text is counted in the tokens of small tokenizers, in which
one token stands for two digits of a number.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import LlavaNextImageProcessor

from benchmarks.random_model import SEVEN_B, TINY, make_checkpoint, make_processor
from benchmarks.sized_scenes import COCO, sized_scene
from sam4mllm.cli.options import hush
from sam4mllm.data.examples import Example
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.frames import Frame
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.training.asking import Asking
from sam4mllm.training.collate import Collator
from sam4mllm.training.config import NAMES, read_config
from tests.family_models import KINDS, make_family

SEED = 990_031
CPU = torch.device("cpu")
LLAVA_NEXT = "LLaVA-NeXT, Llama 3"
"""The family of the model that the released adapter was trained for."""


def each_model() -> Iterator[tuple[str, Checkpoint, list[tuple[int, int]]]]:
    """Yield each model's name, its checkpoint, and the sizes of images, (width, height), to count for it.

    The weights are the demo's or those of tiny models, because nothing passes through them here.
    """
    yield "demo", load_checkpoint("demo", CPU), [(336, 336)]
    with TemporaryDirectory() as folder:
        llava = load_checkpoint(str(make_family(KINDS[LLAVA_NEXT], Path(folder))), CPU)
    llava.image_processor.image_processor = LlavaNextImageProcessor()
    yield LLAVA_NEXT, llava, [COCO]
    qwen = replace(make_checkpoint(TINY, CPU, torch.float32), image_processor=make_processor(SEVEN_B))
    yield "Qwen2.5-VL", qwen, [COCO, (1024, 768), (1600, 1200)]


def count(checkpoint: Checkpoint, asking: Asking, index: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the tokens of one image in a packed row and in one conversation per phrase. Both include its close-up, if one is drawn, once.

    ``index`` is the number of the scene; ``size`` is (width, height).
    """
    image, examples = sized_scene(SEED, index, size)
    grounder = MllmGrounder(checkpoint)
    collator = Collator(grounder, asking)
    prefix, frame = encode(grounder, image)

    def said(some: Sequence[Example]) -> int:
        return len(collator.row(frame, some, np.random.default_rng(index)).row.ids)

    closer = 0
    if (seen := collator.close_up(image, examples, np.random.default_rng(index))) is not None:
        closer, close_frame = encode(grounder, seen.image)
        closer += len(collator.close_row(close_frame, seen, np.random.default_rng(index)).row.ids)
    return prefix + said(examples) + closer, sum(prefix + said([example]) for example in examples) + closer


def encode(grounder: MllmGrounder, image: NDArray[np.uint8]) -> tuple[int, Frame]:
    """Return the tokens of an image (H, W, 3) with the text before it, and the frame that coordinates in the text refer to."""
    encoded = grounder.checkpoint.encode(grounder.checkpoint, grounder.markup.opening, Image.fromarray(image))
    return encoded.inputs["input_ids"].shape[1], Frame(image.shape[1], image.shape[0], encoded.resized)


def main() -> None:
    """Print one row for each model, image size and plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    hush()
    rows = []
    for model, checkpoint, sizes in each_model():
        for size in sizes:
            for plan in NAMES:
                asking = read_config(plan).asking
                packed, apart = np.mean([count(checkpoint, asking, index, size) for index in range(arguments.images)], 0)
                rows.append({"model": model, "image": f"{size[0]} x {size[1]}", "plan": plan, "packed": packed, "apart": apart})
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'model':<22}{'image':<13}{'plan':<10}{'packed':>8}{'apart':>8}{'fewer':>7}")
    for row in rows:
        fewer = row["apart"] / row["packed"]
        print(f"{row['model']:<22}{row['image']:<13}{row['plan']:<10}{row['packed']:>8.0f}{row['apart']:>8.0f}{fewer:>6.1f}x")


if __name__ == "__main__":
    main()
