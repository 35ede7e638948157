"""How an export is written: COCO with run lengths, YOLO's polygons, or PNG masks; picture by picture, with their objects."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.export.objects import Object
from backend.export.pictures import ExportedPicture
from sam4mllm.masks import box_of
from sam4mllm.one_polygon import to_one_polygon
from sam4mllm.run_lengths import from_rle

IMAGES = "images"
CORNER = 0.49
"""Added to the column and the row of a pixel to give YOLO's point. Some readers of the format cut the decimals off and others round; both
get the pixel back. Ultralytics inserts points between the corners first, and each of these must be near a pixel's centre to fall into
the right pixel.
"""
DIGITS = 7
"""Decimals of YOLO's coordinates; the last one is a hundredth of a pixel in a picture of 100,000 pixels' width."""
MOST_IN_8_BITS = 255


class Writer(Protocol):
    """Writes one format. ``categories`` are the names of all categories; a category's place is its index there, from 0. During an export
    the list only grows at its end, so that places stay.
    """

    notes: dict[str, int]
    """By a description in words of what the format cannot say exactly: how many objects that concerns."""

    def add(self, picture: ExportedPicture, objects: Sequence[tuple[Object, int]]) -> None:
        """Write a picture with its objects, each with its category's place. A picture may be added again with further objects."""
        ...

    def close(self, categories: Sequence[str]) -> None: ...


class Coco:
    """``annotations.json`` in COCO's layout: run lengths, an object for each region. Category numbers begin with 1."""

    def __init__(self, folder: Path) -> None:
        self.notes: dict[str, int] = {}
        self._folder = folder
        self._images: dict[int, dict[str, Any]] = {}
        self._annotations: list[dict[str, Any]] = []

    def add(self, picture: ExportedPicture, objects: Sequence[tuple[Object, int]]) -> None:
        row = {"id": picture.number, "file_name": picture.name, "width": picture.width, "height": picture.height}
        self._images[picture.number] = {**row, "source": picture.reference if len(picture.reference) < 1000 else ""}
        for one, category in objects:
            mask = from_rle(one.mask, *one.size, one.size[0] * one.size[1])
            x1, y1, x2, y2 = (float(side) for side in box_of(mask))
            self._annotations.append({
                "id": len(self._annotations) + 1,
                "image_id": picture.number,
                "category_id": category + 1,
                "segmentation": {"size": one.mask["size"], "counts": one.mask["counts"]},
                "area": int(mask.sum()),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": 0,
                "labels": list(one.labels),
                "task": one.task,
                "annotation": one.annotation,
                "region": one.region,
            })  # fmt: skip

    def close(self, categories: Sequence[str]) -> None:
        rows = [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(categories, 1)]
        whole = {"info": {}, "licenses": [], "images": [*self._images.values()], "annotations": self._annotations, "categories": rows}
        (self._folder / "annotations.json").write_text(json.dumps(whole), encoding="utf-8")


class YoloSeg:
    """``labels/NAME.txt`` beside ``images/``, with a line for each object (for each piece, if one polygon fits it badly), and
    ``classes.txt`` and ``data.yaml``.
    """

    SPLIT = "objects written as a line for each piece: joined, they would cover 1.5 % too much"
    THIN = "objects with a piece a pixel wide: its polygon encloses no area, and is seen only by readers that draw the outline as well"

    def __init__(self, folder: Path) -> None:
        self.notes: dict[str, int] = {}
        self._folder = folder
        (folder / "labels").mkdir()

    def add(self, picture: ExportedPicture, objects: Sequence[tuple[Object, int]]) -> None:
        scale = np.array([picture.width, picture.height])
        lines = []
        for one, category in objects:
            polygons = to_one_polygon(from_rle(one.mask, *one.size, one.size[0] * one.size[1]))
            for polygon in polygons:
                shares = ((polygon + CORNER) / scale).ravel()
                lines.append(" ".join([str(category), *(f"{share:.{DIGITS}f}" for share in shares)]) + "\n")
            self._note(self.SPLIT, len(polygons) > 1)
            self._note(self.THIN, not all(cv2.contourArea(polygon) for polygon in polygons))
        with (self._folder / "labels" / f"{picture.stem}.txt").open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def _note(self, what: str, holds: bool) -> None:
        if holds:
            self.notes[what] = self.notes.get(what, 0) + 1

    def close(self, categories: Sequence[str]) -> None:
        (self._folder / "classes.txt").write_text("".join(" ".join(name.split()) + "\n" for name in categories), encoding="utf-8")
        # text in JSON is text in YAML, whatever characters it has
        names = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(categories))
        head = "# All pictures are in one folder: split them before you trust a figure of val.\ntrain: images\nval: images\nnames:\n"
        (self._folder / "data.yaml").write_text(head + names, encoding="utf-8")


class Png:
    """``masks/NAME/NUMBER.png`` for each object, with 0 and 255, all listed in ``objects.csv``; and ``labels/NAME.png``, the label map of a
    picture.

    A pixel of the label map is 0 for the background and otherwise the number of a category, from 1. The map has 8 bits, or 16 if it holds a
    number over 255. Where objects overlap it shows the smaller one, but objects of a later :meth:`add` of the same picture cover earlier
    ones. Only the masks lose nothing.
    """

    COLUMNS = ("mask", "image", "category", "number", "labels", "task", "annotation", "region")

    def __init__(self, folder: Path) -> None:
        self.notes: dict[str, int] = {}
        self._folder = folder
        self._counts: dict[int, int] = {}
        self._categories: dict[int, str] = {}
        self._open = ExitStack()
        (folder / "labels").mkdir()
        file: IO[str] = self._open.enter_context((folder / "objects.csv").open("w", encoding="utf-8", newline=""))
        self._table = csv.writer(file)
        self._table.writerow(self.COLUMNS)

    def add(self, picture: ExportedPicture, objects: Sequence[tuple[Object, int]]) -> None:
        path = self._folder / "labels" / f"{picture.stem}.png"
        painted = _read_map(path) if path.exists() else np.zeros((picture.height, picture.width), np.uint16)
        masks = []
        for one, category in objects:
            mask = from_rle(one.mask, *one.size, one.size[0] * one.size[1])
            number = self._counts[picture.number] = self._counts.get(picture.number, 0) + 1
            place = Path("masks", picture.stem, f"{number:04d}.png")
            (self._folder / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(self._folder / place)
            row = (place.as_posix(), picture.name, one.category, category + 1, "|".join(one.labels), one.task, one.annotation, one.region)
            self._table.writerow(row)
            masks.append((int(mask.sum()), category + 1, one))
        for _, number, one in sorted(masks, key=lambda entry: -entry[0]):
            painted[from_rle(one.mask, *one.size, one.size[0] * one.size[1])] = number
        wide = painted.max(initial=0) > MOST_IN_8_BITS
        Image.fromarray(painted if wide else painted.astype(np.uint8)).save(path)

    def close(self, categories: Sequence[str]) -> None:
        self._open.close()
        (self._folder / "classes.txt").write_text("".join(" ".join(name.split()) + "\n" for name in categories), encoding="utf-8")


def _read_map(path: Path) -> NDArray[np.uint16]:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.uint16)
