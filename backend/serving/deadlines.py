"""What a task of a request gets whose time ends."""

from __future__ import annotations

import time
from concurrent.futures import Future

from backend.errors import DeadlineError

LEFT_OUT = b"[]"
"""What Label Studio stores nothing for, and asks again."""
TOO_LATE = bytes(bytearray(LEFT_OUT))
"""The same, known by identity: there was no time for the task."""
NO_TIME = "there was no time left for this task in this request; it is asked again later"


def wait_until(answer: Future[bytes], deadline: float) -> bytes:
    """The answer, which another thread writes. Raises what that raised, and DeadlineError where it takes longer."""
    try:
        return answer.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError as error:
        if answer.done():  # just now, or the error is its own
            return answer.result()
        raise DeadlineError(NO_TIME) from error


def in_time(answer: Future[bytes], deadline: float) -> bytes:
    """A task's answer, or TOO_LATE. A second beyond the deadline is for those that notice it themselves, and say why."""
    try:
        return answer.result(max(0.0, deadline - time.monotonic()) + 1.0)
    except TimeoutError:
        answer.cancel()
        return TOO_LATE
