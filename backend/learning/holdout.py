"""Which pictures are held out: a new version is judged by those, and learns from the others.

A picture's place from 0 to 1 follows from the content of its file. Those up to a threshold are held out::

    0          0.2                                  1
    |--held out-|-------------- learned from -------|      many pictures: a fifth
    |--------- the ten lowest ------|---------------|      twenty to fifty: ten of them

The threshold is kept and never rises, so that a picture that was once learned from is never held out later. When it falls, pictures that
were held out may be learned from. The same picture uploaded twice has one place, so it cannot be on both sides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from backend.errors import LearningError
from backend.learning.gate import SIGN_FLIP_PAIRS
from backend.support.places import place_of
from sam4mllm.durable import replace_file
from sam4mllm.errors import first_line

SHARE = 0.2
"""Share of the pictures that is held out once there are many, and the lowest threshold."""
LEAST = 10
"""Pictures held out where a fifth would be fewer. The gate needs at least eight (SIGN_FLIP_PAIRS), and of eight nearly all must be better.
"""
NEEDED = 2 * LEAST
"""Pictures from which a run can be judged: as many to learn from as are held out."""
WHOLE = 1.0
"""The threshold before anything was learned from."""
FILE = "holdout.json"


def threshold(places: Iterable[float], former: float = WHOLE) -> float:
    """Return the threshold for pictures with these ``places``, never above the ``former`` one.

    It is the place of the LEAST-th lowest, or SHARE if that is higher. Fewer pictures than LEAST leave the ``former`` one.
    """
    lowest = sorted(set(places))[:LEAST]
    return min(former, max(SHARE, lowest[-1] if len(lowest) == LEAST else WHOLE))


def is_held_out(image_sha256: str, at: float) -> bool:
    """Whether a picture is held out at a threshold."""
    return place_of(image_sha256) <= at


def count_missing(pictures: int, held_out: int) -> int:
    """How many more corrected pictures a run takes to be judged, about."""
    if pictures < NEEDED:
        return NEEDED - pictures
    return max(0, math.ceil((SIGN_FLIP_PAIRS - held_out) / SHARE))  # even where some were deleted, at least a fifth of new ones is held out


def standing(pictures: int, held_out: int) -> str:
    """Return a line on how many pictures are corrected and held out, and about how many more it takes until a run can be judged."""
    missing = count_missing(pictures, held_out)
    ahead = f"about {missing} more until a run can be judged" if missing else "a run can be judged"
    return f"{pictures} corrected picture{'s' * (pictures != 1)}, {held_out} held out, {ahead}"


@dataclass(frozen=True)
class Holdout:
    """The threshold of a home, in its file ``holdout.json``.

    ``former`` is used while no threshold is kept: SHARE if an earlier release, which kept none, has trained in this home, else WHOLE.
    """

    home: Path
    former: float = WHOLE

    def lower(self, image_sha256s: Iterable[str]) -> float:
        """Lower the threshold as far as the pictures with these hashes require, keep it and return it.

        Raises LearningError if the kept one is damaged, OSError if it cannot be written.
        """
        kept = self._read()
        at = threshold(map(place_of, image_sha256s), self.former if kept is None else kept)
        if at != kept:
            replace_file(self.home / FILE, json.dumps({"threshold": at}).encode())
        return at

    def expect(self, pictures: int) -> int:
        """How many of so many pictures are held out, about, if none was deleted. Raises LearningError as ``lower`` does."""
        kept = self._read()
        share = round(SHARE * pictures)
        return share if (self.former if kept is None else kept) == SHARE else max(min(pictures, LEAST), share)

    def _read(self) -> float | None:
        path = self.home / FILE
        if not path.exists():
            return None
        try:
            at = json.loads(path.read_text(encoding="utf-8"))["threshold"]
            if not isinstance(at, float) or not SHARE <= at <= WHOLE:
                raise ValueError(f"no threshold from {SHARE} to {WHOLE}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LearningError(f'{path} is damaged ({first_line(error)}); write {{"threshold": {SHARE}}} into it') from error
        return at
