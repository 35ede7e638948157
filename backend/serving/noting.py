"""Notes in the log of corrections: a request is answered even where they cannot be written or read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backend.corrections.log_faults import LogError

log = logging.getLogger(__name__)


@contextmanager
def noting(what: str) -> Iterator[None]:
    """Log a LogError of the ``with`` block and do not raise it, so that a request is answered even if the disk is full, for example.

    ``what`` names in that log line what could not be noted.
    """
    try:
        yield
    except LogError as error:
        log.error("%s could not be noted: %s", what, error)


def recalled(read: Callable[[], str]) -> str:
    """Return what ``read`` returns, the phrase that was typed before. If it raises LogError, log that and return an empty text."""
    try:
        return read()
    except LogError as error:
        log.error("the phrase that was typed before could not be read: %s", error)
        return ""
