"""Reads ReasonSeg: ``ROOT/{train,val,test}/NAME.jpg``, beside it ``NAME.json`` with polygons and the questions that mean them.

The shapes of a picture are painted over each other, borders included, in LISA's order: the largest shape first, and of shapes with the same
area the last in the file first. A pixel belongs to the shape painted last. Shapes marked as not to be counted (``ignore``) thus hide what
they cover, and make the example's ``ignore``.

``ROOT/explanatory/train.json`` may hold explanations of some training pictures. Each explanation becomes the thought of all questions about
its picture, as in LISA, which uses it with any of them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.example_fields import is_thought
from sam4mllm.data.pairs import TRAIN, LeftOut, PhrasedPicture, Reading
from sam4mllm.errors import DatasetError
from sam4mllm.polygons import MAX_COORDINATE

SPLITS = ("train", "val", "test")
EXPLAINED = "explanatory/train.json"
IGNORE, VOID = "ignore", "flag"
"""Two kinds of labels. A shape whose label contains ``ignore`` marks pixels that are not to be counted; a shape labelled ``flag`` is
dropped. All other shapes are what the questions mean."""


def read_reasonseg(root: Path) -> Reading:
    """Return the questions of each picture: all of them in the split ``train``, only the first in the others, as for the published figures.

    Raises DatasetError if there are no files, or one is missing or not in the format.
    """
    files = [(split, path) for split in SPLITS for path in sorted((root / split).glob("*.json"))]
    if not files:
        raise DatasetError(f"{root} has no folder {', '.join(SPLITS)} with JSON files; name the folder that has")
    for _, path in files:
        if not path.with_suffix(".jpg").is_file():
            raise DatasetError(f"{path.with_suffix('.jpg')} is missing; {path.name} is of that picture")
    read = [(split, path, _read(path)) for split, path in files]
    thoughts = _read_thoughts(root / EXPLAINED)
    pairs = [pair for split, path, fields in read for pair in _pairs(split, path, fields, thoughts.get(f"{path.stem}.jpg", ""))]
    return Reading(pairs, len(pairs), Counter(split for split, _ in files))


def _pairs(split: str, path: Path, fields: Mapping[str, Any], thought: str) -> Iterator[PhrasedPicture | LeftOut]:
    shapes = [shape for shape in fields["shapes"] if shape["label"].lower() != VOID]
    meant = any(IGNORE not in shape["label"].lower() for shape in shapes)
    void = any(IGNORE in shape["label"].lower() for shape in shapes)
    outlines = (partial(paint, shapes),) if meant else ()
    ignore = partial(paint, shapes, ignored=True) if void else None
    for number, text in enumerate(fields["text"] if split == TRAIN else fields["text"][:1]):
        source = f"reasonseg:{split}:{path.stem}:{number}"
        said = thought if split == TRAIN else ""
        yield PhrasedPicture(path.with_suffix(".jpg"), text, outlines, split, source, ignore=ignore, thought=said)


def paint(shapes: Sequence[Mapping[str, Any]], height: int, width: int, ignored: bool = False) -> NDArray[np.bool_]:
    """Return the mask (height, width) bool of what the questions mean, or, if ``ignored``, of what is not to be counted.

    Where shapes of the two kinds overlap, the smaller shape counts.
    """
    painted = [(_painted(shape["points"], height, width), IGNORE in shape["label"].lower()) for shape in shapes]
    mask = np.zeros((height, width), np.bool_)
    for area, void in reversed(sorted(painted, key=lambda one: np.count_nonzero(one[0]))):  # noqa: C413 – reversed, ties are too
        mask[area] = void == ignored
    return mask


def _painted(points: Sequence[Sequence[float]], height: int, width: int) -> NDArray[np.bool_]:
    """Return the mask of a polygon with its border; fractions of its corners' coordinates are cut off."""
    canvas = np.zeros((height, width), np.uint8)
    corners = np.array(points, np.float64).astype(np.int32).reshape(-1, 2)
    if corners.size:
        cv2.polylines(canvas, [corners], True, 1, 1)
        cv2.fillPoly(canvas, [corners], 1)
    return canvas.astype(np.bool_)


def _read_thoughts(path: Path) -> dict[str, str]:
    """Return the explanations by the picture's file name; those that the dataset format does not allow as a thought are left out.

    The result is empty if there is no file. Raises DatasetError if the file is not in the format.
    """
    if not path.is_file():
        return {}
    try:
        told = {item["image"]: item["outputs"] for item in json.loads(_decode(path))}
        fine = all(isinstance(text, str) for one in told.items() for text in one)
    except (ValueError, KeyError, TypeError, RecursionError):
        fine = False
    if not fine:
        raise DatasetError(f"{path} has not image and outputs as it should; fetch it again, or remove it to do without")
    return {image: text for image, text in told.items() if is_thought(text)}


def _decode(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")  # some of the published files have this encoding


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(_decode(path))
        texts, shapes = fields["text"], fields["shapes"]
        lists = isinstance(texts, list) and isinstance(shapes, list)
        fine = lists and all(isinstance(one, str) for one in texts) and all(_is_shape(shape) for shape in shapes)
    except (ValueError, KeyError, TypeError, RecursionError):
        fine = False
    if not fine:
        raise DatasetError(f"{path} has not text and shapes as it should; fetch it again")
    return dict(fields)


def _is_shape(shape: Mapping[str, Any]) -> bool:
    numbers = [side for point in shape["points"] for side in (*point, *([math.nan] if len(point) != 2 else []))]
    return isinstance(shape["label"], str) and all(isinstance(side, int | float) and abs(side) <= MAX_COORDINATE for side in numbers)
