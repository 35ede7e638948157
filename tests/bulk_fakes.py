"""Label Studio as a bulk run asks it: pages of tasks by filters, imports that keep whatever they are sent, and ways to fail."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from backend.batch.work import Answered, BatchTask
from backend.images.store import LoadedImage
from backend.label_studio.client import LabelStudio
from sam4mllm.pipeline import Pipeline
from tests.backend_fakes import CONFIG, KNOWN
from tests.fakes import FakeGrounder, FakeSegmenter

PROJECT = 3
VERSION = "fake-0-0123abcd"


@dataclass
class BulkServer:
    """One project. ``fail`` is asked before each request for another answer, None for none."""

    tasks: dict[int, dict[str, Any]] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    fail: Callable[[str, httpx.Request], httpx.Response | None] = lambda line, request: None
    after: Callable[[str], None] = lambda line: None
    asked: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, count: int, first: int = 1, description: str = "the left cup") -> BulkServer:
        rows = range(first, first + count)
        return cls({number: {"image": f"/data/upload/{number}-100x80.png", "description": description} for number in rows})

    def client(self, token: str = "a-token") -> LabelStudio:
        return LabelStudio("http://ls:8080", token, transport=httpx.MockTransport(self))

    def having(self, version: str | None = None) -> Counter[int]:
        """How many predictions each task has."""
        return Counter(one["task"] for one in self.predictions if version in (None, one["model_version"]))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        line = f"{request.method} {request.url.path}"
        self.asked[line] += 1
        answer = self.fail(line, request) or self._answer(line, request)
        self.after(line)
        return answer

    def _answer(self, line: str, request: httpx.Request) -> httpx.Response:
        fixed = {f"GET /api/projects/{PROJECT}/": {"id": PROJECT, "title": "bulk", "label_config": CONFIG}, "GET /api/ml": self.entries}
        if line in fixed:
            return httpx.Response(200, json=fixed[line])
        if line == "GET /api/tasks/":
            return self._list(json.loads(request.url.params["query"]), int(request.url.params["page_size"]))
        if line == f"POST /api/projects/{PROJECT}/import/predictions":
            return self._import(json.loads(request.content))
        if line == "GET /api/predictions/":
            wanted = int(request.url.params["task"])
            return httpx.Response(200, json=[one for one in self.predictions if one["task"] == wanted])
        if line.startswith("DELETE /api/predictions/"):
            gone = int(request.url.path.rstrip("/").rpartition("/")[2])
            self.predictions = [one for one in self.predictions if one["id"] != gone]
            return httpx.Response(204)
        return httpx.Response(404, json={"detail": "Not found."})

    def _list(self, query: dict[str, Any], size: int) -> httpx.Response:
        found = sorted(self.tasks)
        if "selectedItems" in query:
            found = [number for number in found if number in query["selectedItems"]["included"]]
        for one in query.get("filters", {}).get("items", ()):
            value = one["value"]
            if one["filter"] == "filter:tasks:id":
                found = [number for number in found if number > value]
            else:
                having = {task for task in found if self._versions(task) & set(value)}
                found = [number for number in found if (number in having) == (one["operator"] == "contains")]
        shown = [self._shown(number) for number in found[:size]]
        return httpx.Response(200, json={"tasks": shown, "total": len(found)})

    def _versions(self, task: int) -> set[str]:
        return {one["model_version"] for one in self.predictions if one["task"] == task}

    def _shown(self, number: int) -> dict[str, Any]:
        versions = ",".join(sorted(self._versions(number)))
        counts = {"total_predictions": self.having()[number], "predictions_model_versions": versions}
        return {"id": number, "data": self.tasks[number], **counts}

    def _import(self, rows: list[dict[str, Any]]) -> httpx.Response:
        if any(row["task"] not in self.tasks for row in rows):
            return httpx.Response(400, json={"detail": "Validation error"})
        first = max((one["id"] for one in self.predictions), default=0) + 1
        self.predictions += [{"id": first + index, **row} for index, row in enumerate(rows)]
        return httpx.Response(201, json={"created": len(rows)})


def fake_pipeline() -> Pipeline:
    return Pipeline(FakeGrounder(KNOWN), FakeSegmenter(), slug="fake")


class PlainWork:
    """Answers with the task's own number; ``dead`` tasks fail."""

    def __init__(self, dead: tuple[int, ...] = ()) -> None:
        self.dead = dead
        self.worked: list[int] = []
        self.steps: list[int] = []

    def key(self, job: BatchTask) -> str:
        return json.dumps(dict(job.data), sort_keys=True)

    def loader(self) -> Callable[[BatchTask], LoadedImage]:
        return lambda job: LoadedImage(np.zeros((64, 64, 3), np.uint8), "0" * 64)

    def answerer(self) -> PlainWork:
        return self

    def ahead(self, pipeline: Pipeline, some: Sequence[tuple[BatchTask, LoadedImage]]) -> bool:
        del pipeline
        self.steps.append(len(some))
        return True

    def __call__(self, pipeline: Pipeline, job: BatchTask, image: LoadedImage, seconds: float) -> Answered:
        del pipeline, image, seconds
        if job.id in self.dead:
            raise ValueError("dead")
        self.worked.append(job.id)
        return Answered({"result": [], "score": 0.5, "model_version": VERSION})


def write_pictures(folder: Path, count: int) -> None:
    (folder / "more").mkdir(parents=True)
    for index in range(count):
        path = folder / "more" / f"{index}.png" if index % 2 else folder / f"{index}.png"
        Image.fromarray(np.full((80, 100, 3), index, np.uint8)).save(path)
