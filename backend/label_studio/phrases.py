"""What to find in a task, and what the annotator pointed at: phrases with their labels, and points and boxes."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from backend.errors import TaskError
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.task_values import find
from backend.label_studio.wire import Region, Task
from sam4mllm.clicks import Clicks
from sam4mllm.values import MAX_PHRASE, check_phrase

MAX_PHRASES = 32
MAX_CLICKS = 200
MAX_NUMBER = 1e15
"""A number in a task's data whose absolute value is below this counts as a phrase, as it is written. Others, and NaN, raise TaskError."""
_SEPARATOR = re.compile(r"[;；\r\n]")


@dataclass(frozen=True)
class Wanted:
    """A phrase and the label that its regions get; None leaves the choice to the reviewer."""

    phrase: str
    label: str | None


@dataclass(frozen=True)
class Pointed:
    """An annotator's points and boxes in percent of the image, as Label Studio sends them. :meth:`clicks` makes them pixels.

    ``points`` are (x, y, positive), ``boxes`` (x, y, width, height, rotation in degrees). ``label`` is that of the last point or box that
    has one.
    """

    points: tuple[tuple[float, float, bool], ...] = ()
    boxes: tuple[tuple[float, float, float, float, float], ...] = ()
    label: str | None = None

    def __bool__(self) -> bool:
        return bool(self.points or self.boxes)

    def clicks(self, width: int, height: int) -> Clicks:
        """Return the points and boxes in pixels of an image of that size; for a turned box, the upright box around it."""
        scale = np.array([width, height]) / 100
        points = (np.array([(x, y) for x, y, _ in self.points]).reshape(-1, 2) * scale).astype(np.float32)
        labels = np.array([int(positive) for *_, positive in self.points], np.int64)
        boxes = [_turned_box(np.array(box) * [*scale, *scale, 1]) for box in self.boxes]
        return Clicks(points, labels, np.array(boxes, np.float32).reshape(-1, 4))


