"""How a task is answered when the time of its request runs out."""

from __future__ import annotations

import time
from concurrent.futures import Future

from backend.errors import DeadlineError

LEFT_OUT = b"[]"
"""The answer for which Label Studio stores nothing: the task stays without a prediction, and may be sent again."""
TOO_LATE = bytes(bytearray(LEFT_OUT))
"""An answer equal to LEFT_OUT, but another object: ``is TOO_LATE`` says that there was no time for the task."""
NO_TIME = "there was no time left for this task in this request; it is asked again later"


def wait_until(answer: Future[bytes], deadline: float) -> bytes:
    """Return the answer that another thread writes. ``deadline`` is a time of the monotonic clock.

    Raises the error of that thread, and DeadlineError if the answer is not written by the deadline.
    """
    try:
        return answer.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError as error:
        if answer.done():  # written just now, or the TimeoutError is the other thread's own
            return answer.result()
        raise DeadlineError(NO_TIME) from error


def in_time(answer: Future[bytes], deadline: float) -> bytes:
    """Return a task's answer, or TOO_LATE if there is none one second after the deadline; a task that has not begun is then cancelled.

    In that second, a task that itself notices the passed deadline ends, and logs why it has no answer.
    """
    try:
        return answer.result(max(0.0, deadline - time.monotonic()) + 1.0)
    except TimeoutError:
        answer.cancel()
        return TOO_LATE
