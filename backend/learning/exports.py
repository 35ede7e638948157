"""Reading an export of Label Studio as examples for a dataset, by the same rules as the learning loop.

Brush strokes, bitmasks, polygons and ellipses are masks, whatever control drew them. Rectangles are masks only if the labelling config's
mask control draws rectangles or, without a config, if the export has no other masks; otherwise they are prompts. The phrase is what was
typed, else the task's own, else the label. Annotations without a mask are left out: an export does not say whether their reviewer saw that
there is no such object, or drew nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

from backend.corrections.log_records import Served, StoredAnnotation
from backend.corrections.reviews import Review, read_reviews
from backend.corrections.tables import KEPT, instant
from backend.errors import TaskError
from backend.label_studio.export_file import CONFIG, export_file, find_picture, read_config_text, read_export
from backend.label_studio.label_config import LabelConfig, read_label_config
from backend.label_studio.parameters import NO_PARAMETERS, Parameters
from backend.label_studio.region_parts import is_label_alone, page_of, without_text_labels
from backend.label_studio.wire import Region, row_id
from backend.learning.holdout import NEEDED, SHARE, is_held_out, threshold
from backend.learning.snapshot import HOLDOUT, TRAIN
from backend.settings import PROMPT_NAME, read_settings
from backend.support.places import place_of
from sam4mllm.data.pairs import LeftOut, PhrasedPicture, Reading, coco_origin
from sam4mllm.data.readers import Reader
from sam4mllm.errors import DatasetError, ImageError
from sam4mllm.images import PICTURE_SUFFIXES, image_sha256

SPLIT = "annotation"
"""The split under which annotations that are left out are counted: their true split depends on the picture's file, which may be missing."""
OF_MIN = frozenset(("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"))
"""Keys of JSON_MIN that are not the task's data."""
OUTLINES: dict[str, frozenset[str]] = {
    "brushlabels": frozenset(("rle",)),
    "bitmasklabels": frozenset(("imageDataURL",)),
    "polygonlabels": frozenset(("points",)),
    "ellipselabels": frozenset(("radiusX", "radiusY")),
}
RECTANGLE = "rectanglelabels"
"""The type of a rectangle's region. JSON_MIN does not state types, so a region's type follows from the keys of its value."""
_RECTANGLE = frozenset(("x", "y", "width", "height"))


def label_studio_reader() -> Reader:
    """The reader for ``sam4mllm data prepare label-studio``.

    SAM4MLLM_PHRASE_FIELD is the key of a task's phrase, SAM4MLLM_PROMPT_CONTROL the TextArea with what was typed.
    """

    def read(source: Path) -> Reading:
        settings = read_settings()
        return read_label_studio(source, settings.phrase_field, settings.prompt_control)

    return Reader(read)


def read_label_studio(source: Path, phrase_field: str, prompt_control: str = PROMPT_NAME) -> Reading:
    """Return one example for each phrase of each task of an export, and the annotations that are left out, with the reason of each.

    Args:
        source: the export's file, or a folder that holds no other JSON file.
        phrase_field: the key of a task's data that holds its phrase.
        prompt_control: the name of the TextArea with what was typed; any other holds remarks.

    Raises:
        DatasetError: the export is missing or is no export, a labelling config is needed beside it or cannot be read, or it is JSON_MIN of
            tasks with several pages.
        ConfigError: the labelling config beside it cannot be used.
    """
    path = export_file(source)
    export = _read(read_export(path), read_config_text(path), path, prompt_control)
    reviews = read_reviews(export, phrase_field, prompt_control=prompt_control)
    said = {review.annotation for review in reviews.reviews}
    refused = {one.annotation: one.reason for one in reviews.refused}
    items: list[PhrasedPicture | LeftOut] = []
    for one in export.annotations:
        if one.number not in said or one.number in refused:  # one page of an annotation may be refused, and others not
            items.append(LeftOut(SPLIT, f"label-studio:{one.project}:{one.task}:{one.number}", _reason(one, refused)))
    pictures = _Pictures(path.parent)
    places = {place_of(name) for review in reviews.reviews if (name := pictures.name(review.image))}
    at = threshold(places) if len(places) >= NEEDED else SHARE  # too few to judge a version by: four fifths are learned from
    items += [_pair(review, pictures, at) for review in reviews.reviews]
    return Reading(items, len(items))


