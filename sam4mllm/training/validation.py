"""The validation loss of a run: of training pictures that are set aside, so that the run does not learn from them.

The training loss falls even while the model learns its pictures by heart. The validation loss then rises, and the run ends early, with the
weights at which that loss was lowest (early stopping: Prechelt 1998, "Early Stopping – But When?").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

SHARE = 0.1
"""Share of the training pictures that are set aside."""
LEAST = 3
"""Fewest pictures to judge by: of fewer than thirty training pictures none is set aside, because each of them is needed."""
TIMES = 20
"""How often the validation loss is measured in a run."""
PATIENCE = 5
"""A run ends early when so many measurements in a row, a quarter of the run, were above the lowest."""

T = TypeVar("T", bound=Hashable)


def set_aside(pictures: Collection[T], labels_of: Callable[[T], Collection[Hashable]], share: float) -> set[T]:
    """Choose the pictures of a run that are for validation: a ``share`` of them, or none if that is fewer than LEAST.

    ``pictures`` are in the order in which they are chosen; ``labels_of`` returns the labels of a picture. A picture is passed over if a
    label would be left without a picture to learn from.

    >>> sorted(set_aside(range(40), lambda picture: ["cup" if picture else "dog"], 0.1))
    [1, 2, 3, 4]
    """
    wanted = int(share * len(pictures))
    if wanted < LEAST:
        return set()
    left = Counter(label for picture in pictures for label in set(labels_of(picture)))
    chosen: set[T] = set()
    for picture in pictures:
        labels = set(labels_of(picture))
        if len(chosen) < wanted and all(left[label] > 1 for label in labels):
            chosen.add(picture)
            left.subtract(labels)
    return chosen if len(chosen) >= LEAST else set()


def is_measured(step: int, steps: int) -> bool:
    """Whether the validation loss is measured after ``step`` of ``steps`` steps, which count from 1."""
    return step % max(1, steps // TIMES) == 0


@dataclass
class ValidationCurve:
    """The validation losses of a run, as pairs of a step and the loss after it."""

    points: list[tuple[int, float]] = field(default_factory=list)

    def add(self, step: int, loss: float) -> bool:
        """Add a loss, and return whether it is the lowest so far."""
        lowest = all(loss < other for _, other in self.points)
        self.points.append((step, loss))
        return lowest

    @property
    def has_turned(self) -> bool:
        """Whether the last PATIENCE losses were all above the lowest."""
        losses = [loss for _, loss in self.points]
        return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= PATIENCE


def mean(sums: Sequence[float]) -> float | None:
    """Return the mean of ``sums``, a sum and the number of its terms; None if there is no term."""
    total, count = sums
    return total / count if count else None
