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
    """A mask that was served for a phrase of a task, or the answer "no such object".

    ``time`` is when the answer was given, in seconds since 1970; all records of an answer share it. ``page`` is the picture's number, from
    0, in a task of several. Each region of the mask control has its own record, and ``region`` is its id in Label Studio. ``mask`` is that
    of the whole object: if several outlines show one object, their records have the same mask. A record of "no such object" has an empty
    ``region`` and no mask. ``box_px`` is (x1, y1, x2, y2), or empty. ``width`` and ``height`` are the image's in pixels. ``interactive``
    says that an annotator asked, not a batch.
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
    """An annotation that is not deleted, as Label Studio last sent it.

    ``project`` is -1 if Label Studio did not say which one. ``body`` has the fields of :data:`backend.corrections.tables.KEPT`; it is
    foreign data, and the values may be of any type. ``data`` is the task's data, empty if the log does not know the task.
    ``label_configs`` are the configs that the annotation may have been made under, the likeliest first. ``updated`` is Label Studio's time,
    in seconds since 1970; ``changed`` is the stamp of the last write, which says what came first.
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
    """What tells a record from others of its task, version and phrase: the region or, for "no such object", the page (empty for 0)."""
    return one.region or (f"page {one.page}" if one.page else "")


def served_row(one: Served) -> list[object]:
    """Return a record's values for the table ``served``, in the order of its columns, without the stamp ``noted``."""
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
