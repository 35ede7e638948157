"""Reads ADE20K (release 2021_17_01): ``ROOT/images/ADE/{training,validation}/…/NAME.jpg``, beside it ``NAME.json`` and ``NAME_seg.png``.

A polygon in ``NAME.json`` also covers the parts of its object that other objects hide. ``NAME_seg.png`` says which class each pixel shows.
A mask is the intersection of the two.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
"""Names of surfaces and materials, which have no outline of their own. They are left out as in the paper's data (released notebooks)."""


def read_ade20k(root: Path) -> Reading:
    """Return a pair for each name in each picture, with all objects of that name.

    Parts of objects, the names in ``STUFF``, names of more than ``MOST_INSTANCES`` objects and names with an object too small are left out.

    Raises DatasetError if there are no files, or a picture or a ``NAME_seg.png`` is missing. Annotations are read while the pairs are
    iterated, and raise DatasetError then as ``_read`` does.
    """
    files = [(split, path) for folder, split in SPLITS.items() for path in sorted((root / "images" / "ADE" / folder).rglob("*.json"))]
    if not files:
        raise DatasetError(f"{root} has no images/ADE/training with JSON files; name the folder ADE20K_2021_17_01")
    for _, path in files:
        for beside in (path.with_suffix(".jpg"), _classes_file(path)):
            if not beside.is_file():
                raise DatasetError(f"{beside} is missing; {path.name} is of that picture")
    pairs = (pair for split, path in files for pair in _pairs(split, path))
    return Reading(pairs, pictures=Counter(split for split, _ in files))


@dataclass(frozen=True)
class _Thing:
    """An object of an annotation: its ``name``, the ``number`` of its class, its ``polygon`` as x1, y1, x2, y2, …, and whether it is a part
    of another object, in which case the rest is empty.
    """

    name: str
    number: int
    polygon: list[float]
    is_part: bool

    @classmethod
    def read(cls, thing: Mapping[str, Any]) -> _Thing:
        """Read an object of the file. Raises ValueError, TypeError, LookupError or OverflowError if a field is wrong."""
        if int(thing["parts"]["part_level"]):
            return cls("", 0, [], True)  # the rest of a part is not used
        return cls(str(thing["raw_name"]).strip(), int(thing["name_ndx"]), _polygon(thing["polygon"]), False)


def _pairs(split: str, path: Path) -> Iterator[PhrasedPicture]:
    height, width, things = _read(path)
    by_name: dict[str, list[tuple[int, list[float]]]] = defaultdict(list)
    for thing in things:
        if not thing.is_part:
            by_name[thing.name].append((thing.number, thing.polygon))
    for name, objects in by_name.items():
        if name not in STUFF and len(objects) <= MOST_INSTANCES and all(_is_large(polygon, width, height) for _, polygon in objects):
            outlines = tuple(partial(visible, polygon, _classes_file(path), number) for number, polygon in objects)
            picture = f"ade20k:{path.stem}"
            yield PhrasedPicture(path.with_suffix(".jpg"), name, outlines, split, f"{picture}:{name}", picture, (height, width))


def visible(polygon: Sequence[float], classes: Path, number: int, height: int, width: int) -> NDArray[np.bool_]:
    """Return the visible part of a polygon's object, (height, width) bool: the pixels inside the polygon that show the class ``number``.

    ``classes`` is the ``NAME_seg.png``. Raises MaskCodecError if it is not of that size or the polygon is invalid, ImageError if it cannot
    be read.
    """
    shown = _shown_classes(classes)
    if shown.shape != (height, width):
        raise MaskCodecError(
            f"the picture of classes is not of its picture's size; fetch {classes.suffix} files and pictures of one release"
        )
    return np.asarray(to_mask([polygon], height, width) & (shown == number))


@lru_cache(maxsize=2)
def _shown_classes(path: Path) -> NDArray[np.int32]:
    """Return the class of each pixel, (H, W) int32: the picture codes it as ``red // 10 * 256 + green``."""
    pixels = load_image(path).astype(np.int32)
    return np.asarray(pixels[..., 0] // 10 * 256 + pixels[..., 1])


def _classes_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_seg.png")


def _read(path: Path) -> tuple[int, int, list[_Thing]]:
    """Return the height and width of an annotation file's picture, and its objects.

    Raises DatasetError if the file is no JSON, lacks one of the three, or has an object with a field that is missing or wrong.
    """
    try:
        annotation = json.loads(path.read_bytes().decode("utf-8", errors="replace"))["annotation"]
        height, width = (int(side) for side in annotation["imsize"][:2])
        things = annotation["object"] if isinstance(annotation["object"], list) else [annotation["object"]]
        if all({"raw_name", "name_ndx", "polygon", "parts"} <= thing.keys() for thing in things):
            return height, width, [_Thing.read(thing) for thing in things]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        pass
    raise DatasetError(f"{path} is no annotation of ADE20K 2021_17_01; fetch it again")


def _polygon(polygon: Mapping[str, Any]) -> list[float]:
    """Return the polygon as x1, y1, x2, y2, …. Where it has a single corner, the file holds its x and its y as numbers, not as lists."""
    xs, ys = (side if isinstance(side, list) else [side] for side in (polygon["x"], polygon["y"]))
    return [float(side) for point in zip(xs, ys, strict=False) for side in point]


def _is_large(polygon: list[float], width: int, height: int) -> bool:
    xs, ys = polygon[::2], polygon[1::2]
    return bool(xs) and (max(xs) - min(xs)) * (max(ys) - min(ys)) > LEAST_AREA * width * height
