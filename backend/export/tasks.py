"""Where the tasks to export come from: a project of Label Studio, asked page by page, or an export's file with its pictures beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.errors import LabelStudioError, TaskError
from backend.export.surfaces import Surfaces, read_surfaces
from backend.images.store import image_store
from backend.label_studio.client import LabelStudio
from backend.label_studio.export_file import export_file, find_picture, read_config_text, read_export
from backend.label_studio.wire import row_id
from backend.learning.exports import ExportedAnnotation, check_tasks, find_picture_key, is_json, read_annotations
from backend.settings import Settings

ReadPicture = Callable[[str, int], bytes]
"""A function that returns the file of a picture, given its reference and its task's number. It raises Sam4mllmError."""


@dataclass(frozen=True)
class TaskToExport:
    """A task with all of its annotations, skipped ones among them."""

    number: int
    data: Mapping[str, Any]
    annotations: tuple[ExportedAnnotation, ...]


@dataclass(frozen=True)
class ExportSource:
    """A source of tasks. ``tasks`` can be iterated once, until ``close`` is called. ``total`` is their number, if it is known. ``surfaces``
    are those of the project's config.
    """

    tasks: Iterable[TaskToExport]
    total: int | None
    surfaces: Surfaces
    read_picture: ReadPicture
    close: Callable[[], None] = lambda: None


def open_project(number: int, settings: Settings) -> ExportSource:
    """Return a project of Label Studio as a source; it is read through LABEL_STUDIO_URL with LABEL_STUDIO_API_KEY.

    Raises LabelStudioError and ConfigError; iterating over the tasks may raise LabelStudioError, too.
    """
    if not settings.label_studio_url:
        raise LabelStudioError("a project is read from Label Studio; set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY")
    label_studio = LabelStudio(settings.label_studio_url, settings.label_studio_api_key.get_secret_value())
    if not label_studio.has_token:
        raise LabelStudioError("a project is read with a key of its member; set LABEL_STUDIO_API_KEY")
    try:
        project = label_studio.project(number)
        total = project.get("task_number")
        pictures = image_store(settings, label_studio)
        tasks = (_task(raw) for raw in label_studio.tasks_with_annotations(number))
        surfaces = read_surfaces(project["label_config"])
    except BaseException:
        label_studio.close()
        raise
    return ExportSource(tasks, total if isinstance(total, int) else None, surfaces, pictures.read, label_studio.close)


def open_export(path: Path) -> ExportSource:
    """Return an export (JSON or JSON_MIN) as a source. ``path`` is its file or its folder. Raises DatasetError and ConfigError."""
    path = export_file(path)
    raw, xml = read_export(path), read_config_text(path)
    check_tasks(raw, path)
    tasks = _of_json(raw) if all(map(is_json, raw)) else _of_min(raw)
    if xml is not None:
        surfaces = read_surfaces(xml)
    else:
        surfaces = Surfaces(any_image=f"${find_picture_key([one for task in tasks for one in task.annotations], path)}")
    return ExportSource(tasks, len(tasks), surfaces, lambda reference, _: _read_file(reference, path.parent))


def _of_json(raw: Sequence[Mapping[str, Any]]) -> list[TaskToExport]:
    return [_task(task) for task in raw]


def _task(raw: Mapping[str, Any]) -> TaskToExport:
    data = raw.get("data")
    annotations = tuple(read_annotations({**raw, "annotations": raw.get("annotations") or []}, "")) if isinstance(data, dict) else ()
    return TaskToExport(row_id(raw.get("id")) or 0, data if isinstance(data, dict) else {}, annotations)


def _of_min(raw: Sequence[Mapping[str, Any]]) -> list[TaskToExport]:
    found: dict[int, list[ExportedAnnotation]] = defaultdict(list)
    for index, record in enumerate(raw):
        for one in read_annotations(record, "", index):
            found[one.task].append(one)
    return [TaskToExport(number, annotations[0].data, tuple(annotations)) for number, annotations in found.items()]


def _read_file(reference: str, folder: Path) -> bytes:
    file = find_picture(reference, folder)
    try:
        return file.read_bytes()
    except OSError as error:
        raise TaskError(f"its picture cannot be read ({error.strerror})") from error
