"""What a run's comparison found, as the training process writes it and the server reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from backend.errors import LearningError
from backend.learning.gate import PairedSample
from backend.learning.run_folder import RunFolder, is_number


def read_pair(record: Mapping[str, Any]) -> PairedSample:
    """Return the pair of a record of ``evaluation.json``, which may have further keys. Raises LookupError or TypeError."""
    how = {name: record.get(name) is True for name in ("accepted", "unassisted")}
    return PairedSample(record["label"], record["champion"], record["challenger"], record["image"], **how)


def read_evaluation(folder: RunFolder) -> tuple[dict[str, Any], list[PairedSample]]:
    """Return the content of ``evaluation.json`` and its pairs. Raises LearningError if it is damaged, OSError if it cannot be read."""
    try:
        found = json.loads(folder.evaluation.read_text(encoding="utf-8"))
        pairs = [read_pair(one) for one in found["pairs"]]
        whole = all(is_number(one.champion) and is_number(one.challenger) for one in pairs)
        whole = whole and all(found[side] is None or is_number(found[side]) for side in ("golden_champion", "golden_challenger"))
        if whole and isinstance(found["pictures"], list):
            return found, pairs
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    raise LearningError(f"{folder.evaluation} is damaged; start another run")
