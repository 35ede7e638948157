"""Automatic rollback: if reviewers agree less with a version since its promotion than with the one before, the former one serves again.

Agreement is the IoU of what was served and what the reviewer made of it. It is tested after every review for as long as a version serves,
so a single limit would be crossed by chance in the end. Two values must be below their limits at once: an exponentially weighted moving
average, which reacts to a lasting drop soon and forgets a bad day (Roberts 1959), and the mean of all reviews since the promotion.

Simulated (``benchmarks/watch.py``) over 1,000 reviews of an equally good version, after 30 of the former one, it was rolled back in 1 of
100 trials if agreement is normally distributed, and in 8 if most masks are accepted as they are and some are all wrong. In these two cases,
a loss of 0.10 was found within 100 reviews in 96 and in 35 of 100 trials, half of these within 15 reviews.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from backend.corrections.reviews import Review, in_order
from sam4mllm.adapters.manifest import Manifest, number_of
from sam4mllm.adapters.registry import Tenure
from sam4mllm.errors import Sam4mllmError

log = logging.getLogger(__name__)

WEIGHT = 0.2
"""Weight of the newest agreement in the moving average, the usual one for small shifts (Montgomery, Introduction to Statistical Quality
Control).
"""
SIGMAS = 3.0
"""Distance of each limit from the former version's mean, in standard deviations of the value that it limits; usual in control charts."""
BASELINE = 30
"""The fewest reviews of the former version from which the limits for its successor are computed."""
LEAST = 10
"""Reviews since the promotion before anything is concluded."""
LEAST_SPREAD = 0.05
"""Least standard deviation of agreement that is assumed: that thirty masks were accepted unchanged does not mean that the next one will be.
"""


@dataclass(frozen=True)
class ControlChart:
    """The moving average of agreement with its lower limit, the mean since the promotion with its own, and the number of reviews since."""

    average: float
    limit: float
    mean: float
    mean_limit: float
    reviews: int

    @property
    def lost(self) -> bool:
        return self.reviews >= LEAST and self.average < self.limit and self.mean < self.mean_limit


def control(before: Sequence[float], since: Sequence[float]) -> ControlChart | None:
    """Compare the agreements since a promotion, in order of time, with those of the former version, ``before``.

    None if there are fewer than BASELINE of the former version.
    """
    if len(before) < BASELINE:
        return None
    usual, spread = float(np.mean(before)), max(LEAST_SPREAD, float(np.std(before, ddof=1)))
    average = usual
    for agreement in since:
        average = WEIGHT * agreement + (1 - WEIGHT) * average
    return ControlChart(
        average=average,
        limit=usual - SIGMAS * spread * (WEIGHT / (2 - WEIGHT)) ** 0.5,
        mean=float(np.mean(since)) if since else usual,
        mean_limit=usual - SIGMAS * spread * (1 / max(1, len(since)) + 1 / len(before)) ** 0.5,
        reviews=len(since),
    )


class AutoRollback:
    """Rolls a version back that reviewers agree less with."""

    def __init__(self, tenure: Callable[[], Tenure | None], rollback: Callable[[], Manifest | None]) -> None:
        self._tenure = tenure
        self._rollback = rollback
        self.state: ControlChart | None = None

    def look(self, reviews: Iterable[Review], since: float) -> bool:
        """Compare the agreements, roll back if it is needed, and return whether that was done. A rollback is logged.

        ``since`` is the log's stamp of the promotion: only later reviews count for the serving version, which may have served before, too.
        Reviews of phrases for which nothing was served do not count. ``state`` holds the chart afterwards: None if no version serves by the
        registry, or if the former one has fewer than BASELINE reviews. Raises the rollback's Sam4mllmError if it should be done but fails.
        """
        tenure = self._tenure()
        if tenure is None:
            self.state = None
            return False
        ordered = sorted((one for one in reviews if one.iou is not None and one.version), key=in_order)
        before = [one.iou for one in ordered if number_of(one.version) == tenure.former]
        after = [one.iou for one in ordered if number_of(one.version) == tenure.number and one.changed >= since]
        self.state = control([iou for iou in before if iou is not None], [iou for iou in after if iou is not None])
        if self.state is None or not self.state.lost:
            return False
        try:
            former = self._rollback()
        except Sam4mllmError as error:
            log.error("%s should be rolled back: %s", tenure.version, error)
            raise
        log.warning(
            "%s rolled back to %s: reviewers' agreement fell to %.3f, below %.3f",
            tenure.version,
            former.version if former else "the base model",
            self.state.mean,
            self.state.mean_limit,
        )
        return True