def _reason(one: ExportedAnnotation, refused: Mapping[int, str]) -> str:
    if one.skipped:
        return "it was skipped"
    if one.number in refused:
        return refused[one.number]
    if one.drawings:
        return "another annotation of its task, a ground truth or a newer one, has its phrases"
    return "it has no mask, which does not say that there is no such object"


class _Pictures:
    """The files of an export's pictures. The SHA-256 of each is remembered, so that none is read twice for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[Path, str] = {}

    def find(self, image: str) -> tuple[Path, str]:
        """A picture's file and its SHA-256. Raises TaskError or ImageError."""
        file = find_picture(image, self._folder)
        return file, self._names.get(file) or self._names.setdefault(file, image_sha256(file))

    def name(self, image: str) -> str:
        """Return a picture's SHA-256, or an empty text if its file cannot be found or read."""
        try:
            return self.find(image)[1]
        except (TaskError, ImageError):
            return ""


def _pair(review: Review, pictures: _Pictures, at: float) -> PhrasedPicture | LeftOut:
    source = f"label-studio:{review.project}:{review.task}:{review.annotation}"
    try:
        file, name = pictures.find(review.image)
    except (TaskError, ImageError) as error:
        return LeftOut(SPLIT, f"{source} {ascii(review.image)[:80]}", str(error))
    split = HOLDOUT if is_held_out(name, at) else TRAIN
    size, source = (review.height, review.width), f"{source}:{review.outcome}"
    origin, label = coco_origin(file.name), review.label or None
    return PhrasedPicture(file, review.phrase, review.instances, split, source, origin, size, label=label)


# -- the export as a log of annotations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExportedAnnotation:
    """One annotation of an export, JSON or JSON_MIN.

    ``number`` is its id; this, ``project`` and ``task`` are substitutes where the export has no ids. ``raw`` is its record, ``data`` the
    task's data, ``drawings`` are its regions with a mask or a rectangle, ``texts`` the regions with typed phrases.
    """

    number: int
    project: int
    task: int
    raw: Mapping[str, Any]
    data: Mapping[str, Any]
    drawings: tuple[Region, ...]
    texts: tuple[Region, ...]

    @property
    def skipped(self) -> bool:
        return self.raw.get("was_cancelled") is True


@dataclass(frozen=True)
class _Export:
    """An export in the role of the log (:class:`backend.corrections.reviews.Annotations`). It does not know what was served."""

    annotations: Sequence[ExportedAnnotation]
    config: LabelConfig
    config_texts: Callable[[ExportedAnnotation], tuple[str, ...]]
    """Returns the labelling configs to read an annotation with, the first that fits: some add labels that the project's config lacks."""

    def each_annotation(self) -> Iterator[StoredAnnotation]:
        for one in self.annotations:
            drawn = [{**region, "from_name": self.config.mask.name} for region in one.drawings]
            body = {name: one.raw.get(name) for name in KEPT} | {"result": [*drawn, *one.texts]}
            configs = self.config_texts(one)
            updated = instant(one.raw.get("updated_at"))
            state: Literal["submitted", "skipped"] = "skipped" if one.skipped else "submitted"
            yield StoredAnnotation(one.number, one.project, one.task, updated, updated, state, body, one.data, configs)

    def served(self, project: int, task: int) -> list[Served]:
        return []

    def parameters(self, project: int) -> Parameters:
        """Return NO_PARAMETERS: an export does not hold a project's extra parameters."""
        return NO_PARAMETERS

    def withheld(self, project: int, task: int) -> bool:
        return False


