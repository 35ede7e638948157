"""What a look at a large project costs this process: seconds, memory and bytes, with a Label Studio that answers at once.

    python -m benchmarks.looks [--tasks 100000] [--annotated 10000]

A look compares the log with a project's annotations. The first one asks for all of them, the next ones for what has changed. Label Studio
is a fake in this process, in which each annotation has a mask of about 20 KB. Predictions must not be asked for; if they are, the benchmark
ends with an error. Bars, which are not checked here: nothing changed ≤ 5 s and ≤ 100 MB above idle, one task changed ≤ 0.5 s.
"""

from __future__ import annotations

import argparse
import gc
import re
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from backend import brush
from backend.corrections.log import CorrectionLog
from backend.corrections.reconcile import reconcile
from backend.label_studio.client import LabelStudio

PROJECT = 1
CONFIG = '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image"><Label value="Cup"/></BrushLabels></View>'
SIDE = 170
"""Side in pixels of the image of the annotations' mask."""


class Server:
    """A fake Label Studio that answers what a look asks. The first ``annotated`` of its tasks have an annotation.

    ``times`` has the time of the last change of each annotated task; ``sent`` counts the bytes of the answers.
    """

    def __init__(self, tasks: int, annotated: int) -> None:
        self.times = {number: 1_700_000_000.0 + number for number in range(1, annotated + 1)}
        self.tasks = tasks
        self.sent = 0
        noise = np.random.default_rng(990_023).random((SIDE, SIDE)) < 0.05
        self._result = [
            {
                **{"id": "m1", "type": "brushlabels", "from_name": "mask", "to_name": "image"},
                **{"original_width": SIDE, "original_height": SIDE},
                "value": {"format": "rle", "rle": brush.encode(noise), "brushlabels": ["Cup"]},
            }
        ]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        found = self._answer(request.url.path, request.url.params)
        answer = httpx.Response(404, json={"detail": "Not found."}) if found is None else httpx.Response(200, json=found)
        self.sent += len(answer.content)
        return answer

    def _answer(self, path: str, query: httpx.QueryParams) -> Any:
        if path == "/api/projects/":
            return {"count": 1, "results": [{"id": PROJECT}]}
        if path == f"/api/projects/{PROJECT}/":
            numbers = {"task_number": self.tasks, "total_annotations_number": len(self.times), "skipped_annotations_number": 0}
            return {"id": PROJECT, "title": "large", "label_config": CONFIG, **numbers}
        if path == "/api/tasks/":
            if "query" not in query or "fields" in query:
                raise SystemExit("predictions were asked for")
            size, page = int(query["page_size"]), int(query["page"])
            newest = sorted(self.times, key=self.times.__getitem__, reverse=True)
            return {"tasks": [self._task(number) for number in newest[(page - 1) * size : page * size]], "total": len(newest)}
        [number] = map(int, re.findall(r"/api/tasks/(\d+)/annotations/", path))
        return [self._annotation(number)] if number in self.times else None

    def _task(self, number: int) -> dict[str, Any]:
        counts = {"total_annotations": 1, "cancelled_annotations": 0}
        return {"id": number, "data": {"image": f"https://example.com/{number}.png"}, "updated_at": self._when(number), **counts}

    def _annotation(self, number: int) -> dict[str, Any]:
        who = {"completed_by": 1, "was_cancelled": False, "lead_time": 5.0}
        return {"id": number, "task": number, "project": PROJECT, "result": self._result, "updated_at": self._when(number), **who}

    def _when(self, number: int) -> str:
        return datetime.fromtimestamp(self.times[number], UTC).isoformat()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--annotated", type=int, default=10_000)
    arguments = parser.parse_args()
    server = Server(arguments.tasks, arguments.annotated)
    client = LabelStudio("http://ls:8080", "a-token", transport=httpx.MockTransport(server))
    with tempfile.TemporaryDirectory() as folder:
        log = CorrectionLog(Path(folder) / "corrections.sqlite")

        def look(what: str) -> None:
            gc.collect()
            before, sent, began = peak_mb(), server.sent, time.perf_counter()
            found = reconcile(log, client, [PROJECT])
            seconds = time.perf_counter() - began
            asked = f"{(server.sent - sent) / 1e6:.2f} MB answered, {peak_mb() - before:.1f} MB more memory"
            print(f"{what}: {seconds:.3f} s, {asked}: {found}", flush=True)

        look("first look")
        look("nothing changed")
        server.times[arguments.annotated // 2] = 1_800_000_000.0
        look("one changed")
        del server.times[7]
        look("one deleted")
        log.close()


def peak_mb() -> float:
    """The most memory that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
