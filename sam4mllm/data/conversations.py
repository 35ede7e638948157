"""Reads conversations about pictures in the LLaVA format; training mixes them in so that the model can still answer general questions.

A file holds a JSON list::

    [
        {
            "id": "000000033471",
            "image": "coco/train2017/000000033471.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\\nWhat are the colours of the bus?"},
                {"from": "gpt", "value": "The bus is white and red."},
            ],
        }
    ]

Images lie below one folder. The first question holds ``<image>`` once, before or after its text. Records without an image are counted and
skipped, because training needs a picture at the beginning of every conversation.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sam4mllm.errors import DatasetError

__all__ = ["Conversation", "Turn", "read_conversations"]

log = logging.getLogger(__name__)

PLACEHOLDER = "<image>"
MAX_TURNS = 1_000
"""The most questions that a record may have; the longest of LLaVA's own have a few dozen."""


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """What is said about a picture: ``image`` is its file."""

    image: Path
    turns: tuple[Turn, ...]


def read_conversations(path: Path, images: Path | None = None) -> list[Conversation]:
    """The conversations of a file that have a picture, in order, each checked; pictures are not opened.

    Args:
        path: the JSON file.
        images: the folder that the images' paths are relative to; the JSON file's own folder if None.

    Raises:
        DatasetError: the file cannot be read or has no conversation with a picture, a record is wrong, or a picture is missing. The
            message names the file and the record.
    """
    root = (path.parent if images is None else images).resolve()
    found, without = [], 0
    for number, record in enumerate(_read_list(path), 1):
        try:
            conversation = _checked(record, root)
        except DatasetError as error:
            raise DatasetError(f"{path}, record {number}: {error}") from error
        if conversation is None:
            without += 1
        else:
            found.append(conversation)
    if without:
        log.warning("%s: %d conversations without an image are passed over", path, without)
    if not found:
        raise DatasetError(f"{path} holds no conversation about an image; give a LLaVA file whose records have one")
    return found


def _read_list(path: Path) -> list[Any]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); give a JSON file in the LLaVA format") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not valid JSON; give a list of records in the LLaVA format") from error
    if not isinstance(records, list):
        raise DatasetError(f"{path} is not a list of records; give a file in the LLaVA format")
    return records


def _checked(record: object, root: Path) -> Conversation | None:
    """Return a record as a conversation, or None if it has no image.

    Raises DatasetError if the record is not in the format, or if its image is missing or not below ``root``. The texts of a record without
    an image are checked, too.
    """
    if not isinstance(record, dict):
        raise DatasetError("it is not an object with image and conversations")
    image = record.get("image")
    texts = list(_texts(record.get("conversations")))
    if image is None:
        return None
    texts[0] = _without_placeholder(texts[0])
    if any(PLACEHOLDER in text for text in texts):
        raise DatasetError(f"{PLACEHOLDER} stands more than once; a conversation has one image, in its first question")
    turns = tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))
    return Conversation(_image_path(image, root), turns)


def _texts(said: object) -> Iterator[str]:
    """Yield the texts of a record's ``conversations``, questions and answers alternating, without white space around them.

    Raises DatasetError if they do not alternate, there are none or more than MAX_TURNS questions, or one is empty or cannot be written as
    UTF-8.
    """
    if not isinstance(said, list) or not said or len(said) % 2 or len(said) > 2 * MAX_TURNS:
        raise DatasetError("conversations is a list of questions and answers in pairs")
    for place, one in enumerate(said):
        speaker = "gpt" if place % 2 else "human"
        if not isinstance(one, dict) or one.get("from") != speaker:
            raise DatasetError(f"turn {place + 1} must be from {speaker!r}; human and gpt speak by turns, and human begins")
        text = one.get("value")
        if not isinstance(text, str) or not text.strip() or any("\ud800" <= character <= "\udfff" for character in text):
            raise DatasetError(f"turn {place + 1} says nothing, or no text")
        yield text.strip()


def _without_placeholder(question: str) -> str:
    if question.count(PLACEHOLDER) != 1:
        raise DatasetError(f"the first question must hold {PLACEHOLDER} once")
    before, after = (part.strip() for part in question.split(PLACEHOLDER))
    if (before and after) or not (before or after):
        raise DatasetError(f"{PLACEHOLDER} must stand before or after the first question's text")
    return before or after


def _image_path(image: object, root: Path) -> Path:
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        raise DatasetError(f"image is not a path: {str(image)[:80]!r}")
    parts = PurePosixPath(image)
    if parts.is_absolute() or ".." in parts.parts:
        raise DatasetError(f"the image {image[:80]!r} is not a path below the folder of images")
    path = root / parts
    if not os.path.isfile(path):  # Path.is_file raises OSError for names that are too long
        raise DatasetError(f"the image {path} is missing; give the folder that the images' paths begin in")
    return path
