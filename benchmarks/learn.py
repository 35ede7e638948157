"""Learning, end to end, with a real Label Studio: 60 tasks about three unknown things are corrected and trained on.

    python -m benchmarks.learn [--seed 771001] [--skip-evaluation]

The corrections are the tasks' true masks, and the training is started as by the button Start Training. Shows when the run ended and whether
the new version was promoted, the versions of the first task's predictions in Label Studio, and the new version's figures on 200 unseen
scenes that ask for these things and on 120 that ask for known ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from backend import brush
from backend.demo.launch import find_label_studio, is_ready, start_backend
from backend.demo.local_label_studio import LocalLabelStudio
from backend.label_studio.config_template import DEMO_CONFIG
from backend.support.child import HOST, check_port
from benchmarks.novel import NOUNS, NovelTask, novel_tasks, splits_of, write_tests
from benchmarks.pace import pace
from benchmarks.waiting import wait_for

TASKS = 60
MINUTES = 15
PREDICTION_SECONDS = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=771_001)
    parser.add_argument("--skip-evaluation", action="store_true")
    parser.add_argument("--tests", type=Path, default=Path(tempfile.gettempdir()) / "sam4mllm-learn", help="where the test scenes are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        port = check_port(0)
        url = f"http://{HOST}:{port}"
        with LocalLabelStudio(find_label_studio(), root / "label-studio") as studio:
            backend = start_backend(root / "home", port, studio)
            try:
                backend.wait_until(lambda: is_ready(url), 300, print)
                run = learn(studio, url, arguments.seed, root).run
                print(json.dumps({key: run[key] for key in ("state", "message", "counts", "champion", "challenger")}, indent=1))
            finally:
                backend.stop()
        if not arguments.skip_evaluation and run["challenger"]:
            evaluate(root / "home", run["challenger"], arguments.tests)


class Learned(NamedTuple):
    """The result of :func:`learn`.

    ``run`` is the run's record; ``seconds`` is the time from its start by the button to its end; ``pace`` is the machine's mean pace before
    and after it (:mod:`benchmarks.pace`); ``project`` is the project's number, ``backend`` that of its connection to the backend;
    ``versions`` are those of the first task's predictions.
    """

    run: dict[str, Any]
    seconds: float
    pace: float
    project: int
    backend: int
    versions: list[str]


def learn(studio: LocalLabelStudio, url: str, seed: int, root: Path) -> Learned:
    """Make a project, correct its tasks, start the training, and wait for its end. Raises TimeoutError if it takes too long."""
    project = studio.create_project("learning", DEMO_CONFIG)
    backend = studio.connect(project, url, "SAM4MLLM")
    tasks = novel_tasks(TASKS, seed)
    print(f"{TASKS} tasks about {', '.join(NOUNS)}; {splits_of(tasks).count('holdout')} of them in the holdout")
    numbers = fill(studio, project, tasks, root)
    served = predicted(studio, project, numbers)
    for number, task in zip(numbers, tasks, strict=True):
        # as the editor does, the annotation names the prediction that was shown: only then does an empty one count as "none"
        correction = {"result": regions(task), "lead_time": 9.0, "parent_prediction": served[number]}
        studio.api("POST", f"/api/tasks/{number}/annotations/", json=correction)
    paces = [pace()]
    began = time.monotonic()
    studio.api("POST", f"/api/ml/{backend}/train", json={})
    run = wait(url, 4 * MINUTES * 60)
    seconds = time.monotonic() - began
    paces.append(pace())
    print(f"{run['state']} after {seconds:.0f} s (bar: {MINUTES * 60} s at the pace of 1; here it was {paces[0]:.2f}, then {paces[1]:.2f})")
    studio.retrieve_predictions(project)
    versions = [one["model_version"] for one in studio.api("GET", f"/api/predictions?task={numbers[0]}")]
    print(f"predictions of the first task: {', '.join(versions)}")
    return Learned(run, seconds, sum(paces) / len(paces), project, backend, versions)


def fill(studio: LocalLabelStudio, project: int, tasks: list[NovelTask], root: Path) -> list[int]:
    """Upload the pictures, import the tasks, and return the tasks' numbers in order; ``root`` is a folder for the files."""
    files = []
    for index, task in enumerate(tasks):
        files.append(root / f"task-{index:03d}.png")
        files[-1].write_bytes(task.png)
    images = studio.upload(project, files)
    studio.import_tasks(project, [{"image": image, "description": task.phrase} for image, task in zip(images, tasks, strict=True)])
    listed = studio.api("GET", f"/api/tasks?project={project}&page_size=1000&fields=all")["tasks"]
    by_image = {one["data"]["image"]: int(one["id"]) for one in listed}
    return [by_image[image] for image in images]


def predicted(studio: LocalLabelStudio, project: int, numbers: list[int]) -> dict[int, int]:
    """Ask for predictions until all tasks have one, and return the id of each task's first prediction. Raises TimeoutError.

    On a busy machine one request may end before all of its tasks are answered. The first prediction is the one that stays when repeated
    ones are deleted.
    """

    def all_served() -> dict[int, int] | None:
        studio.retrieve_predictions(project)
        found = {number: studio.api("GET", f"/api/predictions?task={number}") for number in numbers}
        return {number: min(one["id"] for one in some) for number, some in found.items()} if all(found.values()) else None

    return wait_for("predictions of all tasks", all_served, PREDICTION_SECONDS)


def regions(task: NovelTask) -> list[dict[str, Any]]:
    """Return the regions that a reviewer submits who draws a task's true masks."""
    return [
        {
            "id": uuid.uuid4().hex[:10],
            "type": "brushlabels",
            "from_name": "mask",
            "to_name": "image",
            "origin": "manual",
            "original_width": mask.shape[1],
            "original_height": mask.shape[0],
            "image_rotation": 0,
            "value": {"format": "rle", "rle": brush.encode(mask), "brushlabels": ["Object"]},
        }
        for mask in task.masks
    ]


def wait(url: str, seconds: float) -> dict[str, Any]:
    """Wait until the newest run has ended, printing its stages, and return its record. Raises TimeoutError."""
    shown = ""

    def ended() -> dict[str, Any] | None:
        nonlocal shown
        runs: list[dict[str, Any]] = httpx.get(f"{url}/api/runs", trust_env=False).json()["runs"]
        now = f"{runs[0]['state']} {runs[0]['progress'].get('stage', '')}" if runs else shown
        if now != shown:
            print(f"{time.strftime('%H:%M:%S')} {now}", flush=True)
            shown = now
        return runs[0] if runs and runs[0]["ended"] else None

    return wait_for("the end of a run", ended, seconds, 1.0)


def evaluate(home: Path, version: str, tests: Path) -> None:
    """Print the figures of the base model and of the version, on scenes that ask for the new things and on those with known ones."""
    novel, known = write_tests(tests)
    for folder in (novel, known):
        for adapter in ([], ["--adapter", str(home / "adapters" / version)]):
            command = [sys.executable, "-m", "sam4mllm", "evaluate", str(folder), "--json", *adapter]
            figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            kept = {key: round(figures[key], 3) for key in ("gIoU", "T-acc", "N-acc", "point_accuracy")}
            print(f"{folder.name} {'after' if adapter else 'before'}: {kept}", flush=True)


if __name__ == "__main__":
    main()
