"""What the models found becomes an answer on other threads: regions, the log and JSON are made while the models go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

WAITING = 4
"""Answers of annotators, and as many of batches, that may wait to be written. Each holds a picture and its masks; with more, the models
wait."""


class AnswerWriter:
    """Writes answers one after the other, those of annotators on a thread of their own, so that they do not stand behind a batch's.

    ``key`` names what was asked.
    """

    def __init__(self) -> None:
        self._threads = {interactive: ThreadPoolExecutor(1, "writer") for interactive in (True, False)}
        self._room = {interactive: threading.BoundedSemaphore(WAITING) for interactive in (True, False)}
        self._coming: dict[str, Future[bytes]] = {}

    def coming(self, key: str) -> Future[bytes] | None:
        """Return the answer for ``key`` if it is being written or waits for that, else None."""
        return self._coming.get(key)

    def begin(self, key: str, interactive: bool, write: Callable[[], bytes]) -> Future[bytes]:
        """Have an answer written by ``write``, in the caller's context, and return its future.

        Waits while WAITING answers of this kind are being written or wait for that. After ``close`` the calling thread writes it.
        """
        room = self._room[interactive]
        room.acquire()
        try:
            answer = self._threads[interactive].submit(copy_context().run, write)
        except RuntimeError:  # the writer is closed: the calling thread, which runs the models, writes it
            answer = Future()
            answer.set_result(write())
        self._coming[key] = answer

        def done(_: Future[bytes]) -> None:
            self._coming.pop(key, None)
            room.release()

        answer.add_done_callback(done)
        return answer

    def close(self) -> None:
        """Wait until all that was found is written."""
        for thread in self._threads.values():
            thread.shutdown()
