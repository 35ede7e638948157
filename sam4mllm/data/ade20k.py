"""ADE20K (release 2021_17_01): ``ROOT/images/ADE/{training,validation}/…/NAME.jpg`` with ``NAME.json`` and ``NAME_seg.png`` beside it.

The polygons run on behind what hides an object; the other picture says which class each pixel shows. A mask is where the two agree.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.coco import LEAST_AREA, MOST_INSTANCES
from sam4mllm.data.pairs import PhrasedPicture, Reading, to_mask
from sam4mllm.errors import DatasetError, MaskCodecError
from sam4mllm.images import load_image

SPLITS = {"training": "train", "validation": "val"}
STUFF = frozenset(
    (
        *("sky", "wall", "floor", "ceiling", "road", "trees", "plants", "buildings", "ground", "sidewalk", "grass"),
        *("sea water", "water", "river water", "sand", "snow", "land"),
    )
)
"""What has no outline of its own, left out as in the paper's data (released notebooks)."""


def read_ade20k(root: Path) -> Reading:
    """A pair for each name in each picture, with all objects of that name, parts left out. Raises DatasetError."""
    files = [(split, path) for folder, split in SPLITS.items() for path in sorted((root / "images" / "ADE" / folder).rglob("*.json"))]
    if not files:
        raise DatasetError(f"{root} has no images/ADE/training with JSON files; name the folder ADE20K_2021_17_01")
    for _, path in files:
        for beside in (path.with_suffix(".jpg"), _classes_file(path)):
            if not beside.is_file():
                raise DatasetError(f"{beside} is missing; {path.name} is of that picture")
    pairs = (pair for split, path in files for pair in _pairs(split, path))
    return Reading(pairs, pictures=Counter(split for split, _ in files))


def _pairs(split: str, path: Path) -> Iterator[PhrasedPicture]:
    height, width, things = _read(path)
    by_name: dict[str, list[tuple[int, list[float]]]] = defaultdict(list)
    for thing in things:
        if not int(thing["parts"]["part_level"]):
            by_name[str(thing["raw_name"]).strip()].append((int(thing["name_ndx"]), _polygon(thing["polygon"])))
    for name, objects in by_name.items():
        if name not in STUFF and len(objects) <= MOST_INSTANCES and all(_is_large(polygon, width, height) for _, polygon in objects):
            outlines = tuple(partial(visible, polygon, _classes_file(path), number) for number, polygon in objects)
            picture = f"ade20k:{path.stem}"
            yield PhrasedPicture(path.with_suffix(".jpg"), name, outlines, split, f"{picture}:{name}", picture, (height, width))


def visible(polygon: Sequence[float], classes: Path, number: int, height: int, width: int) -> NDArray[np.bool_]:
    """Where a polygon's object is seen, (height, width) bool: inside of it, and showing the class ``number``. Raises MaskCodecError."""
    shown = _shown_classes(classes)
    if shown.shape != (height, width):
        raise MaskCodecError(
            f"the picture of classes is not of its picture's size; fetch {classes.suffix} files and pictures of one release"
        )
    return np.asarray(to_mask([polygon], height, width) & (shown == number))


@lru_cache(maxsize=2)
def _shown_classes(path: Path) -> NDArray[np.int32]:
    """(H, W) int32: the class of each pixel. Red holds the higher part, in tens, and green the lower one."""
    pixels = load_image(path).astype(np.int32)
    return np.asarray(pixels[..., 0] // 10 * 256 + pixels[..., 1])


def _classes_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_seg.png")


def _read(path: Path) -> tuple[int, int, Sequence[Mapping[str, Any]]]:
    """Height, width and objects."""
    try:
        annotation = json.loads(path.read_bytes().decode("utf-8", errors="replace"))["annotation"]
        height, width = (int(side) for side in annotation["imsize"][:2])
        things = annotation["object"] if isinstance(annotation["object"], list) else [annotation["object"]]
        if all({"raw_name", "name_ndx", "polygon", "parts"} <= thing.keys() for thing in things):
            return height, width, things
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise DatasetError(f"{path} is no annotation of ADE20K 2021_17_01; fetch it again")


def _polygon(polygon: Mapping[str, Any]) -> list[float]:
    """A single corner is a number, not a list."""
    xs, ys = (side if isinstance(side, list) else [side] for side in (polygon["x"], polygon["y"]))
    return [float(side) for point in zip(xs, ys, strict=False) for side in point]


def _is_large(polygon: list[float], width: int, height: int) -> bool:
    xs, ys = polygon[::2], polygon[1::2]
    return bool(xs) and (max(xs) - min(xs)) * (max(ys) - min(ys)) > LEAST_AREA * width * height