def _read(tasks: Sequence[Mapping[str, Any]], xml: str | None, path: Path, prompt_control: str) -> _Export:
    config = None if xml is None else read_label_config(xml, prompt_control)
    prompt = prompt_control if config is None else config.prompt.name if config.prompt else ""
    check_tasks(tasks, path)
    whole = [one for index, task in enumerate(tasks) for one in read_annotations(task, prompt, index)]
    if config is not None:
        whole = [_of_image(one, config.image) for one in whole]
        boxes = config.mask.drawing == "RectangleLabels"
    else:
        boxes = not any(region["type"] in OUTLINES for one in whole for region in one.drawings)
    annotations = [_without_prompts(one, boxes) for one in whole]
    if config is None or xml is None:
        key, labels = find_picture_key(annotations, path), _labels_of(annotations)
        own = read_label_config(_config_of(f"${key}", labels, prompt_control), prompt_control)
        # an annotation's own labels come first: where a config has many labels, only the first ones are asked for
        return _Export(annotations, own, lambda one: (_config_of(f"${key}", {**_labels_of([one]), **labels}, prompt_control),))
    if config.paged and any(not is_json(task) for task in tasks):
        raise DatasetError(f"{path} is JSON_MIN, which does not say on which page a mask is; export the project as JSON")
    given, known = xml, config
    # labels may have been renamed since: an annotation with a label that the config lacks is read with a config of its own labels
    return _Export(annotations, config, lambda one: (given, _config_of(known.image_value, _labels_of([one]), prompt, known)))


