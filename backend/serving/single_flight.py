"""Single flight: of equal questions asked at once, one is worked on and all get its answer; later ones get it while it is cached."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from backend.errors import DeadlineError
from backend.support.byte_cache import ByteCache


class SingleFlight:
    """Answers are bytes, and are cached by key. An error in making one is raised for every request that waits for it, and is not cached.

    After a DeadlineError, a waiting request that has time left tries again instead.
    """

    def __init__(self, cache: ByteCache[str, bytes]) -> None:
        self._cache = cache
        self._flying: dict[str, Future[bytes]] = {}
        self._lock = threading.Lock()

    def answer(self, key: str, make: Callable[[], bytes], deadline: float) -> tuple[bytes, bool]:
        """Return the answer, and whether another request was making it meanwhile (then this one waited for it).

        ``deadline`` is a time of the monotonic clock. Raises what ``make`` raises, and DeadlineError if the deadline passes while this
        request waits for another's answer.
        """
        while True:
            with self._lock:
                kept = self._cache.get(key)
                if kept is not None:
                    return kept, False
                flight = self._flying.get(key)
                if flight is None:
                    mine = self._flying[key] = Future()
                    break
            try:
                return flight.result(max(0.0, deadline - time.monotonic())), True
            except TimeoutError as error:
                raise DeadlineError("there was no time left to wait for the same question's answer") from error
            except DeadlineError:
                if time.monotonic() >= deadline:
                    raise
                # the request that asked first had an earlier deadline than this one: try again
        return self._make(key, make, mine), False

    def _make(self, key: str, make: Callable[[], bytes], mine: Future[bytes]) -> bytes:
        try:
            answer = make()
        except BaseException as error:
            with self._lock:
                del self._flying[key]
            mine.set_exception(error)
            raise
        with self._lock:
            self._cache.put(key, answer)
            del self._flying[key]
        mine.set_result(answer)
        return answer

    def keep(self, key: str, answer: bytes) -> None:
        """Cache an answer, also one that was made after its request had ended."""
        with self._lock:
            self._cache.put(key, answer)
