"""A dataset of one picture, for tests to read and to damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import EXAMPLES, ImageRecord
from sam4mllm.data.write_dataset import ExampleWriter

PICTURE = np.random.default_rng(5).integers(0, 256, (12, 16, 3), np.uint8)


def block(top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((12, 16), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


CUPS = np.array([block(1, 2, 5, 6), block(6, 8, 10, 15)])


def write(folder: Path) -> ImageRecord:
    """A dataset of three examples on one picture."""
    with ExampleWriter(folder) as writer:
        record = writer.add_image(PICTURE)
        writer.add(record, "the cups", CUPS, "train", "made up")
        writer.add(record, "die linke Tasse – 左", CUPS[:1], "testA", "", boxes=[[2.5, 1.25, 6, 5]], label="Tasse: 左")
        writer.add(record, "the dog", [], "val", "made up")
    return record


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Leave only the first line, edited."""
    path = folder / EXAMPLES
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    edit(line)
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