def check_tasks(tasks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Raise DatasetError unless these are tasks with their annotations, or annotations of JSON_MIN."""
    if not all(is_json(task) or "annotation_id" in task for task in tasks):
        raise DatasetError(f"{path} has tasks without annotations; export the project as JSON or JSON_MIN")


def read_annotations(task: Mapping[str, Any], prompt: str, index: int = 0) -> Iterator[ExportedAnnotation]:
    """Yield the annotations of a task, or the one annotation that a record of JSON_MIN is.

    ``prompt`` is the name of the control in which phrases are typed. ``index`` is the place of the task or record in the export; ids that a
    record of JSON_MIN lacks are made from it.
    """
    return _of_json(task, prompt) if is_json(task) else _of_min(task, index, prompt)


def is_json(task: Mapping[str, Any]) -> bool:
    """Whether it is a task as JSON exports and the API have it."""
    return isinstance(task.get("data"), dict) and isinstance(task.get("annotations"), list)


def _of_json(task: Mapping[str, Any], prompt: str) -> Iterator[ExportedAnnotation]:
    for raw in task["annotations"]:
        if isinstance(raw, dict):
            result = raw.get("result")
            regions = [region for region in result if isinstance(region, dict)] if isinstance(result, list) else []
            texts = tuple(region for region in regions if region.get("type") == "textarea" and region.get("from_name") == prompt)
            numbers = (row_id(raw.get("id")) or -1, row_id(task.get("project")) or 0, row_id(task.get("id")) or 0)
            yield ExportedAnnotation(*numbers, raw, task["data"], _drawings(without_text_labels(regions)), texts)


def _of_min(record: Mapping[str, Any], index: int, prompt: str) -> Iterator[ExportedAnnotation]:
    """A record of JSON_MIN is an annotation, with the values of its regions under the names of their controls."""
    controls = {name: value for name, value in record.items() if name not in OF_MIN and _is_control(value)}
    regions = [
        {**{name: value[name] for name in ("original_width", "original_height") if name in value}, "from_name": control, "value": value}
        for control, values in controls.items()
        for value in values
        if not is_label_alone(value)
    ]
    typed = record.get(prompt) if prompt else None
    # one text is written alone, several as a list
    said = [line for line in (typed if isinstance(typed, list) else [typed]) if isinstance(line, str) and line.strip()]
    texts: tuple[Region, ...] = ({"type": "textarea", "from_name": prompt, "value": {"text": said}},) if said else ()
    data = {name: value for name, value in record.items() if name not in OF_MIN and name not in controls and (name != prompt or not texts)}
    numbers = (row_id(record.get("annotation_id")) or -1 - index, 0, row_id(record.get("id")) or index)
    yield ExportedAnnotation(*numbers, record, data, _drawings(regions), texts)


def _is_control(value: object) -> bool:
    # a value that is only a label belongs to a text: JSON_MIN does not say to which region a value belongs
    drawn = [one for one in value if not is_label_alone(one)] if isinstance(value, list) else []
    return bool(drawn) and all(isinstance(one, dict) and "original_width" in one for one in drawn)


def _drawings(regions: Iterable[Region]) -> tuple[Region, ...]:
    """Return the regions that hold a mask or a rectangle, with ``type`` set to one of OUTLINES or RECTANGLE, and the label in ``labels``.

    Controls without labels of their own write two regions with one id or one shape; of these the one with a label is returned.
    """
    found: dict[str, Region] = {}
    for index, region in enumerate(regions):
        value = region.get("value")
        kind = _kind(value, region.get("type")) if isinstance(value, dict) else None
        if kind is None or not isinstance(value, dict):
            continue
        names: list[object] = next((value[name] for name in (kind, "labels") if isinstance(value.get(name), list)), [])
        number = str(region.get("id") or index)
        if number not in found or names:
            found[number] = {**region, "id": number, "type": kind, "value": {**value, "labels": names}}
    # JSON_MIN has no ids: there such a pair is known by its equal shape
    labelled = {_shape(region) for region in found.values() if region["value"]["labels"]}
    return tuple(region for region in found.values() if region["value"]["labels"] or _shape(region) not in labelled)


def _shape(region: Region) -> str:
    """What a region looks like, whatever it is labelled."""
    own = OUTLINES.get(region["type"], _RECTANGLE | {"rotation"})
    return json.dumps([region["type"], page_of(region), *(region["value"].get(name) for name in sorted(own))])


def _kind(value: Mapping[str, Any], stated: object) -> str | None:
    """Return the type of a region by the keys of its value, else by the stated type; None if it is none that is read.

    A mask region without content keeps its type, so that its annotation is refused with a reason instead of losing an object silently.
    """
    outline = next((kind for kind, keys in OUTLINES.items() if keys <= value.keys()), None)
    named = next((kind for kind in OUTLINES if kind == stated or kind in value), None)
    return outline or named or (RECTANGLE if value.keys() >= _RECTANGLE else None)


def _of_image(one: ExportedAnnotation, image: str) -> ExportedAnnotation:
    """Return the annotation without regions on other pictures of the task than ``image``. In JSON_MIN no region names its picture."""
    drawings = tuple(region for region in one.drawings if region.get("to_name", image) == image)
    return replace(one, drawings=drawings)


def _without_prompts(one: ExportedAnnotation, boxes: bool) -> ExportedAnnotation:
    return replace(one, drawings=tuple(region for region in one.drawings if boxes or region["type"] != RECTANGLE))


def find_picture_key(annotations: Sequence[ExportedAnnotation], path: Path) -> str:
    """Return the key of the tasks' data that holds the picture: ``image`` if that holds one anywhere, else the only key that does.

    Raises DatasetError if several Image tags have regions, or if there is no such key.
    """
    images = {str(region["to_name"]) for one in annotations for region in one.drawings if "to_name" in region}
    keys = dict.fromkeys(key for one in annotations for key, value in one.data.items() if _is_picture(value))
    if len(images) > 1 or (len(keys) != 1 and "image" not in keys):
        raise DatasetError(
            f"{path} does not say which picture is labelled; copy the project's labelling config to {path.with_name(CONFIG)}"
        )
    return "image" if "image" in keys else next(iter(keys))


def _labels_of(annotations: Iterable[ExportedAnnotation]) -> dict[str, None]:
    names = (name for one in annotations for region in one.drawings for name in region["value"]["labels"])
    return dict.fromkeys(name for name in names if isinstance(name, str) and name.strip())


def _config_of(picture: str, labels: Iterable[str], prompt: str, given: LabelConfig | None = None) -> str:
    """Return a labelling config, as XML, with these labels for an export; the first labels are the phrases of tasks without their own.

    ``picture`` is the Image tag's value and ``prompt`` the name of the TextArea. The name of the mask control, and whether tasks have
    several pages, are taken from ``given``, if there is one.
    """
    shown = "".join(f"<Label value={quoteattr(name)}/>" for name in labels)
    source = "valueList" if given is not None and given.paged else "value"
    typed = f'<TextArea name={quoteattr(prompt)} toName="image"/>' if prompt else ""
    mask = f'<BrushLabels name={quoteattr(given.mask.name if given else "mask")} toName="image">{shown}</BrushLabels>'
    return f'<View><Image name="image" {source}={quoteattr(picture)}/>{typed}{mask}</View>'


def _is_picture(value: object) -> bool:
    if not isinstance(value, str):
        return False
    path = value.partition("?d=")[2 if "?d=" in value else 0].partition("?")[0]
    return path.lower().endswith(PICTURE_SUFFIXES)
