"""Label Studio's requests as types, and the shape of an answer. A foreign body never raises anything but WireError or TaskError."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from backend.errors import TaskError, WireError

MAX_TASKS = 10_000
_PROJECT = re.compile(r"([0-9]{1,18})(\.[0-9]{1,18})?")

Region = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One task to work on. ``drafts`` are the regions that the annotator has not submitted yet; interactive requests have them.

    ``present``: ids of the regions in its drafts, annotations and predictions.
    """

    id: int | None
    data: Mapping[str, Any]
    drafts: tuple[Region, ...] = ()
    present: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PredictRequest:
    """A request for predictions.

    ``tasks`` are not yet read, so that a malformed one does not spoil the others. ``context`` holds the annotator's regions; it is None in
    a batch.
    """

    tasks: Sequence[object]
    project: int | None = None
    label_config: str = ""
    context: tuple[Region, ...] | None = None

    @property
    def interactive(self) -> bool:
        return self.context is not None


@dataclass(frozen=True)
class SetupRequest:
    """What Label Studio says of a project before it asks for predictions. Its host name and token are not used: anyone could send them."""

    project: int | None
    label_config: str = field(repr=False)
    parameters: object = field(default=None, repr=False)
    """The extra parameters of the backend's entry, as they were stored."""


def read_predict(body: Mapping[str, Any]) -> PredictRequest:
    """Read the body of ``POST /predict``.

    Raises WireError if it has no list of tasks or more than MAX_TASKS of them, or if its project or labelling config is malformed. The
    tasks themselves are not checked.
    """
    tasks = body.get("tasks")
    if not isinstance(tasks, list):
        raise WireError("the request has no list of tasks")
    if len(tasks) > MAX_TASKS:
        raise WireError(f"the request has {len(tasks):,} tasks; send at most {MAX_TASKS:,} at once")
    params = body.get("params")
    context = params.get("context") if isinstance(params, dict) else None
    regions = _regions(context.get("result")) if isinstance(context, dict) else None
    return PredictRequest(tasks, _project(body.get("project")), _text(body.get("label_config"), "label_config"), regions)


def read_setup(body: Mapping[str, Any]) -> SetupRequest:
    """Read the body of ``POST /setup``. Raises WireError if its project or labelling config is malformed; parameters are not checked."""
    return SetupRequest(_project(body.get("project")), _text(body.get("schema"), "schema"), body.get("extra_params"))


def read_task(raw: object) -> Task:
    """Read one entry of ``tasks``. Raises TaskError if it is no JSON object or has no data; malformed regions and ids are left out."""
    if not isinstance(raw, dict):
        raise TaskError("the task is no JSON object")
    data = raw.get("data")
    if not isinstance(data, dict) or not data:
        raise TaskError("the task has no data")
    drafts = _results(raw.get("drafts"))
    shown = [*drafts, *_results(raw.get("annotations")), *_results(raw.get("predictions"))]
    present = frozenset(name for region in shown if isinstance(name := region.get("id"), str))
    return Task(row_id(raw.get("id")), data, tuple(drafts), present)


def is_row_id(value: object) -> TypeGuard[int]:
    """Whether a value can be the id of a row in Label Studio's database."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def row_id(value: object) -> int | None:
    """Return the value if it can be the id of a row in Label Studio's database, else None."""
    return value if is_row_id(value) else None


def prediction(regions: Sequence[Region], score: float, version: str) -> dict[str, Any]:
    """Return a prediction in the form that Label Studio stores.

    A score that is not finite becomes 0, because Label Studio would drop the whole batch for it.
    """
    return {"result": list(regions), "score": float(score) if math.isfinite(score) else 0.0, "model_version": version}


def _results(value: object) -> list[Region]:
    """The regions of drafts, annotations or predictions."""
    each = value if isinstance(value, list) else []
    return [region for one in each if isinstance(one, dict) for region in _regions(one.get("result"))]


def _regions(value: object) -> tuple[Region, ...]:
    return tuple(region for region in value if isinstance(region, dict)) if isinstance(value, list) else ()


def _project(value: object) -> int | None:
    """Return a project's id; None for an empty text and for what is neither text nor number. Raises WireError for any other text or number.

    Label Studio sends ``"<id>.<created>"``; label-studio-ml's servers pass on the id alone.
    """
    if is_row_id(value):
        return value
    if value == "" or not isinstance(value, str | int):
        return None
    found = _PROJECT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise WireError("the project is not of the form <number>.<number>")
    return int(found[1])


def _text(value: object, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise WireError(f"{name} must be text")
    return value
