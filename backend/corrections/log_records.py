"""What is in the log, as values: events, annotations, and what was served."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sam4mllm.run_lengths import Rle


@dataclass(frozen=True)
class Event:
    """A webhook as it came; ``received`` in seconds since 1970."""

    id: int
    received: float
    action: str
    project: int | None
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Served:
    """A mask that was served for a phrase of a task, or that there is none.

    ``time`` is the answer's, seconds since 1970, the same for all of its records. ``page``, from 0, is that of the picture in a task of
    several. ``region`` is the id of the region in Label Studio, one record for each region of the mask control, and empty for "no such
    object", which has no mask. ``box_px`` is (x1, y1, x2, y2), or empty. ``width`` and ``height`` are the image's in pixels,
    ``interactive`` says that an annotator asked.
    """

    time: float
    project: int
    task: int
    version: str
    phrase: str
    label: str | None
    region: str
    mask: Rle | None
    box_px: tuple[float, ...]
    features: dict[str, float]
    score: float
    interactive: bool
    width: int
    height: int
    image_sha256: str
    page: int = 0


@dataclass(frozen=True)
class StoredAnnotation:
    """An annotation that is not deleted, as Label Studio last told it.

    ``body`` has the fields of :data:`backend.corrections.tables.KEPT`, of any type: it is foreign. ``data`` is the task's, empty where
    the log has not heard of it. ``label_configs`` are those that it may have been made under, the likeliest first. ``updated`` is Label
    Studio's time, in seconds since 1970; ``changed`` is the stamp of the last write, which says what came first.
    """

    id: int
    project: int
    task: int
    updated: float
    changed: float
    state: Literal["submitted", "skipped"]
    body: Mapping[str, Any]
    data: Mapping[str, Any]
    label_configs: tuple[str, ...]


# -- what was served, as a row ------------------------------------------------------------------------------------------------------------


def _row_name(one: Served) -> str:
    """What tells a record from the others of its phrase: the region, or of "no such object" the page."""
    return one.region or (f"page {one.page}" if one.page else "")


def served_row(one: Served) -> list[object]:
    """What the log keeps of a record, in the order of its columns."""
    name = _row_name(one)
    return [one.project, one.task, one.version, one.phrase, name, one.time, int(one.interactive), json.dumps(_rest(one))]


def _rest(one: Served) -> dict[str, Any]:
    """What of a record is in no column of its own."""
    return {
        "label": one.label,
        "mask": one.mask,
        "box_px": [float(side) for side in one.box_px],
        "features": {name: float(value) for name, value in one.features.items()},
        "score": float(one.score),
        "size": [one.width, one.height],
        "image_sha256": one.image_sha256,
        **({"page": one.page} if one.page else {}),
    }


def read_served(project: int, task: int, row: Sequence[Any]) -> Served:
    """A record from its row: time, version, phrase, region, interactive and body."""
    when, version, phrase, region, interactive, text = row
    body = json.loads(text)
    return Served(
        time=when,
        project=project,
        task=task,
        version=version,
        phrase=phrase,
        label=body["label"],
        region="" if body["mask"] is None else region,
        mask=body["mask"],
        box_px=tuple(body["box_px"]),
        features=body["features"],
        score=body["score"],
        interactive=bool(interactive),
        width=body["size"][0],
        height=body["size"][1],
        image_sha256=body["image_sha256"],
        page=body.get("page", 0),
    )
