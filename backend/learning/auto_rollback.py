"""Whether reviewers agree less with a version since it was promoted than with the one before: then that one serves again.

Agreement is the IoU of what was served and what the reviewer made of it. It is asked after every review, for as long as a version serves,
so a single limit would be crossed by chance in the end. Two things must hold at once: an exponentially weighted moving average is low,
which notices a lasting drop soon and forgets a bad day (Roberts 1959), and so is the mean of all reviews since the promotion.

Simulated (``benchmarks/watch.py``) over 1,000 reviews of an equal version, after 30 of the former one: rolled back in 1 of 100 lives where
agreement is normal, in 8 where most masks are accepted as they are and some are all wrong. A loss of 0.10 is found within 100 reviews in 96
of 100 lives, or in 35, half of the time within 15.
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
"""Of the newest agreement in the average, the usual choice for small shifts (Montgomery, Introduction to Statistical Quality Control)."""
SIGMAS = 3.0
"""Distance of either limit from the former mean, in standard deviations of what is compared with it: the usual one of control charts."""
BASELINE = 30
"""Reviews of the former version from which its limits are known."""
LEAST = 10
"""Reviews since the promotion before anything is concluded."""
LEAST_SPREAD = 0.05
"""Standard deviation of agreement that is taken for granted: thirty masks accepted as they are do not say that the next one must be."""


@dataclass(frozen=True)
class ControlChart:
    """The moving average of agreement and the limit below which it must not fall, and the same of the mean since the promotion."""

    average: float
    limit: float
    mean: float
    mean_limit: float
    reviews: int

    @property
    def lost(self) -> bool:
        return self.reviews >= LEAST and self.average < self.limit and self.mean < self.mean_limit


def control(before: Sequence[float], since: Sequence[float]) -> ControlChart | None:
    """Agreement since a promotion, in order of time, against that with the version before; None if that is not known well enough."""
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
        """Whether a version was rolled back. Raises RegistryError if it should be but cannot.

        ``since`` is the stamp from which on the serving version serves: it may have served before, too.
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
