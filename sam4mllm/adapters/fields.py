"""The names of an adapter's files, patterns of names in them, and checks of the values that they hold."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from typing import Any

from sam4mllm.errors import RegistryError

BASE = ""
"""The name that stands for no adapter, that is for the base model alone."""
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
FILES = (CONFIG, WEIGHTS)
SEGMENTER_CONFIG = "segmenter_config.json"
SEGMENTER_WEIGHTS = "segmenter_model.safetensors"
SEGMENTER_FILES = (SEGMENTER_CONFIG, SEGMENTER_WEIGHTS)
"""The files of the part of an adapter that changes the segmenter's mask decoder; FILES are those of the part that changes the MLLM. An
adapter has one part or both."""
MANIFEST = "manifest.json"
VERSION = re.compile(r"[a-z0-9.-]{1,32}-(?P<number>[1-9][0-9]{0,17})-[0-9a-f]{8}")
SLUG = re.compile(r"[a-z0-9.-]{1,32}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def matches(pattern: re.Pattern[str], value: object) -> bool:
    """Whether a value is text that a pattern covers whole."""
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, not a flag."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a finite number that fits a float, not a flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_time(value: object) -> bool:
    """Whether a value is an ISO 8601 time with its zone."""
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Raise RegistryError unless ``holds`` is true; ``wanted`` says what the field ``name`` should be instead of ``value``."""
    if not holds:
        raise RegistryError(f"{name} must be {wanted}, not {shown(value)}")


def shown(value: object) -> str:
    """Return the ``repr`` of any value, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def parse_object(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object; ``name`` is the name of the file that the text is from. Raises RegistryError if it is not an object."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{name} is not valid JSON; restore it") from error
    if not isinstance(values, dict):
        raise RegistryError(f"{name} is not a JSON object; restore it")
    return values
