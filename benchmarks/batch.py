"""``sam4mllm batch`` on demo scenes in a real Label Studio, in shards whose processes are killed with SIGKILL at random moments.

    SAM4MLLM_LABEL_STUDIO=/path/to/label-studio python -m benchmarks.batch [--tasks 1000] [--kills 3] [--shards 2] [--seed 1]

All shards are killed and started again ``--kills`` times. Afterwards every task must have exactly one prediction of the version, and no
task may have been computed twice; otherwise the benchmark ends with 1. The speed of the last, undisturbed run is printed beside that of the
pipeline alone, on the same pictures from disk, in as many processes at once. Label Studio runs on the same machine and is busy only during
the batch run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from backend.demo.launch import find_label_studio
from backend.demo.local_label_studio import LocalLabelStudio
from backend.label_studio.config_template import DEMO_CONFIG
from benchmarks.waiting import wait_for
from sam4mllm.demo.scenes import make_scene

SEED = 990_004
ENGINE_TASKS = 60
"""Tasks on which the pipeline alone is timed, in each process. They are enough, because its work is the same for each task."""
RESUME_SECONDS = 120.0
COMMAND = [sys.executable, "-m", "sam4mllm"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", nargs=3, metavar=("FOLDER", "SHARD", "SHARDS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        folder, shard, shards = arguments.engine
        print(time_engine(Path(folder), int(shard), int(shards)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        phrases = draw(folder / "scenes", arguments.tasks)
        with LocalLabelStudio(find_label_studio(), folder / "label-studio", progress=print) as label_studio:
            project = fill(label_studio, folder / "scenes", phrases)
            print(f"{len(phrases)} tasks in project {project}", flush=True)
            good = Bulk(label_studio, project, folder, arguments.shards).run(arguments.kills, random.Random(arguments.seed))
            engine = sum(engine_rates(folder / "scenes", arguments.shards))
            print(f"the pipeline alone, {arguments.shards} processes at once: {engine:.2f} tasks a second")
    sys.exit(not good)


class Bulk:
    """Starts and kills the processes of the shards, and reads what became of their tasks."""

    def __init__(self, label_studio: LocalLabelStudio, project: int, folder: Path, shards: int) -> None:
        self.label_studio, self.project, self.shards = label_studio, project, shards
        self.out = folder / "out"
        own = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token, "SAM4MLLM_HOME": str(folder / "home")}
        self.environment = os.environ | own | threads(shards)

    def run(self, kills: int, rng: random.Random) -> bool:
        """Kill all shards ``kills`` times, let the last run end, print the figures, and return whether the check of the tasks succeeds."""
        resumed: list[float] = []
        for _ in range(kills):
            processes = self.start()
            resumed.append(self.wait_for_more())
            time.sleep(rng.uniform(0, 0.2 * self.tasks_left() / self.shards))
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            print(f"killed with {len(self.rows())} results; {len(self.predictions())} predictions in Label Studio", flush=True)
        began, before = time.monotonic(), len(self.rows())
        processes = self.start()
        resumed.append(self.wait_for_more())
        summaries = [json.loads(process.communicate()[0]) for process in processes]
        print(f"first new result after {', '.join(f'{seconds:.1f}' for seconds in resumed)} s (the first is a start, not a resumption)")
        taken_up = [one["first_task_after"] or 0.0 for one in summaries]
        print(f"first task taken up after {', '.join(f'{seconds:.1f}' for seconds in taken_up)} s the last time")
        took = time.monotonic() - began
        print(f"last run: {len(self.rows()) - before} tasks in {took:.1f} s; {sum(one['rate'] for one in summaries):.2f} tasks a second")
        busy = sum(one["models"] for one in summaries) / sum(one["seconds"] for one in summaries)
        print(f"the models were at work for {busy:.1%} of the time")
        print(f"summaries: {json.dumps(summaries)}")
        return self.check(summaries[0]["version"])

    def start(self) -> list[subprocess.Popen[str]]:
        """A process for each shard, each in a group of its own."""
        command = [*COMMAND, "batch", str(self.project), "--out", str(self.out), "--json"]
        return [
            subprocess.Popen(
                [*command, "--shard", f"{index + 1}/{self.shards}"],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                process_group=0,
            )
            for index in range(self.shards)
        ]

    def wait_for_more(self) -> float:
        """Wait until a shard has written a further result, and return the seconds that took. Raises TimeoutError."""
        began, before = time.monotonic(), len(self.rows())
        wait_for("a further result of any shard", lambda: len(self.rows()) != before, RESUME_SECONDS, 0.05)
        return time.monotonic() - began

    def rows(self) -> list[int]:
        """Return the number of the task of each complete result on disk."""
        files = [*self.out.glob("*/shard-*/part-*.jsonl"), *self.out.glob("*/shard-*/.open.jsonl.partial")]
        rows: list[int] = []
        for file in files:
            for line in file.read_bytes().splitlines() if file.exists() else ():
                if line.startswith(b'{"task":') and line.endswith(b"}"):
                    rows.append(int(line[8 : line.index(b",")]))
        return rows

    def tasks_left(self) -> int:
        return int(self.label_studio.api("GET", f"/api/projects/{self.project}/")["task_number"]) - len(set(self.rows()))

    def predictions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.label_studio.api("GET", f"/api/predictions/?project={self.project}")
        return found

    def check(self, version: str) -> bool:
        """Whether every task has exactly one prediction of the version, and none was computed twice."""
        tasks = self.label_studio.api("GET", f"/api/projects/{self.project}/")["task_number"]
        having = Counter(one["task"] for one in self.predictions() if one["model_version"] == version)
        worked = Counter(self.rows())
        several = sum(count > 1 for count in having.values())
        repeated = sum(count - 1 for count in worked.values())
        print(f"{len(having)} of {tasks} tasks have a prediction of {version}, {several} several; {repeated} tasks worked out twice")
        return len(having) == tasks and not several and not repeated


def threads(processes: int) -> dict[str, str]:
    """Return the environment that divides the machine's cores between so many processes. With more threads than cores, waiting for each
    other would cost many times as much.
    """
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}


def draw(folder: Path, count: int) -> list[str]:
    """Write the pictures of so many demo scenes and their phrases to a new folder, and return the phrases, one for each picture."""
    folder.mkdir()
    phrases = []
    for index in range(count):
        scene = make_scene((SEED, index))
        Image.fromarray(scene.image).save(folder / f"{index:06d}.png")
        phrases.append(scene.expressions[0].phrase)
    (folder / "phrases.json").write_text(json.dumps(phrases))
    return phrases


def fill(label_studio: LocalLabelStudio, folder: Path, phrases: list[str]) -> int:
    """Create a project with a task for each scene, of its picture and its phrase; return the project's number."""
    project = label_studio.create_project("bulk", DEMO_CONFIG)
    paths = label_studio.upload(project, sorted(folder.glob("*.png")))
    label_studio.import_tasks(project, [{"image": path, "description": phrase} for path, phrase in zip(paths, phrases, strict=True)])
    return project


