"""Reviewed tasks without a Label Studio: events in the recorded form, what was served, and a server that holds the truth."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from backend import brush
from backend.corrections.log import CorrectionLog
from backend.corrections.log_records import Served
from backend.label_studio.client import CUT_AT, LabelStudio
from sam4mllm.run_lengths import from_rle, to_rle
from tests.test_wire import RECORDED, requests

CONFIG = (
    '<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/><TextArea name="answer" toName="image"/>'
    '<BrushLabels name="mask" toName="image"><Label value="Cup" alias="mug, beaker"/><Label value="Dog"/></BrushLabels>'
    '<KeyPointLabels name="click" toName="image"><Label value="Cup"/></KeyPointLabels>'
    '<RectangleLabels name="box" toName="image"><Label value="Cup"/></RectangleLabels></View>'
)
PROJECT, TASK = 3, 5
HEIGHT, WIDTH = 24, 32
CREATED = 1_795_396_688.0
"""When the annotations of these tests were made, unless they say so themselves."""

Mask = NDArray[np.bool_]


def recorded(prefix: str) -> dict[str, Any]:
    """The body of the only webhook of a recording."""
    [path] = [path for path in RECORDED if path.stem.startswith(prefix)]
    [body] = [request["body"] for request in requests(path) if request["path"] == "/webhook"]
    return copy.deepcopy(body)


def when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def blob(x: int, y: int = 4, side: int = 8) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[y : y + side, x : x + side] = True
    return mask


def region(number: str, mask: Mask, label: str | None = "Cup", origin: str | None = "prediction", **more: Any) -> dict[str, Any]:
    height, width = mask.shape
    origins = {} if origin is None else {"origin": origin}
    value = {"format": "rle", "rle": brush.encode(mask), "brushlabels": [] if label is None else [label]}
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    return {"id": number, "type": "brushlabels", "from_name": "mask", "to_name": "image", **size, **origins, "value": value, **more}


def typed(text: str) -> dict[str, Any]:
    return {"id": "t", "type": "textarea", "from_name": "prompt", "to_name": "image", "origin": "manual", "value": {"text": [text]}}


def annotation(*result: object, number: int = 1, **fields: Any) -> dict[str, Any]:
    """An annotation as the API gives it; ``updated`` in seconds since 1970."""
    updated = fields.pop("updated", CREATED)
    body: dict[str, Any] = recorded("08")["annotation"]
    body |= {"id": number, "task": TASK, "project": PROJECT, "result": list(result), "parent_prediction": 41}
    return body | {"created_at": when(CREATED), "updated_at": when(updated)} | fields


def event(action: str, body: Mapping[str, Any], config: str = CONFIG, **data: Any) -> dict[str, Any]:
    """An annotation's event in the recorded form, of a task with these data."""
    whole = recorded("08")
    whole["project"] |= {"id": PROJECT, "label_config": config}
    whole["task"] |= {"id": body["task"], "project": PROJECT, "data": {"image": "/data/upload/3/a.png", **data}}
    return whole | {"action": action, "annotation": dict(body)}


def created(*result: object, phrase: object = "the cup", config: str = CONFIG, **fields: Any) -> dict[str, Any]:
    data = {} if phrase is None else {"description": phrase}
    return event("ANNOTATION_CREATED", annotation(*result, **fields), config, **data)


def served(number: str, mask: Mask | None, phrase: str = "the cup", label: str | None = "Cup", **fields: Any) -> Served:
    """A record from a minute before the annotations."""
    given: dict[str, Any] = {
        "time": CREATED - 60,
        "project": PROJECT,
        "task": TASK,
        "version": "demo-0-00000000",
        "phrase": phrase,
        "label": label,
        "region": number,
        "mask": None if mask is None else to_rle(mask),
        "box_px": () if mask is None else (4.0, 4.0, 12.0, 12.0),
        "features": {} if mask is None else {"stability": 0.9},
        "score": 0.8,
        "interactive": False,
        "width": WIDTH,
        "height": HEIGHT,
        "image_sha256": "0" * 64,
    }
    return Served(**given | fields)


def log_of(folder: Path, *events: Mapping[str, Any], served: Sequence[Served] = ()) -> CorrectionLog:
    log = CorrectionLog(folder / "corrections.sqlite")
    log.serve(served)
    for one in events:
        log.store(one)
    return log


def decoded(rle: Any) -> Mask:
    return from_rle(rle, HEIGHT, WIDTH)


KINDS = (("total", "total"), ("skipped", "cancelled"))
"""What a project and what a task call the numbers of annotations."""


