"""What reviewers made of what was served, drawn over time and against the score: for people to look at, nothing is decided here.

``auto_rollback.py`` decides whether a version goes back, ``backend/serving/calibration.py`` fits the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from backend.corrections.reviews import Review, in_order
from sam4mllm.adapters.manifest import number_of
from sam4mllm.confidence import ACCEPTED_IOU
from sam4mllm.page import find_ticks

SMOOTHED_OVER = 20
"""Reviews that a point of the curve is the mean of."""
CURVE_POINTS = 360
"""The curve has at most about so many points, which are then nearly two units of the drawing apart."""
WIDTH, HEIGHT = 720, 200
LEFT, TOP, RIGHT, BOTTOM = 60, 32, 36, 36
"""Room around the curve for its figures, and above it for the versions' numbers."""
LABEL_ROOM = 40
"""Least distance, in the drawing's units, at which the numbers of two versions can both be read."""
BINS = 5
"""Into how many bins the score is divided. They are few, because there are few reviews and each one's agreement is noisy."""


@dataclass(frozen=True)
class ReviewedAnswer:
    """A served answer that a reviewer dealt with.

    ``when`` is Label Studio's time of the review, in seconds since 1970; ``iou`` is that of the served mask with the reviewer's;
    ``score`` is what the answer was served with.
    """

    when: float
    iou: float
    version: str
    score: float | None


@dataclass(frozen=True)
class Trend:
    """Agreement over the reviews, in the coordinates of an SVG of WIDTH × HEIGHT.

    ``line`` is the ``points`` of a polyline, the moving mean. ``marks`` are (position, text): from where on another version was judged,
    with its number, which is empty where there is no room for it. ``across`` and ``upward`` are the ticks of the axes, as (position, text).
    ``count`` is the number of reviews, ``last`` the mean of the last SMOOTHED_OVER.
    """

    line: str
    marks: tuple[tuple[float, str], ...]
    across: tuple[tuple[float, str], ...]
    upward: tuple[tuple[float, str], ...]
    count: int
    last: float


@dataclass(frozen=True)
class ScoreBin:
    """Answers whose score lies in [``low``, ``high``), the last bin's in [``low``, 1]: how many, their mean score, the share accepted."""

    low: float
    high: float
    count: int
    score: float
    accepted: float


@dataclass(frozen=True)
class Reliability:
    """The score against what reviewers accepted. ``error`` is the expected calibration error: the mean over the bins, weighted by count, of
    the distance between the mean score and the share accepted.
    """

    bins: tuple[ScoreBin, ...]
    count: int
    error: float


def judged_of(reviews: Iterable[Review]) -> tuple[ReviewedAnswer, ...]:
    """Return the reviewed answers in order of their reviews; a review of a phrase for which nothing was served is left out."""
    ordered = sorted(reviews, key=in_order)
    return tuple(ReviewedAnswer(one.updated, one.iou, one.version, one.score) for one in ordered if one.iou is not None and one.version)


def draw_trend(judged: Sequence[ReviewedAnswer]) -> Trend | None:
    """Draw the moving mean of agreement against the number of the review; None for fewer than two. ``judged`` is in the reviews' order."""
    if len(judged) < 2:
        return None
    last = len(judged) - 1

    def x(index: int) -> float:
        return round(LEFT + index / last * (WIDTH - LEFT - RIGHT), 1)

    def y(iou: float) -> float:
        return round(HEIGHT - BOTTOM - iou * (HEIGHT - TOP - BOTTOM), 1)

    means = _moving_means([one.iou for one in judged])
    step = -(-len(means) // CURVE_POINTS)
    kept = sorted({*range(0, len(means), step), last})
    return Trend(
        line=" ".join(f"{x(index)},{y(means[index])}" for index in kept),
        marks=_marks(judged, x),
        across=tuple((x(int(tick) - 1), f"{tick:,.0f}") for tick in find_ticks(1, len(judged), 6) if tick == int(tick)),
        upward=tuple((y(tick), f"{tick:.1f}") for tick in (0.0, 0.5, 1.0)),
        count=len(judged),
        last=means[-1],
    )


def measure_reliability(judged: Iterable[ReviewedAnswer]) -> Reliability | None:
    """Compare the scores of served answers with the share that reviewers accepted; None if no answer had a score.

    An answer counts as accepted if its IoU is ACCEPTED_IOU or more, also if its mask was edited. Bins without an answer are left out.
    """
    groups: dict[int, list[tuple[float, bool]]] = {}
    for one in judged:
        if one.score is not None:
            groups.setdefault(min(BINS - 1, int(one.score * BINS)), []).append((one.score, one.iou >= ACCEPTED_IOU))
    if not groups:
        return None
    bins = tuple(
        ScoreBin(
            low=index / BINS,
            high=(index + 1) / BINS,
            count=len(group),
            score=sum(score for score, _ in group) / len(group),
            accepted=sum(accepted for _, accepted in group) / len(group),
        )
        for index, group in sorted(groups.items())
    )
    count = sum(one.count for one in bins)
    return Reliability(bins, count, sum(one.count * abs(one.score - one.accepted) for one in bins) / count)


def _moving_means(values: Sequence[float]) -> list[float]:
    """Return for each value the mean of it and the values before it, SMOOTHED_OVER in all, or as many as there are."""
    means: list[float] = []
    total = 0.0
    for index, value in enumerate(values):
        total += value - (values[index - SMOOTHED_OVER] if index >= SMOOTHED_OVER else 0.0)
        means.append(min(1.0, max(0.0, total / min(index + 1, SMOOTHED_OVER))))
    return means


def _marks(judged: Sequence[ReviewedAnswer], x: Callable[[int], float]) -> tuple[tuple[float, str], ...]:
    """Return a mark for each change of version. Its text is empty where the number would overlap the one before it."""
    marks: list[tuple[float, str]] = []
    free_from, former = 0.0, None
    for index, one in enumerate(judged):
        number = number_of(one.version)
        if number != former:
            at = x(index)
            marks.append((at, str(number) if at >= free_from else ""))
            free_from = at + LABEL_ROOM if at >= free_from else free_from
        former = number
    return tuple(marks)
