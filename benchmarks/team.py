"""Annotators who click, over HTTP, while the same server makes a bulk run: how long a click takes, and what rate the run keeps.

    python -m benchmarks.team [--annotators 12] [--seconds 60] [--pause 4.0] [--seed 990023]

Each annotator has a demo scene open, which the server has already taken in, and adds a point every ``--pause`` seconds; the clicks of the
annotators are spread evenly over that time. Label Studio is a light fake in this process, so that the machine's cores are left to the
server. Annotators alone, the bulk run alone and both together are measured in turn.

Bars: during the bulk run the 95th percentile of a click's seconds is at most twice that without it, and the run keeps at least half of its
rate. Ends with 1 if one is missed.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
from PIL import Image

from benchmarks.predict import body
from benchmarks.waiting import server, wait_for
from sam4mllm.demo.scenes import DemoScene, make_scene
from tests.bulk_fakes import PROJECT, BulkServer

PORT, STUDIO = 9393, 9394
URL = f"http://127.0.0.1:{PORT}"
PICTURE = "picture"
"""Key under which the fake counts requests for pictures. Their number is that of the tasks begun, apart from a few fetched ahead."""
ROUNDS = 2
"""How often each of the three is measured in turn, so that other load on the machine affects all alike."""
TIMES, SHARE = 2.0, 0.5
"""The bars: how many times as long a click may take during a bulk run, and the least share of its rate that the run keeps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotators", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pause", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=990_023)
    arguments = parser.parse_args()
    told = {"LABEL_STUDIO_URL": f"http://127.0.0.1:{STUDIO}", "LABEL_STUDIO_API_KEY": "a-token"}
    with tempfile.TemporaryDirectory() as home, studio(arguments.seed) as project, patch.dict(os.environ, told), server(Path(home), PORT):
        team = Team([body(arguments.seed + 10_000 + index) for index in range(arguments.annotators)], arguments.pause)
        team.open()
        idle, alone, beside, kept = [], [], [], []
        for _ in range(ROUNDS):
            seconds = arguments.seconds / ROUNDS
            idle += team.click(seconds)
            with bulk_run(project) as rate:
                time.sleep(seconds)
                alone.append(rate())
            with bulk_run(project) as rate:
                beside += team.click(seconds)
                kept.append(rate())
    met = report(idle, beside, float(np.mean(alone)), float(np.mean(kept)))
    raise SystemExit(not met)


def report(idle: list[float], beside: list[float], alone: float, kept: float) -> bool:
    """Print the figures, and return whether the bars are met.

    ``idle`` and ``beside`` are the seconds of clicks without and during a bulk run; ``alone`` and ``kept`` are the run's rates without and
    with the annotators.
    """
    (half, most), (half_beside, most_beside) = (np.percentile(seconds, [50, 95]) for seconds in (idle, beside))
    print(f"{len(idle)} clicks without a bulk run: median {half:.3f} s, 95th percentile {most:.3f} s")
    ratio = most_beside / most
    print(f"{len(beside)} beside one: median {half_beside:.3f} s, 95th percentile {most_beside:.3f} s, {ratio:.2f} x (bar: {TIMES})")
    print(f"bulk run: {alone:.2f} tasks a second alone, {kept:.2f} beside the annotators, {kept / alone:.2f} of it (bar: {SHARE})")
    return bool(ratio <= TIMES and kept >= SHARE * alone)


class Team:
    """Annotators, each with a task of its own; ``pause`` is the seconds between two clicks of the same annotator."""

    def __init__(self, tasks: list[dict[str, Any]], pause: float) -> None:
        self._tasks, self._pause = tasks, pause
        self._points: list[list[list[float]]] = [[] for _ in tasks]
        self._rng = np.random.default_rng(990_024)

    def open(self) -> None:
        """Ask for a prediction of each task once, as Label Studio does when the task is opened."""
        for task in self._tasks:
            httpx.post(f"{URL}/predict", json=task, timeout=100).raise_for_status()

    def click(self, seconds: float) -> list[float]:
        """Let the annotators click for so many seconds, and return how long the answer to each click took."""
        apart = self._pause / len(self._tasks)
        with ThreadPoolExecutor(len(self._tasks)) as pool:
            began, asked = time.monotonic(), []
            for number in range(int(seconds / apart)):
                time.sleep(max(0.0, began + number * apart - time.monotonic()))
                asked.append(pool.submit(self._click, number % len(self._tasks)))
            return [one.result() for one in asked]

    def _click(self, who: int) -> float:
        self._points[who] = [*self._points[who], self._rng.uniform(20, 80, 2).tolist()][-5:]
        asked = {**self._tasks[who], **click_on(*self._points[who])}
        began = time.perf_counter()
        answer = httpx.post(f"{URL}/predict", json=asked, timeout=100)
        assert answer.json()["results"][0], answer.text
        return time.perf_counter() - began


CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image"><Label value="Object"/></BrushLabels>'
    '<KeyPointLabels name="click" toName="image" smart="true"><Label value="Object"/></KeyPointLabels>'
    '<TextArea name="prompt" toName="image"/></View>'
)


def click_on(*points: Sequence[float]) -> dict[str, Any]:
    """Return the fields that a request has besides its task if an annotator clicked on points, (x, y) in percent of the picture."""
    clicks = []
    for x, y in points:
        value = {"x": x, "y": y, "width": 0.2, "keypointlabels": ["Object"]}
        clicks.append({"type": "keypointlabels", "from_name": "click", "to_name": "image", "is_positive": True, "value": value})
    return {"label_config": CONFIG, "params": {"context": {"result": clicks}}}


@contextmanager
def studio(seed: int) -> Iterator[BulkServer]:
    """Run a fake Label Studio with more tasks than a bulk run can do in the time, each with a picture of its own."""
    tasks = {}
    for number in range(1, 2001):
        tasks[number] = {"image": f"/data/upload/{number}.png", "description": scene(seed, number % 20).expressions[0].phrase}
    project, lock = BulkServer(tasks), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if (number := re.fullmatch(r"/data/upload/(\d+)\.png", self.path)) is not None:
                project.asked[PICTURE] += 1
                return self._send(200, "image/png", picture(seed, int(number[1])))
            size = int(self.headers.get("Content-Length") or 0)
            with lock:
                answer = project(httpx.Request(self.command, f"http://ls{self.path}", content=self.rfile.read(size)))
            return self._send(answer.status_code, "application/json", answer.content)

        do_POST = do_DELETE = do_PATCH = do_GET

        def _send(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Write no line for a request."""

    made = ThreadingHTTPServer(("127.0.0.1", STUDIO), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield project
    finally:
        made.shutdown()


@functools.cache
def scene(seed: int, number: int) -> DemoScene:
    """Return one of a few cached scenes: drawing thousands would take longer than the bulk run."""
    return make_scene((seed, number))


def picture(seed: int, number: int) -> bytes:
    """Return a scene as a PNG file. Files of the same scene differ in one pixel, so that the server knows none of them already."""
    pixels = scene(seed, number % 20).image.copy()
    pixels[0, 0] = number % 256, number // 256, 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


@contextmanager
def bulk_run(project: BulkServer) -> Iterator[Any]:
    """Start a bulk run by the status page, and stop it at the end of the block.

    The block gets a function that returns the tasks a second so far, counted from the time when the run had asked for eight pictures.
    """
    before = project.asked[PICTURE]
    press("predict-all")
    wait_for("the run's first pictures", lambda: project.asked[PICTURE] >= before + 8, 300, 0.01)
    first, began = project.asked[PICTURE], time.monotonic()
    try:
        yield lambda: (project.asked[PICTURE] - first) / (time.monotonic() - began)
    finally:
        press("stop-bulk")
        wait_for("the run's end", lambda: httpx.get(f"{URL}/api", timeout=100).json()["bulk"][0]["state"] == "stopped", 60)


def press(action: str) -> None:
    """Press a button of the project on the status page, by sending its form."""
    page = httpx.get(URL, timeout=100).text
    form = re.search(rf'<form[^>]*action="/actions/{action}".*?</form>', page, re.DOTALL)
    assert form is not None, f"the page has no {action}"
    fields = {**dict(re.findall(r'name="(\w+)"[^>]*value="([^"]*)"', form[0])), "subject": str(PROJECT)}
    answer = httpx.post(f"{URL}/actions/{action}", data=fields, headers={"Origin": URL}, timeout=100, follow_redirects=True)
    answer.raise_for_status()


if __name__ == "__main__":
    main()
