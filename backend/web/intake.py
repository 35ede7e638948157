"""Large request bodies are taken in a few at a time, so that together they never take more memory than one of the largest size may."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from backend.errors import QueueFullError

SMALL = 256 * 1024
"""Bytes of a body that is taken in without asking."""
MEMORY = 320 << 20
"""Bytes that all large bodies together may take once they are read: one mask-laden body of 64 MB, or dozens of usual ones."""
WAIT_SECONDS = 15.0
WAITING = 8
"""Requests that may wait for others to end; each takes a thread."""
ESTIMATE = 5
"""Bytes of memory for a byte of a body, before it is read."""
BUSY = "too many large requests are being worked on; send it again in a few seconds"


class Intake:
    """What large bodies take. Threads share it."""

    def __init__(self, memory: int = MEMORY, wait_seconds: float = WAIT_SECONDS, waiting: int = WAITING) -> None:
        self._all = self._free = memory
        self._wait_seconds = wait_seconds
        self._may_wait = waiting
        self._changed = threading.Condition()
        self._reading = threading.Lock()

    @contextmanager
    def admit(self, length: int) -> Iterator[Portion]:
        """Wait until there is memory for a body of so many bytes, and until no other is being read. Raises QueueFullError."""
        portion = Portion(self, self._wait_for(min(ESTIMATE * length, self._all)))
        try:
            if not self._reading.acquire(timeout=self._wait_seconds):
                raise QueueFullError(BUSY)
            try:
                yield portion
            finally:
                self._reading.release()
        except BaseException:
            portion.give_back()
            raise

    def _wait_for(self, wanted: int) -> int:
        with self._changed:
            if not self._may_wait:
                raise QueueFullError(BUSY)
            self._may_wait -= 1
            try:
                if not self._changed.wait_for(lambda: self._free >= wanted, self._wait_seconds):
                    raise QueueFullError(BUSY)
            finally:
                self._may_wait += 1
            self._free -= wanted
        return wanted

    def change(self, held: int, wanted: int) -> int:
        """Give back what is too much, or take what is missing if it is there. Raises QueueFullError if it is not."""
        wanted = min(wanted, self._all)
        with self._changed:
            if wanted - held > self._free:
                raise QueueFullError(BUSY)
            self._free -= wanted - held
            self._changed.notify_all()
        return wanted


class Portion:
    """What one body holds of the memory."""

    def __init__(self, intake: Intake, held: int) -> None:
        self._intake = intake
        self._held = held

    def change(self, wanted: int) -> None:
        """Hold so many bytes instead. Raises QueueFullError."""
        self._held = self._intake.change(self._held, wanted)

    def give_back(self) -> None:
        self.change(0)
