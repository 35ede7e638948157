"""Admission of large request bodies: they are read one at a time, and all that are being worked on take at most ``MEMORY`` together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from backend.errors import QueueFullError

SMALL = 256 * 1024
"""Bytes of the largest body that is read without admission. A chunked body, whose length is not known before, always needs admission."""
MEMORY = 320 << 20
"""Bytes of memory that all large bodies may take together: enough for one body of 64 MB full of masks, or for dozens of usual ones."""
WAIT_SECONDS = 15.0
WAITING = 8
"""Requests that may wait for memory at once; each occupies a thread while it waits."""
ESTIMATE = 5
"""Bytes of memory that are reserved for each byte of a body before it is read and its true need is known."""
BUSY = "too many large requests are being worked on; send it again in a few seconds"


class Intake:
    """The memory that large bodies share. Threads may share it."""

    def __init__(self, memory: int = MEMORY, wait_seconds: float = WAIT_SECONDS, waiting: int = WAITING) -> None:
        self._all = self._free = memory
        self._wait_seconds = wait_seconds
        self._may_wait = waiting
        self._changed = threading.Condition()
        self._reading = threading.Lock()

    @contextmanager
    def admit(self, length: int) -> Iterator[Portion]:
        """Reserve ESTIMATE times ``length`` bytes of memory (at most all there is), and hold the lock that lets one large body be read at
        a time while the ``with`` block runs.

        The caller gives the yielded portion back after the block; if the block raises, this is done here. Raises QueueFullError if too many
        requests wait for memory already, if the memory is not free within ``wait_seconds``, or then the lock within as many seconds again.
        """
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
        """Replace a reservation of ``held`` bytes by one of ``wanted``, at most all of the memory, and return its size.

        It does not wait. Raises QueueFullError if the bytes that it takes in addition are not free; the former reservation then stays.
        """
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
        """Hold ``wanted`` bytes instead, at most all of the memory. Raises QueueFullError, as :meth:`Intake.change` does."""
        self._held = self._intake.change(self._held, wanted)

    def give_back(self) -> None:
        self.change(0)
