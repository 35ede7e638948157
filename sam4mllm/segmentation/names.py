"""Names of a segmenter with a detector before it, ``DETECTOR+SEGMENTER``, and how they are split."""

from __future__ import annotations

import re
from pathlib import Path

_NAMED = re.compile(r"demo$|[\w-]+:")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def split_name(source: str) -> tuple[str | None, str]:
    """Split a name into the detector's, or None, and the segmenter's.

    A plus sign may also be a part of a path, so a name that is a path on this machine is not split. The two are separated by the first plus
    sign that has before it a folder on this machine or a hub id, or behind it something that cannot be a path: ``demo``, or a kind and a
    colon. So the name is still split if the detector's folder has moved. If there is no such sign, the whole name is the segmenter's.
    """
    if not Path(source).exists():
        for mark in re.finditer(r"\+", source):
            detector, segmenter = source[: mark.start()], source[mark.end() :]
            if HUB_ID.fullmatch(detector) or Path(detector).is_dir() or (":" not in detector and _NAMED.match(segmenter)):
                return detector, segmenter
    return None, source
