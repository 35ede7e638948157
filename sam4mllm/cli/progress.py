"""Progress on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def bar(items: Iterable[T], total: int | None, what: str) -> Iterable[T]:
    """The items, with a progress bar on standard error, so that standard output stays clean for ``--json``."""
    from rich.console import Console
    from rich.progress import track

    return track(items, description=what, total=total, console=Console(stderr=True), transient=True)
