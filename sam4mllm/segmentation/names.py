"""How a segmenter is named where a detector stands before it: ``DETECTOR+SEGMENTER``."""

from __future__ import annotations

import re
from pathlib import Path

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def split_name(source: str) -> tuple[str | None, str]:
    """The detector, or None, and the segmenter that a name stands for.

    A plus sign may be a part of a path, too: what stands before the one that parts them is a folder on this machine or a hub id.
    """
    if not Path(source).exists():
        for mark in re.finditer(r"\+", source):
            detector = source[: mark.start()]
            if HUB_ID.fullmatch(detector) or Path(detector).is_dir():
                return detector, source[mark.end() :]
    return None, source