def _turned_box(box: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """Return the upright box (x1, y1, x2, y2) around a turned one.

    ``box`` is (x, y, width, height, degrees), turned clockwise about its top left corner.
    """
    x, y, width, height, degrees = box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    xs = [x + right * width * cos - down * height * sin for right in (0, 1) for down in (0, 1)]
    ys = [y + right * width * sin + down * height * cos for right in (0, 1) for down in (0, 1)]
    return [min(xs), min(ys), max(xs), max(ys)]


def split_phrases(text: str, served: Collection[str] = ()) -> tuple[str, ...]:
    """Return the phrases of a text with tidied white space, each once. Semicolons and line breaks separate them. Raises PhraseError.

    ``served`` are phrases that were served before. A text that is among them as a whole, while none of its parts is, stays one phrase,
    because earlier releases did not split texts.
    """
    parts = tuple(dict.fromkeys(check_phrase(part) for part in _SEPARATOR.split(text) if part.strip()))
    whole = " ".join(text.split())
    return (whole,) if len(parts) > 1 and whole in served and not {*parts} & {*served} else parts


def typed_phrases(regions: Iterable[Region], config: LabelConfig, served: Collection[str] = ()) -> tuple[str, ...]:
    """Return the phrases of the last text in the prompt control, or none. Raises PhraseError, and TaskError for more than MAX_PHRASES."""
    found = split_phrases(_typed_text(regions, config), served)
    if len(found) > MAX_PHRASES:
        raise TaskError(f"{len(found)} descriptions were typed; at most {MAX_PHRASES} are answered")
    return found


def _typed_text(regions: Iterable[Region], config: LabelConfig) -> str:
    if config.prompt is None:
        return ""
    for region in reversed(list(regions)):
        if region.get("from_name") == config.prompt.name and region.get("type") == "textarea":
            value = region.get("value")
            text = value.get("text") if isinstance(value, dict) else None
            lines = [line for line in text if isinstance(line, str)] if isinstance(text, list) else [text] if isinstance(text, str) else []
            if lines and lines[-1].strip():
                return lines[-1].strip()
    return ""


def wanted(
    task: Task, config: LabelConfig, typed: Sequence[str], phrase_field: str, shown: str = "", served: Collection[str] = ()
) -> list[Wanted]:
    """Return the phrases of a task with their labels.

    These are the ``typed`` phrases, else those in the task's data under ``phrase_field``, else the phrase that was ``shown`` for the task,
    else the phrases of the config's labels: the project's own, or the labels' names. Of labels' phrases, those longer than MAX_PHRASE are
    left out and the first MAX_PHRASES of the rest are taken, labels with phrases of the project's own before the others. The field holds a
    text, a number, a list of them, or {label: text, number or list}. :func:`split_phrases` splits a text and says what ``served`` is.

    Raises TaskError if the field holds anything else or more than MAX_PHRASES phrases, or if there is nothing to look for. Raises
    PhraseError for a phrase that cannot be used.
    """
    if typed:
        return [Wanted(phrase, config.label_for(phrase)) for phrase in typed]
    found = _from_field(find(task.data, phrase_field), served)
    if len(found) > MAX_PHRASES:
        raise TaskError(f"the task's {phrase_field!r} holds {len(found)} phrases; at most {MAX_PHRASES} are answered")
    if found:
        return [Wanted(phrase, config.label_for(phrase) if label is None else _label_of(label, config)) for label, phrase in found]
    if shown:
        return [Wanted(shown, config.label_for(shown))]
    own_first = sorted(config.mask.labels, key=lambda label: label.value not in config.prompts)
    asked = ((phrase, label.value) for label in own_first for phrase in config.phrases_of(label))
    named = list(islice((Wanted(phrase, label) for phrase, label in asked if len(phrase) <= MAX_PHRASE), MAX_PHRASES))
    if not named:
        raise TaskError(f"there is nothing to look for: write a phrase into the task's {phrase_field!r}, or labels into the config")
    return named


def has_phrase(data: Mapping[str, Any], phrase_field: str) -> bool:
    """Whether a task's data holds a phrase of its own, however many.

    Raises TaskError if the field holds anything but phrases, and PhraseError for a phrase that cannot be used.
    """
    return bool(_from_field(find(data, phrase_field)))


def _from_field(value: object, served: Collection[str] = ()) -> list[tuple[str | None, str]]:
    """Pairs of the label that is given, if any, and a phrase."""
    if isinstance(value, Mapping):
        return [(str(label), phrase) for label, entry in value.items() for phrase in _phrases(entry, served)]
    return [(None, phrase) for phrase in _phrases(value, served)]


def _label_of(name: str, config: LabelConfig) -> str | None:
    return name if name in config.label_values else config.label_for(name)


def _phrases(value: object, served: Collection[str]) -> list[str]:
    """Return the phrases of a text or of a list of texts; None and blanks hold none. Raises TaskError and PhraseError."""
    entries = value if isinstance(value, list) else [value]
    # in tasks that were made from a table, an empty cell is null, and a text of digits, as a house number, is a number
    entries = [str(entry) if _is_number(entry) else entry for entry in entries if entry is not None]
    texts = [entry for entry in entries if isinstance(entry, str)]
    if len(texts) != len(entries):
        raise TaskError("a task's phrase is a text, a list of texts, or an object {label: text}")
    return list(dict.fromkeys(phrase for text in texts for phrase in split_phrases(text, served)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def pointed(regions: Sequence[Region], config: LabelConfig) -> Pointed:
    """Return what the config's controls for clicks and boxes made among the first MAX_CLICKS of an annotator's regions.

    Malformed regions and those of other controls are left out.
    """
    points: list[tuple[float, float, bool]] = []
    boxes: list[tuple[float, float, float, float, float]] = []
    label: str | None = None
    for region in regions[:MAX_CLICKS]:
        value = region.get("value")
        if not isinstance(value, dict):
            continue
        if config.keypoint and region.get("from_name") == config.keypoint.name:
            numbers = _numbers(value, "x", "y")
            if numbers is not None:
                points.append((numbers[0], numbers[1], region.get("is_positive") is not False))
        elif config.box and region.get("from_name") == config.box.name:
            numbers = _numbers(value, "x", "y", "width", "height")
            turn = _numbers(value, "rotation") or (0.0,)
            if numbers is not None and numbers[2] > 0 and numbers[3] > 0:
                boxes.append((numbers[0], numbers[1], numbers[2], numbers[3], turn[0]))
        else:
            continue
        label = _label(region, value, config) or label
    return Pointed(tuple(points), tuple(boxes), label)


def _label(region: Region, value: Mapping[str, Any], config: LabelConfig) -> str | None:
    names = value.get(str(region.get("type"))) or value.get("labels")
    known = (name for name in names if isinstance(name, str) and name in config.label_values) if isinstance(names, list) else iter(())
    return next(known, None)


def _numbers(value: Mapping[str, Any], *names: str) -> tuple[float, ...] | None:
    """Return the named percentages, or None if one is no number or far outside. A click may be dragged past the border."""
    found = [value.get(name) for name in names]
    if all(isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= 1000 for number in found):
        return tuple(float(number) for number in found if number is not None)
    return None
