"""Identities: hashes of explicit JSON, and names. Two things have the same identity if, and only if, their JSON is the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path


def digest_of(parts: Mapping[str, object]) -> str:
    """The SHA-256, 64 hexadecimal digits, of the parts as JSON with sorted keys; a tuple counts as a list.

    Raises TypeError for values that JSON cannot hold and for keys that are not text, and ValueError for a number that is not finite.
    """
    _check_keys(parts)
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def slug(model: str) -> str:
    """Return the first part of a version's name, made from the last part of a model's path or hub id.

    It is in lower case. Each run of characters other than ``[a-z0-9.-]`` becomes a hyphen, hyphens at both ends are removed, and the rest
    is cut to 32 characters; ``model`` if nothing is left.
    """
    return re.sub(r"[^a-z0-9.-]+", "-", Path(model).name.lower()).strip("-")[:32] or "model"


def _check_keys(value: object) -> None:
    """Raise TypeError for a key that is not text, because json would write the keys 1 and "1" alike."""
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key of an identity must be text, not {key!r}")
            _check_keys(part)
    elif isinstance(value, list | tuple):
        for part in value:
            _check_keys(part)
