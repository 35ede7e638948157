"""An export from beginning to end: tasks to pictures and objects, each picture once, all or nothing on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from backend.errors import ExportError
from backend.export.formats import IMAGES, Coco, Png, Writer, YoloSeg
from backend.export.objects import Lost, Object, Page, Passed, read_pages
from backend.export.pictures import ExportedPicture, Names, PictureFile, read_upright
from backend.export.tasks import ExportSource
from sam4mllm.durable import whole_folder
from sam4mllm.errors import Sam4mllmError

T = TypeVar("T")
Track = Callable[[Iterable[T], int | None], Iterable[T]]
FormatName = Literal["coco", "yolo-seg", "png"]
FORMATS: dict[FormatName, Callable[[Path], Writer]] = {"coco": Coco, "yolo-seg": YoloSeg, "png": Png}


@dataclass(frozen=True)
class ExportPlan:
    """What to write. ``every``: all submitted annotations of a task are exported, not only its ground truth or newest one. ``images``: the
    pictures are written, too.
    """

    folder: Path
    format: FormatName
    every: bool = False
    images: bool = True


@dataclass
class Summary:
    """The result of an export.

    ``lost`` are regions, pictures and tasks that could not be exported. ``passed`` counts what was left out on purpose. ``repeated`` counts
    masks that their picture already had in the same category. ``notes`` are those of the format's writer.
    """

    folder: Path
    pictures: int = 0
    objects: int = 0
    repeated: int = 0
    categories: list[str] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    passed: Passed = field(default_factory=Passed)
    notes: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "pictures": self.pictures,
            "objects": self.objects,
            "repeated": self.repeated,
            "categories": self.categories,
            "lost": [vars(one) for one in self.lost],
            "left_out": self.passed.counts,
            "notes": self.notes,
        }


def run_export(source: ExportSource, plan: ExportPlan, max_pixels: int, track: Track[Any]) -> Summary:
    """Write the masks of ``source`` to a new folder, or an empty one. After an error nothing that was written is left.

    A region, picture or task that cannot be exported is no error: it is listed in the summary. ``track`` gets the tasks and their number,
    and returns them to iterate over, as a progress bar does. Raises ExportError if the folder holds something or cannot be written, and
    another Sam4mllmError if the source cannot be read.
    """
    if plan.folder.exists() and (not plan.folder.is_dir() or any(plan.folder.iterdir())):
        raise ExportError(f"{plan.folder} already holds something; choose a new folder")
    summary = Summary(plan.folder)
    try:
        with whole_folder(plan.folder) as temporary:
            run = _Run(source, plan, max_pixels, temporary, summary)
            count = 0
            for count, task in enumerate(track(source.tasks, source.total), 1):  # noqa: B007 – wanted afterwards
                for page in read_pages(task, source.surfaces, plan.every, max_pixels, summary.lost, summary.passed):
                    run.write(page)
            if source.total is not None and count < source.total:
                reason = f"{source.total - count:,} tasks were not listed; the project changed meanwhile, export it again"
                summary.lost.append(Lost(0, 0, "", reason))
            run.close()
    except OSError as error:
        raise ExportError(f"{plan.folder} cannot be written ({error.strerror}); free space or choose another folder") from error
    return summary


class _Run:
    """The state of a running export: the pictures that are already written, by their references, and the categories so far."""

    def __init__(self, source: ExportSource, plan: ExportPlan, max_pixels: int, folder: Path, summary: Summary) -> None:
        self._source, self._plan, self._max_pixels, self._summary = source, plan, max_pixels, summary
        self._folder = folder
        self._writer = FORMATS[plan.format](folder)
        self._names = Names()
        self._pictures: dict[str, ExportedPicture] = {}
        self._seen: set[tuple[int, str, str]] = set()
        summary.categories = [label.value for label in source.surfaces.labels]
        self._places = {name: place for place, name in enumerate(summary.categories)}
        if plan.images:
            (folder / IMAGES).mkdir()

    def write(self, page: Page) -> None:
        picture = self._pictures.get(page.reference) or self._add_picture(page)
        if picture is not None:
            objects = [self._placed(one) for one in page.objects if self._fits(one, picture)]
            self._writer.add(picture, objects)
            self._summary.objects += len(objects)

    def close(self) -> None:
        self._writer.close(self._summary.categories)
        self._summary.notes = dict(self._writer.notes)

    def _placed(self, one: Object) -> tuple[Object, int]:
        """Return the object and the place of its category. A category that the config does not have is added at the end."""
        if one.category not in self._places:
            self._places[one.category] = len(self._places)
            self._summary.categories.append(one.category)
        return one, self._places[one.category]

    def _add_picture(self, page: Page) -> ExportedPicture | None:
        """Write a picture that is not there yet, and return it.

        If its file is not to be written or cannot be read, its masks are exported without it, and their size is taken for the picture's.
        Return None if there is no mask either.
        """
        file: PictureFile | None = None
        if self._plan.images:
            try:
                file = read_upright(self._source.read_picture(page.reference, page.task), self._max_pixels)
            except Sam4mllmError as error:
                self._summary.lost.append(Lost(page.task, 0, "", f"the picture is not there: {error}"))
        sizes = [(file.height, file.width)] if file else [one.size for one in page.objects]
        if not sizes:
            return None
        name = self._names.choose(page.reference, page.task, file.ending if file else "")
        picture = ExportedPicture(len(self._pictures) + 1, name, page.reference, *sizes[0])
        if file is not None:
            (self._folder / IMAGES / name).write_bytes(file.data)
        self._pictures[page.reference] = picture
        self._summary.pictures += 1
        return picture

    def _fits(self, one: Object, picture: ExportedPicture) -> bool:
        if one.size != (picture.height, picture.width):
            reason = f"it was drawn on {one.size[1]} x {one.size[0]} pixels, and its picture has {picture.width} x {picture.height}"
            self._summary.lost.append(Lost(one.task, one.annotation, one.region, reason))
            return False
        key = (picture.number, one.category, one.mask["counts"])
        self._summary.repeated += key in self._seen
        if key in self._seen:
            return False
        self._seen.add(key)
        return True
