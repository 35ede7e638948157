"""Turns a task's annotations into the objects of its pictures, one for each region with a mask; unreadable regions are reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backend.corrections.tables import instant
from backend.errors import TaskError
from backend.export.surfaces import Surfaces
from backend.export.tasks import TaskToExport
from backend.label_studio.read_regions import read_mask
from backend.label_studio.region_ids import superseded
from backend.learning.exports import RECTANGLE, ExportedAnnotation
from sam4mllm.errors import Sam4mllmError
from sam4mllm.run_lengths import Rle, to_rle

UNLABELLED = "unlabelled"
"""The category of objects without a label: left out, they would be background."""


@dataclass(frozen=True)
class Object:
    """A region's mask, with where it comes from; ``labels`` are all of its labels, of which the first is its category."""

    task: int
    annotation: int
    region: str
    labels: tuple[str, ...]
    mask: Rle

    @property
    def category(self) -> str:
        return self.labels[0] if self.labels else UNLABELLED

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture that it was drawn on, upright, in pixels."""
        height, width = self.mask["size"]
        return height, width


@dataclass(frozen=True)
class Page:
    """A picture of a task, by its ``reference`` in the task's data, with its objects. The pictures of an annotation without any region are
    pages with no objects.
    """

    task: int
    reference: str
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class Lost:
    """A region, a picture or a task that could not be exported; ``reason`` says why, in one line.

    ``region`` is empty unless it is a region. A number of 0 means that the loss concerns no single task or annotation.
    """

    task: int
    annotation: int
    region: str
    reason: str


@dataclass
class Passed:
    """How much was left out on purpose, for example skipped annotations or rectangles that only asked the model: counts by kind, each
    described in words.
    """

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def read_pages(task: TaskToExport, surfaces: Surfaces, every: bool, max_pixels: int, lost: list[Lost], passed: Passed) -> list[Page]:
    """Return a task's pictures with the objects of its ground truth (the newest, if there are several), or else of its newest annotation;
    with ``every``, of all annotations. Skipped annotations never count.

    A picture is returned only if an object on it could be read, or if one of these annotations has no region. What cannot be read is added
    to ``lost``, and what is left out on purpose to ``passed``.
    """
    pages: dict[str, list[Object]] = {}
    for annotation in _standing(task, every, passed):
        replaced = superseded(annotation.drawings)
        for _ in replaced:
            passed.add("masks that a refinement replaced")
        standing = (region for region in annotation.drawings if str(region.get("id")) not in replaced)
        regions = [region for region in standing if not _is_prompt(region, surfaces, passed)]
        for region in regions:
            number = str(region.get("id"))
            try:
                reference = surfaces.picture(region, task.data)
                mask, *_ = read_mask(region, region["type"], max_pixels)
                found = Object(task.number, annotation.number, number, _labels(region["value"], surfaces), to_rle(mask))
            except Sam4mllmError as error:
                lost.append(Lost(task.number, annotation.number, number, str(error)))
            else:
                pages.setdefault(reference, []).append(found)
        if not regions:
            _add_empty(task, annotation, surfaces, pages, lost)
    return [Page(task.number, reference, tuple(objects)) for reference, objects in pages.items()]


def _standing(task: TaskToExport, every: bool, passed: Passed) -> list[ExportedAnnotation]:
    """Return the annotations to export: all submitted ones with ``every``, else the ground truth or the newest. The others are counted in
    ``passed``.
    """
    submitted = [one for one in task.annotations if not one.skipped]
    for _ in range(len(task.annotations) - len(submitted)):
        passed.add("skipped annotations")
    if not task.annotations:
        passed.add("tasks without an annotation")
    ranked = sorted(submitted, key=lambda one: (one.raw.get("ground_truth") is True, instant(one.raw.get("updated_at")), one.number))
    if every or len(ranked) < 2:
        return ranked
    for _ in ranked[:-1]:
        passed.add("annotations of tasks that have a ground truth or a newer one")
    return ranked[-1:]


def _is_prompt(region: Mapping[str, Any], surfaces: Surfaces, passed: Passed) -> bool:
    """Whether a region is a rectangle of a control with smart="true", drawn to ask the model; if so, count it in ``passed``."""
    found = region["type"] == RECTANGLE and region.get("from_name") in surfaces.prompts
    if found:
        passed.add("rectangles of a smart control, drawn to ask the model")
    return found


def _labels(value: Mapping[str, Any], surfaces: Surfaces) -> tuple[str, ...]:
    """A region's labels by their values in the config; Label Studio writes a label's alias in its place, if it has one."""
    names: Iterable[object] = value["labels"]
    return tuple(dict.fromkeys(surfaces.label_of(name) for name in names if isinstance(name, str) and name.strip()))


def _add_empty(
    task: TaskToExport, annotation: ExportedAnnotation, surfaces: Surfaces, pages: dict[str, list[Object]], lost: list[Lost]
) -> None:
    """Add the pictures of an annotation without regions: an annotator has looked at them, so that they belong to the export without
    objects, too.
    """
    try:
        for reference in surfaces.pictures(task.data):
            pages.setdefault(reference, [])
    except TaskError as error:
        lost.append(Lost(task.number, annotation.number, "", str(error)))
