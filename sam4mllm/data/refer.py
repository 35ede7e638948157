"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO in REFER's layout.

::

    ROOT/refcoco/{instances.json, refs(unc).p}      refcoco+ likewise
    ROOT/refcocog/{instances.json, refs(umd).p}
    ROOT/grefcoco/{instances.json, grefs(unc).json}
    ROOT/images/mscoco/images/train2014/COCO_train2014_….jpg      or ROOT/images/train2014

Pictures of COCO 2017 in ``ROOT/images/train2017`` do as well: they are the same. The ``.p`` files are pickles, of which plain containers
alone are admitted (:mod:`sam4mllm.data.plain_pickle`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4mllm.data.coco import CocoTables, image_size, read_tables
from sam4mllm.data.pairs import PhrasedPicture, Reading
from sam4mllm.data.pictures import find_pictures
from sam4mllm.data.plain_pickle import load_plain_pickle
from sam4mllm.errors import DatasetError

PICTURES = ("images/mscoco/images/train2014", "images/train2014", "images/mscoco/train2014", "images/train2017", "train2014", "train2017")
NO_TARGET = -1
"""gRefCOCO's annotation id of a phrase that means nothing in the picture."""
YEAR_2014 = "COCO_train2014_"


@dataclass(frozen=True)
class ReferSet:
    """One of the sets: its folder, and its file of references there."""

    folder: str
    references: str


SETS: dict[str, ReferSet] = {
    "refcoco": ReferSet("refcoco", "refs(unc).p"),
    "refcoco+": ReferSet("refcoco+", "refs(unc).p"),
    "refcocog": ReferSet("refcocog", "refs(umd).p"),
    "grefcoco": ReferSet("grefcoco", "grefs(unc).json"),
}


@dataclass(frozen=True)
class Reference:
    """One or more objects of an image, or none, and the sentences that mean them.

    ``number`` is the reference's ``ref_id``, ``image`` the image's id in COCO, and ``annotations`` are the ids of the objects' annotations
    in ``instances.json``. ``sentences`` are pairs of ``sent_id`` and text.
    """

    number: int
    image: int
    annotations: tuple[int, ...]
    split: str
    sentences: tuple[tuple[int, str], ...]


def read_refer(root: Path, name: str) -> Reading:
    """Return a pair for each sentence of the set ``name``, one of SETS, with the outlines of the objects that the sentence means.

    Raises DatasetError if files are missing or not what they should be.
    """
    references = read_references(root, name)
    tables = read_tables(root / SETS[name].folder / "instances.json")
    rows = {image: tables.image(image) for image in {one.image for one in references}}
    for annotation in {number for one in references for number in one.annotations}:
        tables.outline(annotation)  # raises for a missing outline now, before anything is written
    names = {image: str(row.get("file_name", "")) for image, row in rows.items()}
    pictures = find_pictures(([one, one.removeprefix(YEAR_2014)] for one in names.values()), [root / folder for folder in PICTURES])
    files = {image: pictures[one] for image, one in names.items()}
    return Reading(_pairs(references, tables, files, name), sum(len(one.sentences) for one in references))


def _pairs(references: Sequence[Reference], tables: CocoTables, files: Mapping[int, Path], name: str) -> Iterator[PhrasedPicture]:
    for one in references:
        outlines = tuple(tables.outline(annotation) for annotation in one.annotations)
        size = image_size(tables.image(one.image))
        for number, text in one.sentences:
            yield PhrasedPicture(files[one.image], text, outlines, one.split, f"{name}:{one.number}:{number}", f"coco:{one.image}", size)


def read_references(root: Path, name: str) -> list[Reference]:
    """Return the references of a set. Raises DatasetError if their file is missing or not in the format."""
    path = root / SETS[name].folder / SETS[name].references
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); {name} has it in {SETS[name].folder}/ of its folder") from error
    rows = _json(data, path) if path.suffix == ".json" else load_plain_pickle(data, str(path))
    if not isinstance(rows, list):
        raise DatasetError(f"{path} is no list of references; fetch it again")
    return [_reference(row, index, path) for index, row in enumerate(rows)]


def _json(data: bytes, path: Path) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is no JSON; fetch it again") from error


def _reference(row: object, index: int, path: Path) -> Reference:
    """Return a row as a Reference. Raises DatasetError if it is not in the format.

    Every value is checked to be a number or a text: a pickle can hold lists that contain each other so often that merely printing or
    comparing them would never end.
    """
    fields = row if isinstance(row, dict) else {}
    meant = fields.get("ann_id")
    annotations = meant if isinstance(meant, list) else [meant]
    numbers = [fields.get("ref_id"), fields.get("image_id"), *annotations]
    split, sentences = fields.get("split"), fields.get("sentences")
    said = [_sentence(one) for one in sentences] if isinstance(sentences, list) else [None]
    if not all(isinstance(number, int) for number in numbers) or not isinstance(split, str) or None in said:
        raise DatasetError(f"{path}: reference {index} has not ref_id, image_id, ann_id, split and sentences as it should; fetch it again")
    targets = tuple(dict.fromkeys(number for number in annotations if number != NO_TARGET))
    return Reference(numbers[0], numbers[1], targets, split, tuple(one for one in said if one is not None))  # type: ignore[arg-type]


def _sentence(fields: Any) -> tuple[int, str] | None:
    if isinstance(fields, dict) and isinstance(fields.get("sent_id"), int) and isinstance(fields.get("sent"), str):
        return fields["sent_id"], fields["sent"]
    return None
