"""Public data sets in small, each laid out as it is published."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam4mllm.run_lengths import to_rle

SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]
FAR = [50.0, 10.0, 60.0, 10.0, 60.0, 20.0, 50.0, 20.0]
WIDTH, HEIGHT = 80, 60
TRAIN2014 = Path("images", "mscoco", "images", "train2014")
NAMES = [f"COCO_train2014_{number:012d}.jpg" for number in (1, 2)]


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (shade, 0, 0)).save(path)
    return path


def square() -> np.ndarray[Any, np.dtype[np.bool_]]:
    """What SQUARE covers."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[10:30, 10:30] = True
    return mask


def coco_file(path: Path, annotations: list[dict[str, Any]], categories: list[str], images: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, "license": 1} for number, name in enumerate(images, 1)]
    names = [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(categories, 1)]
    path.write_text(json.dumps({"info": {}, "licenses": [], "images": rows, "annotations": annotations, "categories": names}))


def annotation(number: int, outline: Any, image: int = 1, category: int = 1, **more: Any) -> dict[str, Any]:
    whole = {"id": number, "image_id": image, "category_id": category, "segmentation": outline, "area": 400.0}
    return {**whole, "bbox": [10, 10, 20, 20], "iscrowd": 0, **more}


def reference(number: int, ann_id: Any, sentences: list[str], split: str = "train", image: int = 1) -> dict[str, Any]:
    said = [{"sent_id": 10 * number + index, "sent": text, "raw": text, "tokens": text.split()} for index, text in enumerate(sentences)]
    return {
        "sent_ids": [one["sent_id"] for one in said],
        "file_name": f"COCO_train2014_{image:012d}_{number}.jpg",
        "ann_id": ann_id,
        "ref_id": number,
        "image_id": image,
        "split": split,
        "sentences": said,
        "category_id": 1,
    }


def refer_root(root: Path) -> Path:
    """REFER's root with its sets on two pictures: refcoco and refcoco+ of Python 3, refcocog as Python 2 wrote it, and gRefCOCO."""
    for shade, name in enumerate(NAMES):
        picture(root / TRAIN2014 / name, 100 * shade)
    for folder in ("refcoco", "refcoco+", "refcocog", "grefcoco"):
        coco_file(root / folder / "instances.json", [annotation(1, [SQUARE]), annotation(2, [FAR])], ["cup"], NAMES)
    references = [reference(1, 1, ["the left cup", "cup  left"]), reference(2, 2, ["right cup"], "val", 2)]
    for folder in ("refcoco", "refcoco+"):
        (root / folder / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    (root / "refcocog" / "refs(umd).p").write_bytes(pickle.dumps([reference(3, 1, ["a cup"])], protocol=0))
    several = [reference(4, [1, 2], ["both cups"]), {**reference(5, [-1], ["the dog"], "testA"), "category_id": [-1], "no_target": True}]
    (root / "grefcoco" / "grefs(unc).json").write_text(json.dumps(several))
    return root


def refcoco_m(root: Path, file_name: str = NAMES[1]) -> Path:
    """As the hub has it: a row for each picture, encoded anew as PNG."""
    import pyarrow  # noqa: PLC0415 – an extra
    from pyarrow import parquet  # noqa: PLC0415

    data = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (100, 0, 0)).save(data, "PNG")
    sample = {"id": "7", "sentences": ["right cup", "cup"], "mask": dict(to_rle(square())), "bbox": [0.1, 0.1, 0.2, 0.3], "category": "cup"}
    row = {"image_id": 2, "image": {"bytes": data.getvalue(), "path": None}, "file_name": file_name, "samples": [sample]}
    (root / "data").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist([row]), root / "data" / "validation-00000-of-00001.parquet")
    return root


def reasonseg(root: Path, split: str, shapes: list[tuple[str, list[list[float]]]], texts: list[str], encoding: str = "utf-8") -> Path:
    picture(root / split / "a.jpg")
    shown = [{"label": label, "labels": [label], "shape_type": "polygon", "points": points} for label, points in shapes]
    fields = {"text": texts, "is_sentence": True, "shapes": shown}
    (root / split / "a.json").write_bytes(json.dumps(fields, ensure_ascii=False).encode(encoding))
    return root


def ade_thing(name: str, number: int, xs: list[float], level: int = 0) -> dict[str, Any]:
    parts = {"hasparts": [], "ispartof": [], "part_level": level}
    return {"raw_name": name, "name": name, "name_ndx": number, "polygon": {"x": xs, "y": [10, 10, 30, 30]}, "parts": parts, "crop": "0"}


def ade20k(root: Path, things: list[dict[str, Any]], classes: np.ndarray[Any, np.dtype[np.int_]], folder: str = "training") -> Path:
    """One picture; ``classes`` (HEIGHT, WIDTH) are the numbers that its pixels show."""
    path = picture(root / "images" / "ADE" / folder / "home_or_hotel" / "kitchen" / "ADE_train_00000001.jpg")
    colours = np.stack([classes // 256 * 10, classes % 256, np.zeros_like(classes)], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(path.with_name(f"{path.stem}_seg.png"))
    path.with_suffix(".json").write_text(json.dumps({"annotation": {"imsize": [HEIGHT, WIDTH, 3], "object": things}}))
    return root
