"""The calibration of the score by which tasks are ordered. It is fitted on reviewers' judgements and kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backend.corrections.reviews import Review
from sam4mllm.confidence import ACCEPTED_IOU, FIT_EMPTY_FROM, LATER, NAMES, Calibration, EmptyCalibration, Features, fit, fit_empty
from sam4mllm.durable import replace_file

log = logging.getLogger(__name__)

GROWTH = 1.2
"""Factor by which the number of judgements has to grow before the calibration is fitted again: often at first, seldom later."""


class Scorer:
    """Holds the calibration. One thread refits; any thread reads ``calibration``."""

    def __init__(self, path: Path) -> None:
        """Read the calibration from ``path``. If that is missing or cannot be read, the fixed formula scores until the first fit."""
        self._path = path
        self.calibration: Calibration | None = None
        try:
            self.calibration = Calibration.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("%s is not used: %s", path, error)

    def refit(self, reviews: Sequence[Review], version: str, *, anew: bool = False) -> bool:
        """Fit the calibration on the reviews and store it; return whether that was done.

        Without ``anew``, a calibration that exists is fitted again only if there are at least GROWTH times as many judgements of masks, or
        of empty answers, as at the last fit. In any case nothing is done if too few masks were judged, or all alike (:func:`fit`).
        ``version`` is the version that serves; the calibration records it. Raises OSError if the file cannot be written.
        """
        empty = [(review.features["no_target"], review.iou == 1) for review in reviews if review.iou is not None and _is_empty(review)]
        more_empty = self.calibration is not None and len(empty) >= max(FIT_EMPTY_FROM, GROWTH * _count(self.calibration.empty))
        anew = anew or more_empty
        if not anew and self.calibration is not None and sum(bool(review.features) for review in reviews) < GROWTH * self.calibration.count:
            return False
        judged = [
            (features, review.iou >= ACCEPTED_IOU) for review in reviews if review.iou is not None and (features := _features(review))
        ]
        if not anew and self.calibration is not None and len(judged) < GROWTH * self.calibration.count:
            return False
        fitted = fit([features for features, _ in judged], [accepted for _, accepted in judged], version)
        if fitted is None:
            return False
        fitted = replace(fitted, empty=fit_empty([chance for chance, _ in empty], [right for _, right in empty]))
        replace_file(self._path, fitted.to_json().encode())
        self.calibration = fitted
        log.info("the score is fitted on %d judgements (%s)", fitted.count, fitted.id)
        return True


def _count(empty: EmptyCalibration | None) -> int:
    return 0 if empty is None else empty.count


def _is_empty(review: Review) -> bool:
    """Whether the answer that was served is "none": there is no such object in the image."""
    return review.features.keys() == {"no_target"}


def _features(review: Review) -> Features | None:
    """Return the features of the served mask with the lowest score.

    Features that only later releases record (LATER) may be missing, and then have their defaults. Return None if the answer "none" or
    nothing was served, or if a release that recorded other features served the mask.
    """
    noted = review.features.keys()
    return Features(**review.features) if set(NAMES) - LATER.keys() <= noted <= set(NAMES) else None