def engine_rates(folder: Path, shards: int) -> list[float]:
    """Time the pipeline alone in ``shards`` processes at once, and return the tasks a second of each."""
    command = [sys.executable, "-m", "benchmarks.batch", "--engine", str(folder)]
    with ThreadPoolExecutor(shards) as pool:
        environment = os.environ | threads(shards)
        commands = [[*command, str(index), str(shards)] for index in range(shards)]
        runs = [pool.submit(subprocess.check_output, one, text=True, env=environment) for one in commands]
        return [float(run.result().split()[-1]) for run in runs]


def time_engine(folder: Path, shard: int, shards: int) -> float:
    """Return the tasks a second of the pipeline alone, in this process, on one shard of the scenes. The first task is not counted."""
    from backend.batch.models import load_serving  # noqa: PLC0415
    from backend.settings import Settings  # noqa: PLC0415
    from sam4mllm.images import load_image  # noqa: PLC0415

    pipeline = load_serving(Settings(home=folder / "none"))
    phrases: list[str] = json.loads((folder / "phrases.json").read_text())
    jobs = list(zip(sorted(folder.glob("*.png")), phrases, strict=True))[shard::shards][: ENGINE_TASKS + 1]
    pipeline.segment(load_image(jobs[0][0]), [jobs[0][1]])
    began = time.perf_counter()
    for path, phrase in jobs[1:]:
        pipeline.segment(load_image(path), [phrase])
    return (len(jobs) - 1) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
