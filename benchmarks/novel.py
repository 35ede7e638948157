"""Tasks that ask for three things the demo model has never seen, and scenes to test it on: shared by the benchmarks of learning."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.learning.holdout import is_held_out, threshold
from backend.learning.snapshot import HOLDOUT, TRAIN
from backend.support.places import place_of
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.demo.dataset import write_scenes
from sam4mllm.demo.glyphs import novel_nouns
from sam4mllm.demo.scenes import make_scene
from sam4mllm.images import image_sha256

NOUNS = tuple(novel_nouns()[:3])
TEST_SEED, KNOWN_SEED = 771_002, 990_003
TEST_SCENES, KNOWN_SCENES = 200, 120


@dataclass(frozen=True, eq=False)
class NovelTask:
    """A picture's PNG file, one phrase about it, and the true masks (N, H, W) bool."""

    png: bytes
    phrase: str
    masks: NDArray[np.bool_]


def novel_tasks(count: int, seed: int) -> list[NovelTask]:
    """Return a task for each of the first ``count`` scenes of a seed."""
    return [_task(seed, index) for index in range(count)]


def splits_of(tasks: Sequence[NovelTask]) -> list[str]:
    """Return the split of each task, HOLDOUT or TRAIN, as a new server would split them."""
    names = [image_sha256(task.png) for task in tasks]
    at = threshold(map(place_of, names))
    return [HOLDOUT if is_held_out(name, at) else TRAIN for name in names]


def _task(seed: int, index: int) -> NovelTask:
    scene = make_scene((seed, index), NOUNS)
    file = io.BytesIO()
    Image.fromarray(scene.image).save(file, "PNG")
    expression = scene.expressions[0]
    return NovelTask(file.getvalue(), expression.phrase, scene.masks[list(expression.targets)])


def write_tests(folder: Path) -> tuple[Path, Path]:
    """Write the two test sets, unless the folder holds them already, and return their folders.

    The first has TEST_SCENES scenes that ask for the three novel things, the second KNOWN_SCENES scenes that ask for known ones.
    """
    novel, known = folder / "novel", folder / "known"
    if not (novel / "examples.jsonl").exists():
        write_scenes(novel, TEST_SCENES, TEST_SEED, NOUNS)
    if not (known / "examples.jsonl").exists():
        write_scenes(known, KNOWN_SCENES, KNOWN_SEED)
    return novel, known


def write_tasks(folder: Path, tasks: list[NovelTask], label: str) -> None:
    """Write the tasks as the snapshot of a run that learns from their corrections, without a server; all examples have one ``label``."""
    with ExampleWriter(folder) as writer:
        for task, split in zip(tasks, splits_of(tasks), strict=True):
            writer.add(writer.add_image_data(task.png), task.phrase, task.masks, split, "label-studio", label=label)
