"""Joins regions that Label Studio sends in parts, and splits those of several pages.

The rest of the backend reads whole regions, page by page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from backend.errors import FetchError, TaskError
from backend.label_studio.label_config import UNTYPED_TAGS, LabelConfig
from backend.label_studio.wire import Region, prediction
from sam4mllm.errors import ImageError

_UNTYPED = frozenset(tag.lower() for tag in (*UNTYPED_TAGS, "Ellipse"))


def join_labels(regions: Iterable[Region], config: LabelConfig) -> tuple[Region, ...]:
    """Return the regions, with those of controls without labels of their own in the form that controls with labels send.

    For a ``Brush`` beside ``Labels``, Label Studio sends two regions with one id: ``brush`` with the mask, and ``labels`` with the label
    (and the mask again). They become one region of the type ``brushlabels``. Other regions stay as they are.
    """
    given = tuple(regions)
    source = config.mask.labelled_by
    labels = {
        region.get("id"): region["value"].get("labels")
        for region in given
        if source and region.get("from_name") == source and isinstance(region.get("id"), str) and isinstance(region.get("value"), dict)
    }
    joined = []
    for region in given:
        kind, value, number = region.get("type"), region.get("value"), region.get("id")
        if source and region.get("from_name") == source:
            continue
        if not isinstance(kind, str) or kind not in _UNTYPED or not isinstance(value, dict):
            joined.append(region)
            continue
        names = labels.get(number) if isinstance(number, str) else None
        names = names if isinstance(names, list) else []
        joined.append({**region, "type": f"{kind}labels", "value": {**value, f"{kind}labels": names, "labels": names}})
    return tuple(joined)


def without_text_labels(regions: Iterable[Region]) -> tuple[Region, ...]:
    """Return the regions without those that only give a label to a text.

    When the answer's line arrives, Label Studio's editor gives it the label that is chosen at that moment. This makes a region that has the
    line's id but no drawing and no size; the line itself may never be saved. A mask that shares its id with a text of its own stays.
    """
    given = tuple(regions)
    texts = {_id_of(region) for region in given if region.get("type") == "textarea"}
    drawn = {_id_of(region) for region in given if region.get("type") != "textarea" and not is_label_alone(region.get("value"))}

    def is_of_text(region: Region) -> bool:
        alone = is_label_alone(region.get("value"))
        return alone and (_id_of(region) in texts or ("original_width" not in region and _id_of(region) not in drawn))

    return tuple(region for region in given if not is_of_text(region))


def _id_of(region: Region) -> str:
    return str(region.get("id"))


def is_label_alone(value: object) -> bool:
    """Whether a region's value holds nothing but lists of labels (keys that end in ``labels``), and perhaps text: no coordinates or mask.
    A value with any other key, ``choices`` for example, gives False.
    """
    names = [str(name) for name in value if name != "text"] if isinstance(value, dict) else []
    return bool(names) and all(name.endswith("labels") for name in names)


def page_of(region: Region) -> int:
    """The page that a region is on, from 0; one that does not say is on the first, as in Label Studio."""
    index = region.get("item_index")
    return index if isinstance(index, int) and not isinstance(index, bool) and index >= 0 else 0


def on_page(regions: Iterable[Region], page: int) -> tuple[Region, ...]:
    """A page's regions, and those of text, which are about all pages."""
    return tuple(region for region in regions if region.get("type") == "textarea" or page_of(region) == page)


@contextmanager
def naming_page(page: int | None) -> Iterator[None]:
    """Put "page N", counted from 1, before the text of a TaskError, FetchError or ImageError from the block. ImageError becomes TaskError.

    ``page`` counts from 0. It is None in a task of one picture, whose errors stay as they are.
    """
    try:
        yield
    except (TaskError, FetchError, ImageError) as error:
        if page is None:
            raise
        kind = FetchError if isinstance(error, FetchError) else TaskError
        raise kind(f"page {page + 1}: {error}") from error


def join_pages(answers: Sequence[tuple[int, bytes]], config: LabelConfig) -> bytes:
    """Join the predictions of pages into one: with all regions, the lowest score, and one line of text for the annotator.

    ``answers`` are pairs of a page's number, from 0, and its prediction as JSON; there is at least one. The version is that of the last.
    """
    predictions = [(page, json.loads(answer)) for page, answer in answers]
    lines: list[str] = []
    regions: list[Region] = []
    read: Region | None = None
    for page, found in predictions:
        for region in found["result"]:
            if config.answer is not None and region["from_name"] == config.answer.name:
                read = read or region
                lines += [f"page {page + 1}: {text}" for text in region["value"]["text"]]
            else:
                regions.append(region)
    if read is not None:
        regions.append({**read, "value": {"text": ["; ".join(lines)]}})
    score = min(found["score"] for _, found in predictions)
    return json.dumps(prediction(regions, score, predictions[-1][1]["model_version"]), separators=(",", ":")).encode()
