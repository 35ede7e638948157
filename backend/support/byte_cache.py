"""A cache bounded in bytes: the least recently used goes first, and nothing outlives its time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """Safe to share between threads. ``size`` says how many bytes a value counts; one larger than the cache is not kept."""

    def __init__(
        self,
        max_bytes: int,
        size: Callable[[V], int],
        seconds_to_live: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._size = size
        self._seconds_to_live = seconds_to_live
        self._clock = clock
        self._entries: OrderedDict[K, tuple[V, int, float]] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0
        self.hits = self.misses = 0

    def get(self, key: K, *, again: bool = False) -> V | None:
        """Return the value, or None if there is none or its time is over. Pass ``again`` for a second look-up on behalf of the same
        request, which is then not counted as a hit or a miss.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry[2] < self._clock():
                self._drop(key)
                entry = None
            if entry is None:
                self.misses += not again
                return None
            self.hits += not again
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: K, value: V) -> None:
        """Keep a value in the place of the key's former one, and drop the least recently used ones until everything fits.

        A value larger than the cache is not kept, and the key's former one goes all the same.
        """
        nbytes = self._size(value)
        with self._lock:
            if key in self._entries:
                self._drop(key)
            if nbytes > self._max_bytes:
                return
            self._entries[key] = (value, nbytes, self._clock() + self._seconds_to_live)
            self.nbytes += nbytes
            while self.nbytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Keep nothing of what was put in; the counts of hits and misses go on."""
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def _drop(self, key: K) -> None:
        self.nbytes -= self._entries.pop(key)[1]

    def __len__(self) -> int:
        return len(self._entries)
