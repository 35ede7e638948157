"""Data sets in COCO's layout: one JSON file of images, annotations and categories beside folders of pictures.

COCO instances, PACO-LVIS (parts of objects) and PartImageNet come like this, and REFER's ``instances.json``.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4mllm.data.pairs import LeftOut, Outline, PhrasedPicture, Reading, encode
from sam4mllm.data.pictures import find_pictures
from sam4mllm.errors import DatasetError, MaskCodecError
from sam4mllm.images import MAX_PIXELS

PART = ":"
"""The separator between the names of an object and its part in PACO's category names, such as ``mug:handle``."""
MOST_INSTANCES = 5
"""A category with more objects than this in a picture is left out, as in the paper's data (released notebooks)."""
LEAST_AREA = 0.02
"""A category is left out if the area of one of its boxes is this share of the picture's area or less, as in the paper's data (released
notebooks): of 640 x 480 pixels a box of 78 x 78 is left out, 79 x 79 is taken."""

_EXPLANATION = re.compile(r"_?\([^)]*\)")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class CocoSet:
    """Where a data set's files lie.

    ``layouts`` are alternatives, each a mapping from split to annotation file; the first one of which any file exists is used. ``pictures``
    are the folders that may hold the pictures; ``{}`` stands for the split's name. ``origin`` makes an image's origin from its row.
    ``parts_only`` takes only the categories of parts, because another set already has the whole objects.
    """

    layouts: tuple[Mapping[str, str], ...]
    pictures: tuple[str, ...]
    origin: Callable[[Row], str]
    parts_only: bool = False


def _by_number(row: Row) -> str:
    return f"coco:{row['id']}"


def _by_file(row: Row) -> str:
    return f"imagenet:{Path(str(row.get('file_name', ''))).stem}"


_THREE = ("train", "val", "test")
SETS: dict[str, CocoSet] = {
    "coco": CocoSet(
        tuple({split: f"annotations/instances_{split}{year}.json" for split in ("train", "val")} for year in (2017, 2014)),
        ("{}2017", "{}2014", "images/{}2017", "images/{}2014", "images"),
        _by_number,
    ),
    "paco-lvis": CocoSet(
        tuple(
            {split: f"{folder}paco_lvis_v1_{split}.json" for split in _THREE}
            for folder in ("annotations/", "", "annotations/paco_lvis_v1/")
        ),
        ("", "images", "train2017", "val2017"),
        _by_number,
        parts_only=True,
    ),
    "partimagenet": CocoSet(
        tuple({split: form.format(split) for split in _THREE} for form in ("annotations/{0}/{0}.json", "annotations/{}.json", "{}.json")),
        ("images/{}", "images", "{}", ""),
        _by_file,
    ),
}


@dataclass(frozen=True)
class CocoTables:
    """The contents of a COCO file: images, annotations and categories by their ids.

    ``read_tables`` makes an annotation's ``image_id`` and ``category_id`` whole numbers, also of text such as "12", or None where the file
    does not give a whole number.
    """

    path: Path
    images: Mapping[int, Row]
    annotations: Mapping[int, Row]
    categories: Mapping[int, Row]

    def image(self, number: int) -> Row:
        """Return the row of the image with the id ``number``. Raises DatasetError if the file has no such image."""
        if number not in self.images:
            raise DatasetError(f"{self.path} has no image {number}; use the file that came with the annotations")
        return self.images[number]

    def outline(self, annotation: int) -> Outline:
        """Return the outline of the annotation with this id. Raises DatasetError if there is none, or it has no outline."""
        found = _outline(self.annotations.get(annotation, {}))
        if found is None:
            raise DatasetError(f"{self.path} has no annotation {annotation} with an outline; use the file that came with the references")
        return found

    def by_image(self) -> dict[int | None, list[Row]]:
        """Return the annotations of each image by its id, or by None where they name no image. Crowds are left out, because their outline
        is of many objects.
        """
        found: dict[int | None, list[Row]] = defaultdict(list)
        for annotation in self.annotations.values():
            if annotation.get("iscrowd") in (None, 0, "0"):
                found[annotation["image_id"]].append(annotation)
        return found


def read_tables(path: Path) -> CocoTables:
    """Read a COCO file. Raises DatasetError if it cannot be read or is no COCO file."""
    try:
        fields = json.loads(path.read_bytes())
        images, annotations, categories = (
            {int(row["id"]): row for row in fields[name]} for name in ("images", "annotations", "categories")
        )
        return CocoTables(path, images, {number: _numbered(row) for number, row in annotations.items()}, categories)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); is that the data set's folder?") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DatasetError(f"{path} is no COCO file: it has no images, annotations and categories with ids; fetch it again") from error


def _numbered(row: Row) -> Row:
    """Return an annotation's row with ``image_id`` and ``category_id`` as int or None; some tools write them as text."""
    numbers = {name: _as_number(row.get(name)) for name in ("image_id", "category_id")}
    return row if all(row.get(name) is number for name, number in numbers.items()) else {**row, **numbers}


