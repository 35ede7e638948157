"""Notes in the log of corrections: a request is answered even where they cannot be written or read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backend.corrections.log_faults import LogError

log = logging.getLogger(__name__)


@contextmanager
def noting(what: str) -> Iterator[None]:
    """An answer is given even if something cannot be noted, on a full disk for example."""
    try:
        yield
    except LogError as error:
        log.error("%s could not be noted: %s", what, error)


def recalled(read: Callable[[], str]) -> str:
    """Return what ``read`` returns, the phrase that was typed before; an empty text, and an error in the server's log, if it fails."""
    try:
        return read()
    except LogError as error:
        log.error("the phrase that was typed before could not be read: %s", error)
        return ""
