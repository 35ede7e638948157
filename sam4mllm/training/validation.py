"""The validation loss of a run: the loss on training pictures that are set aside, so that the run does not learn from them.

The training loss falls even while the model learns its pictures by heart. The validation loss then rises, and the run ends early, with the
weights at which that loss was lowest (early stopping: Prechelt 1998, "Early Stopping – But When?").
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sam4mllm.durable import partial, publish
from sam4mllm.training.plan import MEASURED
from sam4mllm.training.processes import Processes

log = logging.getLogger(__name__)

LEAST, MOST = 5, 50
"""The fewest and the most pictures to judge by. With a share of a tenth, none is set aside of fewer than fifty training pictures, because
each of them is needed; more than fifty would cost more time than they make the loss more exact."""
TIMES = 20
"""How often the validation loss is measured, at least, in a run that goes to its end. With fewer steps it is measured after each step."""
PATIENCE = 5
"""A run ends early when so many measurements in a row, up to a quarter of the run, gave no new lowest loss."""

T = TypeVar("T", bound=Hashable)


def set_aside(pictures: Collection[T], labels_of: Callable[[T], Collection[Hashable]], share: float) -> set[T]:
    """Choose the pictures of a run that are for validation: a ``share`` of them but at most MOST, or none if that is fewer than LEAST.

    ``pictures`` are in the order in which they are chosen; ``labels_of`` returns the labels of a picture. A picture without which a
    label would have none left to learn from, when those before it are taken, is chosen last.

    >>> sorted(set_aside(range(50), lambda picture: ["cup" if picture else "dog"], 0.1))
    [1, 2, 3, 4, 5]
    """
    wanted = min(MOST, int(share * len(pictures)))
    if wanted < LEAST:
        return set()
    left = Counter(label for picture in pictures for label in set(labels_of(picture)))
    spared, needed = list[T](), list[T]()
    for picture in pictures:
        labels = set(labels_of(picture))
        if all(left[label] > 1 for label in labels):
            spared.append(picture)
            left.subtract(labels)
        else:
            needed.append(picture)
    return set([*spared, *needed][:wanted])


def is_measured(step: int, steps: int) -> bool:
    """Whether the validation loss is measured after ``step`` of ``steps`` steps, which count from 1.

    It is measured at MEASURED, too, so that the time of a measurement is known when the steps are fitted to a time budget.
    """
    return step == MEASURED or step % max(1, steps // TIMES) == 0


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
    def lowest(self) -> tuple[int, float]:
        """The step with the lowest loss, the first of several, and that loss. Raises ValueError if nothing was measured."""
        return min(self.points, key=lambda point: point[1])

    @property
    def has_turned(self) -> bool:
        """Whether there were losses before the last PATIENCE ones, and none of these is below the lowest before them."""
        losses = [loss for _, loss in self.points]
        return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= PATIENCE


class Validator:
    """Measures the validation loss of a run, and keeps the weights with which it was lowest.

    Args:
        count: how many pictures are set aside.
        measure: returns the loss of the picture with an index, or None if that picture cannot be used. It must learn nothing.
        trained: the weights that the run trains.
        folder: where the run's states are kept, and with them the weights of the lowest loss.
        processes: share the pictures. With FSDP, which needs as many passes of each process, each measures all of them.
    """

    def __init__(
        self, count: int, measure: Callable[[int], float | None], trained: Iterable[nn.Parameter], folder: Path, processes: Processes
    ) -> None:
        self.curve = ValidationCurve()
        self._count, self._measure, self._trained, self._processes = count, measure, list(trained), processes
        self._lowest = folder / "lowest.safetensors"

    def look(self, step: int, steps: int) -> float | None:
        """Measure the loss after a step, add it to the curve and return it. If it is the lowest so far, the weights are written to a file.

        None if it is not due, or if no picture is set aside or can be used. Raises OSError if the file cannot be written.
        """
        if not self._count or not is_measured(step, steps):
            return None
        places = range(self._count) if self._processes.sharded else self._processes.places(self._count)
        losses = [loss for place in places if (loss := self._measure(place)) is not None]
        total, number = self._processes.add_up([sum(losses), float(len(losses))])
        if not number:
            return None
        if not math.isfinite(total):
            log.warning("the validation loss after step %d is %s; this measurement does not count", step, total)
            return None
        if self.curve.add(step, total / number) and self._processes.first:
            self._keep()
        return total / number

    def restore(self) -> None:
        """Give the trained weights the values with which the loss was lowest. All processes must call this.

        Raises OSError if the file with them cannot be read, or is missing because no loss was measured.
        """
        if self._processes.first:
            kept = load_file(self._lowest)
            with torch.no_grad():
                for name, weight in self._named():
                    weight.copy_(kept[name])
        self._processes.share(self._trained)

    def _keep(self) -> None:
        temporary = partial(self._lowest)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.detach().cpu().contiguous() for name, weight in self._named()}, temporary)
        publish(temporary, self._lowest)

    def _named(self) -> list[tuple[str, Tensor]]:
        return [(str(index), weight) for index, weight in enumerate(self._trained)]
