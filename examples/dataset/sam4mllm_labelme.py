"""A reader of data sets: a folder of files that LabelMe wrote, each beside its picture::

    {"imagePath": "kitchen.jpg", "imageHeight": 480, "imageWidth": 640,
     "shapes": [{"label": "the red cup", "shape_type": "polygon", "points": [[10.5, 20], [60, 20], [60, 90]]}, …]}

The label is the phrase, and all shapes with the same label in a picture are its instances. Shapes other than polygons are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sam4mllm.data.pairs import LeftOut, PhrasedPicture, Reading
from sam4mllm.data.readers import Reader
from sam4mllm.errors import DatasetError, first_line

SPLIT = "train"


def reader() -> Reader:
    return Reader(read)


def read(folder: Path) -> Reading:
    """Return the phrases and outlines of a folder. Raises DatasetError if the folder has no .json file."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DatasetError(f"{folder} has no .json of LabelMe; name the folder that LabelMe saved to")
    return Reading(_pairs(files), pictures={SPLIT: len(files)})


def _pairs(files: list[Path]) -> Iterator[PhrasedPicture | LeftOut]:
    for file in files:
        try:
            yield from _pairs_of(file, json.loads(file.read_bytes()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            yield LeftOut(SPLIT, file.name, f"it is no file of LabelMe ({first_line(error)})")


def _pairs_of(file: Path, found: Any) -> list[PhrasedPicture | LeftOut]:
    """Return the phrases of a LabelMe file with their outlines, and its shapes that are left out.

    The outlines are not checked here, but later by the code that draws their masks.
    """
    outlines: dict[str, list[list[list[float]]]] = {}
    left_out: list[PhrasedPicture | LeftOut] = []
    for index, shape in enumerate(found["shapes"]):
        source = f"labelme:{file.stem}:{index}"
        if shape.get("shape_type") == "polygon":
            corners = [float(number) for point in shape["points"] for number in point]
            outlines.setdefault(str(shape["label"]), []).append([corners])
        else:
            left_out.append(LeftOut(SPLIT, source, f"a {shape.get('shape_type')} has no outline"))
    size = (int(found["imageHeight"]), int(found["imageWidth"]))
    picture = file.parent / Path(found["imagePath"]).name
    phrased = [
        PhrasedPicture(picture, label, tuple(polygons), SPLIT, f"labelme:{file.stem}", size=size) for label, polygons in outlines.items()
    ]
    return [*phrased, *left_out]
