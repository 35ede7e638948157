"""The next images are read from the disk and decoded while the model learns from the present ones."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class ImagesAhead(Generic[T]):
    """Makes what step ``n + 1`` needs, on another thread, while step ``n`` is at work. ``make`` must depend on the step's number alone."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._coming: dict[int, Future[T]] = {}

    def take(self, step: int) -> T:
        """Return what ``make`` returned for this step, and begin to make the next one's. Raises what ``make`` raised for this step."""
        present = self._coming.pop(step, None) or self._thread.submit(self._make, step)
        self._coming = {step + 1: self._thread.submit(self._make, step + 1)}
        return present.result()

    def close(self) -> None:
        """Make nothing more, and wait until what is being made is finished."""
        self._thread.shutdown(wait=True, cancel_futures=True)
