"""Training beside serving on the same cores: how long predictions take without and with a training run, and webhooks during one.

    python -m benchmarks.beside [--count 30] [--webhooks 200]

Every prediction is of another demo scene. Its picture is in the task itself, and corrections come as webhooks, so that no other server
takes part.
"""

from __future__ import annotations

import argparse
import base64
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from backend.label_studio.config_template import DEMO_CONFIG
from benchmarks.learn import regions
from benchmarks.novel import NovelTask, novel_tasks
from benchmarks.predict import body
from benchmarks.waiting import server, wait_for

PORT = 9392
URL = f"http://127.0.0.1:{PORT}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--webhooks", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, server(Path(home), PORT):
        tasks = novel_tasks(60, 771_001)
        predictions(700_000, 3)
        idle = predictions(710_000, arguments.count)
        for number, task in enumerate(tasks, 1):
            webhook(correction(number, task))
        httpx.post(f"{URL}/api/runs", json={}).raise_for_status()
        began = wait_for("a step of training", lambda: stage()["stage"] == "training" and stage().get("done", 0), 300)
        busy = predictions(720_000, arguments.count)
        times = [f"2026-02-01T00:00:{index % 60:02d}.{index:03d}Z" for index in range(arguments.webhooks)]
        spent = [webhook(correction(1 + index % 60, tasks[index % 60], updated)) for index, updated in enumerate(times)]
        ended = stage()["done"]
    assert ended > began, "no training went on meanwhile"
    spent.sort()
    before, during = statistics.median(idle), statistics.median(busy)
    print(f"/predict, median of {arguments.count}: idle {before:.3f} s, while training {during:.3f} s, {during / before:.2f} x (bar: 2.5)")
    print(f"/webhook, p99 of {arguments.webhooks} while training: {spent[int(0.99 * len(spent)) - 1] * 1000:.0f} ms (bar: 100)")


def predictions(seed: int, count: int) -> list[float]:
    """Return the seconds of each of ``count`` prediction requests with one task each."""
    seconds = []
    for index in range(count):
        asked = body(seed + index)
        began = time.perf_counter()
        httpx.post(f"{URL}/predict", json=asked, timeout=100).raise_for_status()
        seconds.append(time.perf_counter() - began)
    return seconds


def webhook(event: dict[str, Any]) -> float:
    """Send an event and return the seconds until the server acknowledges it, which it does once the event is on disk."""
    began = time.perf_counter()
    httpx.post(f"{URL}/webhook", json=event, timeout=100).raise_for_status()
    return time.perf_counter() - began


def correction(number: int, task: NovelTask, updated: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    """Return the event with which Label Studio reports an annotation with the task's true masks, drawn by hand."""
    image = "data:image/png;base64," + base64.b64encode(task.png).decode()
    annotation = {"id": number, "task": number, "project": 1, "result": regions(task), "was_cancelled": False, "updated_at": updated}
    return {
        "action": "ANNOTATION_CREATED",
        "annotation": {**annotation, "created_at": "2026-01-01T00:00:00Z", "completed_by": 1},
        "task": {"id": number, "data": {"image": image, "description": task.phrase}},
        "project": {"id": 1, "title": "beside", "label_config": DEMO_CONFIG},
    }


def stage() -> dict[str, Any]:
    """Return the progress of the newest run."""
    progress: dict[str, Any] = httpx.get(f"{URL}/api/runs").json()["runs"][0]["progress"]
    return progress


if __name__ == "__main__":
    main()