def _as_number(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else None


def _outline(annotation: Row) -> Outline | None:
    found = annotation.get("segmentation")
    return found if isinstance(found, list | dict) else None


def read_coco_folder(root: Path, name: str) -> Reading:
    """Return the pairs of all splits of the set ``name`` that are in ``root``: one for each category in each picture, with all its objects.

    Categories that are not fit for a phrase (:func:`is_fit`) are left out; so are whole objects if the set takes parts only.

    Raises DatasetError, before the first pair is made, if there is no split, a file cannot be read or is not a COCO file, or a picture is
    missing.
    """
    found = [{split: root / file for split, file in layout.items() if (root / file).is_file()} for layout in SETS[name].layouts]
    files = next((one for one in found if one), None)
    if files is None:
        raise DatasetError(f"{root} holds none of {', '.join(SETS[name].layouts[0].values())}; name the folder that does")
    pictures, total = {}, 0
    for split, path in files.items():
        # All splits are checked before the first pair is made, so that a fault is reported now and not after an hour.
        # The files are large, so only one is held in memory at a time.
        tables = read_tables(path)
        _find(tables, root, split, name)
        pictures[split] = len(tables.images)
        total += sum(1 for _ in _groups(tables, SETS[name].parts_only))
        del tables
    pairs = (pair for split, path in files.items() for pair in _read_split(read_tables(path), root, split, name))
    return Reading(pairs, total, pictures)


@dataclass(frozen=True)
class _Group:
    """The objects of one category in one image.

    ``fault`` says why they cannot be used, and is empty if they can. ``image`` or ``category`` is -1 where the annotations give no number.
    """

    image: int
    category: int
    annotations: Sequence[Row]
    fault: str = ""


def _read_split(tables: CocoTables, root: Path, split: str, name: str) -> Iterator[PhrasedPicture | LeftOut]:
    kind = SETS[name]
    files = _find(tables, root, split, name)
    for group in _groups(tables, kind.parts_only):
        source = f"{name}:{group.image}:{group.category}"
        if group.fault:
            yield LeftOut(split, source, group.fault)
            continue
        row = tables.image(group.image)
        outlines = tuple(tables.outline(annotation["id"]) for annotation in group.annotations)
        phrase = as_phrase(str(tables.categories[group.category].get("name", "")))
        yield PhrasedPicture(files[_file_name(row)], phrase, outlines, split, source, kind.origin(row), image_size(row))


def _find(tables: CocoTables, root: Path, split: str, name: str) -> Mapping[str, Path]:
    wanted = {group.image for group in _groups(tables, SETS[name].parts_only) if not group.fault}
    folders = [root / folder.format(split) for folder in SETS[name].pictures]
    return find_pictures(([_file_name(tables.image(image))] for image in sorted(wanted)), folders)


def _groups(tables: CocoTables, parts_only: bool) -> Iterator[_Group]:
    """Yield the objects of each category in each image that make a good phrase; also, with a ``fault``, those that cannot be used.

    ``parts_only`` leaves out the categories that are not parts, except those with a fault.
    """
    for image, objects in tables.by_image().items():
        by_category: dict[int | None, list[Row]] = defaultdict(list)
        for annotation in objects:
            by_category[annotation["category_id"]].append(annotation)
        for category, found in by_category.items():
            name = str(tables.categories.get(category, {}).get("name") or "") if category is not None else ""
            fault = _fault(tables, image, name, found)
            if image is None or category is None or fault:
                yield _Group(-1 if image is None else image, -1 if category is None else category, found, fault)
            elif (PART in name or not parts_only) and is_fit(found, tables.image(image)):
                yield _Group(image, category, found)


def _fault(tables: CocoTables, image: int | None, name: str, annotations: Sequence[Row]) -> str:
    """Return why a category's objects in an image cannot be used, or an empty text if they can."""
    if image not in tables.images:
        return "its image is not in the file"
    if not name:
        return "its category is not in the file"
    # one object without an outline excludes the others too: the phrase means all of them
    return "" if all(_outline(annotation) is not None for annotation in annotations) else "one of its objects has no outline"


def as_phrase(name: str) -> str:
    """A category's name in words: ``mug:handle`` is "handle of mug", ``mouse_(computer_equipment)`` is "mouse"."""
    whole, _, part = _EXPLANATION.sub("", name).partition(PART)
    words = f"{part} of {whole}" if part else whole
    return " ".join(words.replace("_", " ").split())


def is_fit(annotations: Sequence[Row], image: Row) -> bool:
    """Whether these objects make a good phrase: at most MOST_INSTANCES, and the box of each larger than LEAST_AREA of the image.

    Where ``image`` states no size, every box with an area is large enough.
    """
    height, width = image_size(image) or (0, 0)
    boxes = [box_size(annotation, height, width) for annotation in annotations]
    large = all(wide * high > LEAST_AREA * width * height for wide, high in boxes)
    return len(annotations) <= MOST_INSTANCES and large


def box_size(annotation: Row, height: int, width: int) -> tuple[float, float]:
    """Return the width and height, in pixels, of an annotation's box, or of its outline's box where it has none.

    ``height`` and ``width`` are the image's, 0 if the file does not state them. Both results are infinite where the outline cannot be drawn
    at this size, so that the annotation does not count as too small here. Later it is drawn in the picture itself; if that fails, too, its
    pair is left out with the true reason.
    """
    box = annotation.get("bbox")
    if isinstance(box, list) and len(box) == len("xywh") and all(_is_finite(side) for side in box):
        return float(box[2]), float(box[3])
    if not 0 < height * width <= MAX_PIXELS:
        return math.inf, math.inf
    outline = _outline(annotation)
    try:
        drawn = None if outline is None else encode(outline, height, width)
    except MaskCodecError:
        return math.inf, math.inf
    x1, y1, x2, y2 = (0.0, 0.0, 0.0, 0.0) if drawn is None else map(float, drawn.box_px)
    return x2 - x1, y2 - y1


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def image_size(row: Row) -> tuple[int, int] | None:
    """Return an image's (height, width) from its row, or None where these are not whole numbers."""
    height, width = row.get("height"), row.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _file_name(row: Row) -> str:
    return str(row.get("file_name") or str(row.get("coco_url") or "").rpartition(".org/")[2])
