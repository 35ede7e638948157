"""Whether reviewers agree less with a version since it was promoted than with the one before: then that one serves again.

Agreement is the IoU of what was served and what the reviewer made of it. It is followed by an exponentially weighted moving average, which
notices a small lasting drop sooner than a plain mean, and forgets a bad day (Roberts 1959).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from backend.reviews import Review
from sam4mllm.adapters import Manifest
from sam4mllm.errors import Sam4mllmError

log = logging.getLogger(__name__)

WEIGHT = 0.2
"""Of the newest agreement in the average, the usual choice for small shifts (Montgomery, Introduction to Statistical Quality Control)."""
SIGMAS = 3.0
"""Distance of the control limit from the mean, in standard deviations of the average: crossed by chance once in about 560 reviews."""
BASELINE = 20
"""Reviews of the former version from which its limit is known."""
LEAST = 5
"""Reviews since the promotion before anything is concluded."""


@dataclass(frozen=True)
class Control:
    """The moving average of agreement, and the limit below which it must not fall."""

    average: float
    limit: float
    reviews: int

    @property
    def lost(self) -> bool:
        return self.reviews >= LEAST and self.average < self.limit


def control(before: Sequence[float], since: Sequence[float]) -> Control | None:
    """Agreement since a promotion, in order of time, against that with the version before; None if that is not known well enough."""
    if len(before) < BASELINE:
        return None
    mean, spread = float(np.mean(before)), float(np.std(before, ddof=1))
    average = mean
    for agreement in since:
        average = WEIGHT * agreement + (1 - WEIGHT) * average
    return Control(average, mean - SIGMAS * spread * (WEIGHT / (2 - WEIGHT)) ** 0.5, len(since))


class Watch:
    """Rolls a version back that reviewers agree less with."""

    def __init__(self, champion: Callable[[], Manifest | None], rollback: Callable[[], Manifest | None]) -> None:
        self._champion = champion
        self._rollback = rollback
        self.state: Control | None = None

    def look(self, reviews: Iterable[Review]) -> bool:
        """Whether a version was rolled back. Raises RegistryError if it should be but cannot."""
        champion = self._champion()
        if champion is None:
            self.state = None
            return False
        ordered = sorted((one for one in reviews if one.iou is not None and one.version), key=lambda one: one.updated)
        before = [one.iou for one in ordered if _is_former(one.version, champion.parent)]
        since = [one.iou for one in ordered if one.version == champion.version]
        self.state = control([iou for iou in before if iou is not None], [iou for iou in since if iou is not None])
        if self.state is None or not self.state.lost:
            return False
        try:
            former = self._rollback()
        except Sam4mllmError as error:
            log.error("%s should be rolled back: %s", champion.version, error)
            raise
        log.warning(
            "%s rolled back to %s: reviewers' agreement fell to %.3f, below %.3f",
            champion.version,
            former.version if former else "the base model",
            self.state.average,
            self.state.limit,
        )
        return True


def _is_former(version: str, parent: str | None) -> bool:
    """Whether a version is the one that a champion came after; without a parent that is the base model, whose number is 0."""
    return version == parent if parent else version.rsplit("-", 2)[-2:-1] == ["0"]
