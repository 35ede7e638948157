"""How long a dataset of refCOCO's size takes to prepare and to merge, and how much memory; the dataset is synthetic, in REFER's layout.

python -m benchmarks.readers FOLDER              # 20,000 pictures, 50,000 references; FOLDER is new, and takes 2 GB
python -m benchmarks.readers FOLDER --pictures 200
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam4mllm.data.merge import merge
from sam4mllm.data.pairs import write_pairs
from sam4mllm.data.readers import READERS

WIDTH, HEIGHT = 640, 480
REFERENCES, OUTLINES = 2.5, 9.8
"""Mean numbers of references and of outlines (annotations) for each picture, as in refCOCO."""
CORNERS = 30
WORDS = ["left", "right", "man", "woman", "red", "blue", "the", "a", "big", "small", "front", "back", "cup", "dog"]


def main() -> None:
    """Print seconds and the peak of resident memory after each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=20_000)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    # the data is written in a process of its own, whose memory is not counted
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        sentences = beside.submit(write_refer, folder / "refer", arguments.pictures).result()
    print(f"{arguments.pictures:,} pictures, {sentences:,} sentences")
    began = time.perf_counter()
    reading = READERS["refcoco"].read(folder / "refer")
    began = _say("found whole", began)
    prepared = write_pairs(reading, folder / "refcoco")
    del reading
    began = _say(f"written, {sum(prepared.written.values()):,} sentences of {prepared.images:,} pictures", began)
    merge([folder / "refcoco"] * 2, folder / "merged")
    _say("merged with itself", began)


def _say(what: str, began: float) -> float:
    now = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{now - began:6.1f} s  {peak:,} MiB at most so far  {what}", flush=True)
    return time.perf_counter()


def write_refer(root: Path, pictures: int) -> int:
    """Write a synthetic dataset in REFER's layout, and return the number of its sentences."""
    chance, numbers = random.Random(0), np.random.default_rng(0)
    folder = root / "images" / "mscoco" / "images" / "train2014"
    folder.mkdir(parents=True)
    grounds = [Image.fromarray(numbers.integers(0, 255, (60, 80, 3), np.uint8)).resize((WIDTH, HEIGHT)) for _ in range(50)]
    images = [{"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(1, pictures + 1)]
    for number, image in enumerate(images, 1):
        grounds[number % 50].save(folder / str(image["file_name"]), quality=85, comment=str(number).encode())
    annotations = [_annotation(number, number % pictures + 1, numbers) for number in range(1, int(OUTLINES * pictures) + 1)]
    references = [_reference(number, chance.choice(annotations), chance) for number in range(1, int(REFERENCES * pictures) + 1)]
    (root / "refcoco").mkdir()
    # pickle protocol 0, which Python 2 wrote refCOCO's file in
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(references, 0))
    tables = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "refcoco" / "instances.json").write_text(json.dumps(tables))
    return sum(len(reference["sentences"]) for reference in references)


def _annotation(number: int, image: int, numbers: np.random.Generator) -> dict[str, Any]:
    x, y, radius = numbers.uniform((80, 80, 20), (560, 400, 120))
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    lengths = radius * numbers.uniform(0.7, 1, CORNERS)
    outline = np.stack([x + lengths * np.cos(angles), y + lengths * np.sin(angles)], axis=1).round(2)
    box = [x - radius, y - radius, 2 * radius, 2 * radius]
    return {"id": number, "image_id": image, "category_id": 1, "segmentation": [outline.ravel().tolist()], "bbox": box, "iscrowd": 0}


def _reference(number: int, annotation: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(2, 6))) for _ in range(chance.choice((2, 3, 3, 3, 3)))]
    said = [{"tokens": text.split(), "raw": text, "sent": text, "sent_id": 10 * number + place} for place, text in enumerate(texts)]
    split = "val" if annotation["image_id"] % 7 == 0 else "train"
    given = {"ref_id": number, "ann_id": annotation["id"], "image_id": annotation["image_id"], "split": split, "sentences": said}
    return {**given, "category_id": 1, "file_name": "", "sent_ids": [one["sent_id"] for one in said]}


if __name__ == "__main__":
    main()
