"""Training examples drawn by other processes while the model trains."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")


class MadeOnDemand(Dataset[T]):
    """The example of each index, made on demand. ``draw`` must be picklable and depend on the index alone."""

    def __init__(self, draw: Callable[[int], T], count: int) -> None:
        self._draw, self._count = draw, count

    def __getitem__(self, index: int) -> T:
        return self._draw(index)

    def __len__(self) -> int:
        return self._count


class Ahead(Generic[T]):
    """Batches of examples in order, from whichever step is asked for first: a resumed run sees what an unbroken one would have seen.

    Args:
        draw: makes the example of an index.
        steps, batch: how many batches there are, and how many examples are in one.
        workers: how many processes draw examples ahead; with 0 they are drawn in this process, when they are asked for.
    """

    def __init__(self, draw: Callable[[int], T], steps: int, batch: int, workers: int) -> None:
        self._dataset, self._steps, self._batch, self._workers = MadeOnDemand(draw, steps * batch), steps, batch, workers
        self._batches: Iterator[list[T]] | None = None

    def __call__(self, step: int) -> list[T]:
        """Return the examples of a step. After the first call each must ask for the next step: later calls do not look at ``step``.

        Raises StopIteration after the last step.
        """
        if self._batches is None:
            extra: dict[str, Any] = {"prefetch_factor": 4, "worker_init_fn": _outlive} if self._workers else {}
            indices = range(step * self._batch, self._steps * self._batch)
            loader = DataLoader(self._dataset, self._batch, sampler=indices, num_workers=self._workers, collate_fn=list, **extra)
            # a forked worker inherits the default device, and CUDA cannot be used after a fork
            with torch.device("cpu"):
                self._batches = iter(loader)
        return next(self._batches)


def _outlive(_: int) -> None:
    """Ignore SIGTERM in a worker: one that is sent to the whole process group is for the trainer, which saves its state and then ends the
    workers.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