@dataclass
class FakeLabelStudio:
    """Its projects and tasks, asked in pages as of 1.23; counts what it is asked."""

    projects: dict[int, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    page_limit: int = 2
    failing: str = ""
    asked: list[str] = field(default_factory=list)

    def add(self, number: int, *tasks: dict[str, Any], config: str = CONFIG) -> None:
        self.projects[number] = {"id": number, "title": f"project {number}", "label_config": config}
        self.tasks[number] = list(tasks)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, query = request.url.path, request.url.params
        self.asked.append(f"{path}?{request.url.query.decode()}")
        if self.failing and self.failing in path:
            return httpx.Response(403, json={"detail": "no"})
        if path == "/api/projects/":
            shown = [{name: one[name] for name in query["include"].split(",")} for one in self.projects.values()]
            found, total = self._page(shown, query)
            return httpx.Response(200, json={"count": total, "next": None, "results": found}) if found or not total else self._invalid()
        if path == "/api/tasks/":
            tasks = self.tasks[int(query["project"])]
            found, total = self._page(tasks if query.get("fields") == "all" else self._listed(tasks, json.loads(query["query"])), query)
            return httpx.Response(200, json={"tasks": found, "total": total}) if found or not total else self._invalid()
        number = int(path.removesuffix("/annotations/").rstrip("/").rpartition("/")[2])
        if not path.startswith("/api/projects/"):
            one: Any = self._of_task(number) if path.endswith("/annotations/") else self._annotation(number)
            return self._invalid() if one is None else httpx.Response(200, json=one)
        if number not in self.projects:
            return httpx.Response(404, json={"detail": "Not found."})
        numbers = [self._counts(task) for task in self.tasks[number]]
        counts = {f"{kind}_annotations_number": sum(one[f"{of}_annotations"] for one in numbers) for kind, of in KINDS}
        return httpx.Response(200, json={**self.projects[number], "task_number": len(self.tasks[number]), **counts})

    def _of_task(self, number: int) -> list[dict[str, Any]] | None:
        """Without skipped ones."""
        own = [task["annotations"] for tasks in self.tasks.values() for task in tasks if task["id"] == number]
        return [one for one in own[0] if one["was_cancelled"] is not True] if own else None

    def _annotation(self, number: int) -> dict[str, Any] | None:
        every = [one for tasks in self.tasks.values() for task in tasks for one in task["annotations"] if one["id"] == number]
        return every[0] if every else None

    @staticmethod
    def _counts(task: dict[str, Any]) -> dict[str, int]:
        skipped = sum(one["was_cancelled"] is True for one in task["annotations"])
        return {"total_annotations": len(task["annotations"]) - skipped, "cancelled_annotations": skipped}

    def _listed(self, tasks: list[dict[str, Any]], query: dict[str, Any]) -> list[dict[str, Any]]:
        """The annotated tasks, the last changed first, or those that are selected with their annotations' numbers."""
        bare = [{name: value for name, value in task.items() if name not in ("annotations", "predictions")} for task in tasks]
        listed = [one | self._counts(task) for one, task in zip(bare, tasks, strict=True) if task["annotations"]]
        if "selectedItems" in query:
            ids = {task["id"]: ",".join(str(one["id"]) for one in task["annotations"])[:CUT_AT] for task in tasks}
            return [{**one, "annotations_ids": ids[one["id"]]} for one in listed if one["id"] in query["selectedItems"]["included"]]
        if query["ordering"] == ["tasks:id"]:
            return sorted(listed, key=lambda one: int(one["id"]))
        assert query["ordering"] == ["-tasks:updated_at"]
        return sorted(listed, key=lambda one: str(one.get("updated_at")), reverse=True)

    def _page(self, entries: list[dict[str, Any]], query: httpx.QueryParams) -> tuple[list[dict[str, Any]], int]:
        size = min(self.page_limit, int(query["page_size"]))
        first = (int(query["page"]) - 1) * size
        return entries[first : first + size], len(entries)

    @staticmethod
    def _invalid() -> httpx.Response:
        return httpx.Response(404, json={"detail": "Invalid page."})

    def client(self, token: str = "a-token") -> LabelStudio:
        return client(self, token)


def client(server: Callable[[httpx.Request], httpx.Response], token: str = "a-token") -> LabelStudio:
    return LabelStudio("http://ls:8080", token, transport=httpx.MockTransport(server))


def as_json(value: object) -> Any:
    return json.loads(json.dumps(value))
