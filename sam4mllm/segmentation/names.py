"""How a segmenter is named where a detector stands before it: ``DETECTOR+SEGMENTER``."""

from __future__ import annotations

import re
from pathlib import Path

_NAMED = re.compile(r"demo$|[\w-]+:")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def split_name(source: str) -> tuple[str | None, str]:
    """The detector, or None, and the segmenter that a name stands for.

    A plus sign may be a part of a path, too. The one that parts them has a folder on this machine or a hub id before it, or behind it what
    can be no path: ``demo``, or a kind and a colon. So the name of a folder that has moved is parted alike.
    """
    if not Path(source).exists():
        for mark in re.finditer(r"\+", source):
            detector, segmenter = source[: mark.start()], source[mark.end() :]
            if HUB_ID.fullmatch(detector) or Path(detector).is_dir() or (":" not in detector and _NAMED.match(segmenter)):
                return detector, segmenter
    return None, source
