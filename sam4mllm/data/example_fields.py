"""Checks a line of a dataset field by field; the line is not trusted, because anybody may have written it."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Any, NoReturn, TypeGuard

import numpy as np

from sam4mllm.data.examples import IMAGES, Example, ExampleInstance
from sam4mllm.errors import DatasetError, MaskCodecError
from sam4mllm.prompts.answer_text import has_thought_tag
from sam4mllm.run_lengths import Rle, rle_area

MAX_INSTANCES = 1_000
"""The most instances of an example. A crowded picture has a few hundred, and each takes the memory of a whole mask."""

MAX_LABEL = 1_000
"""The most characters of a label; the labels in Label Studio's configs are a few words long."""

MAX_THOUGHT = 4_000
"""The most characters of a thought, about 1,000 tokens; by default a model may think for 512 tokens at most."""

_ANY = re.compile(r".*", re.DOTALL)
_SOMETHING = re.compile(r".*\S.*", re.DOTALL)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPLIT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ORIGIN = re.compile(r"[!-~]{0,128}")
_SOURCE_WITH_LABEL = re.compile(r"label-studio:\d+:\d+:-?\d+:[a-z]+:(.*)", re.DOTALL)
"""Matches the ``source`` of corrections by releases that did not write the key ``label`` yet: project, task, annotation, outcome and label.

The label comes last, because it may hold colons.
"""


def parse_line(line: str) -> object:
    try:
        return json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DatasetError("it is not valid JSON; write one object a line") from error


def check_fields(fields: object, max_pixels: int) -> Example:
    """Return a line's fields as an example. ``max_pixels`` is the largest width × height that it may state.

    Each field is checked, but not the image's file, nor whether a box lies in the picture and fits its mask.

    Raises DatasetError, which says what is wrong; the caller adds the file and the line.
    """
    if not isinstance(fields, dict):
        raise DatasetError("it is not an object with image, phrase and instances")
    width, height = _side(fields, "width"), _side(fields, "height")
    if width * height > max_pixels:
        raise DatasetError(f"{width} x {height} pixels are more than the {max_pixels:,} that are allowed")
    instances = fields.get("instances")
    if not isinstance(instances, list) or len(instances) > MAX_INSTANCES:
        raise DatasetError(f"instances is a list of at most {MAX_INSTANCES:,} objects, empty if the phrase has no target")
    return Example(
        image=_relative(_text(fields, "image", _SOMETHING)),
        sha256=_text(fields, "sha256", _SHA256),
        width=width,
        height=height,
        phrase=_text(fields, "phrase", _SOMETHING),
        instances=tuple(_checked_instance(instance, index, height, width, max_pixels) for index, instance in enumerate(instances)),
        split=_text(fields, "split", _SPLIT),
        source=_text(fields, "source", _ANY),
        ignore=_checked_ignore(fields.get("ignore"), height, width, max_pixels),
        origin=_text(fields, "origin", _ORIGIN) if "origin" in fields else "",
        label=_label(fields),
        thought=_thought(fields.get("thought", "")),
    )


def _thought(text: object) -> str:
    if not is_thought(text):
        raise DatasetError(f"thought is text of at most {MAX_THOUGHT:,} characters without tags such as <think>, not {shown(text)}")
    return text.strip()


def is_thought(text: object) -> TypeGuard[str]:
    """Whether a dataset may hold ``text`` as a thought: a text of at most MAX_THOUGHT characters, possibly none, that UTF-8 can hold.

    Tags such as ``</think>`` are not allowed: in a model's answer they would end the thought too early.
    """
    return isinstance(text, str) and len(text) <= MAX_THOUGHT and _is_unicode(text) and not has_thought_tag(text)


def _label(fields: dict[str, Any]) -> str | None:
    if "label" not in fields:
        found = _SOURCE_WITH_LABEL.fullmatch(fields["source"])
        return found[1][:MAX_LABEL] or None if found else None
    label = fields["label"]
    if label is None or (isinstance(label, str) and 0 < len(label) <= MAX_LABEL and _is_unicode(label)):
        return label
    raise DatasetError(f"label is text of 1 to {MAX_LABEL:,} characters, or null where there is none, not {shown(label)}")


def _checked_ignore(rle: object, height: int, width: int, max_pixels: int) -> Rle | None:
    if rle is None:
        return None
    if not isinstance(rle, dict):
        raise DatasetError("ignore is the run lengths of a mask, or left out")
    try:
        rle_area(rle, height, width, max_pixels)
    except MaskCodecError as error:
        raise DatasetError(f"ignore: {error}") from error
    return Rle(size=[height, width], counts=rle["counts"])


def _checked_instance(fields: object, index: int, height: int, width: int, max_pixels: int) -> ExampleInstance:
    if not isinstance(fields, dict) or not isinstance(fields.get("rle"), dict):
        raise DatasetError(f"instance {index} is not an object with box and rle")
    box = fields.get("box")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_coordinate(number) for number in box):
        raise DatasetError(f"instance {index}: box is four finite numbers, x1, y1, x2, y2")
    if not (box[0] < box[2] and box[1] < box[3]):
        raise DatasetError(f"instance {index}: box {box} has no area; x1 < x2 and y1 < y2")
    try:
        area = rle_area(fields["rle"], height, width, max_pixels)
    except MaskCodecError as error:
        raise DatasetError(f"instance {index}: {error}") from error
    if area == 0:
        raise DatasetError(f"instance {index}: its mask is empty; leave the instance out")
    rle = Rle(size=[height, width], counts=fields["rle"]["counts"])
    return ExampleInstance(np.array(box, np.float32), rle)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _is_coordinate(number: object) -> bool:
    # 1e9 is far above every picture's side; the comparison also refuses NaN and infinity
    return isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 1e9


def _side(fields: dict[str, Any], name: str) -> int:
    side = fields.get(name)
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise DatasetError(f"{name} is the picture's in pixels, a whole number from 1 up, not {shown(side)}")
    return side


def _text(fields: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    text = fields.get(name)
    if not isinstance(text, str) or not pattern.fullmatch(text) or not _is_unicode(text):
        raise DatasetError(f"{name} is missing or not as it should be: {shown(text)}")
    return text


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8. Text from JSON may hold a lone surrogate (half of a character), which cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _relative(image: str) -> str:
    path = PurePosixPath(image)
    # a backslash or a colon is a separator or a drive on another system
    if path.is_absolute() or ".." in path.parts or any(mark in image for mark in "\\:\0"):
        raise DatasetError(f"the image {shown(image)} is not a path inside the dataset's folder, such as {IMAGES}/ab12.png")
    return image
