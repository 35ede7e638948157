"""Demo scenes as large as photos, with five phrases, one of each kind, for benchmarks that count or time work at realistic sizes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import Example, ExampleInstance
from sam4mllm.demo.phrases import KINDS
from sam4mllm.demo.scenes import make_scene
from sam4mllm.run_lengths import to_rle

COCO = (640, 480)
"""The most frequent size, as (width, height), of COCO's images, from which refCOCO and similar datasets are made."""


def sized_scene(seed: int, index: int, size: tuple[int, int] = COCO) -> tuple[NDArray[np.uint8], tuple[Example, ...]]:
    """An image (H, W, 3) uint8 and its five examples; ``size`` is (width, height)."""
    width, height = size
    scene = make_scene((seed, index), size=(height, width), kinds=KINDS)
    name = f"{seed}-{index}"
    examples = []
    for expression in scene.expressions:
        instances = tuple(ExampleInstance(scene.boxes_px[target], to_rle(scene.masks[target])) for target in expression.targets)
        examples.append(Example(name, name, width, height, expression.phrase, instances, "train", ""))
    return scene.image, tuple(examples)
