"""How a run goes, on standard error: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from backend.batch.run import Tally
from sam4mllm.plain_text import one_line

LINE_SECONDS = 30.0


class View(logging.Handler):
    """Shows the tally of a run and, above it, the warnings and errors that the backend logs meanwhile. Use it as a context manager."""

    def __init__(self, what: str) -> None:
        super().__init__(logging.WARNING)
        self._what = what
        self._console = Console(stderr=True, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self._progress = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._bar = self._progress.add_task(what, total=None, rate="")
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        logging.getLogger("backend").addHandler(self)
        logging.getLogger("backend").propagate = False
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
        logging.getLogger("backend").removeHandler(self)
        logging.getLogger("backend").propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning or an error of the log, as one line."""
        self._console.print(one_line(f"{record.levelname.lower()}: {record.getMessage()}"), markup=False, highlight=False)

    def show(self, tally: Tally, left: int) -> None:
        """Show how far the run is, with ``left`` tasks to come. Without a terminal, print a line at most every LINE_SECONDS."""
        passed = tally.kept + tally.done + sum(tally.failed.values())
        rate = _pace(tally, left)
        self._progress.update(self._bar, completed=passed, total=passed + left, rate=rate)
        if not self._console.is_terminal and time.monotonic() > self._told + LINE_SECONDS:
            self._told = time.monotonic()
            print(f"{self._what}: {passed:,} of {passed + left:,} tasks, {rate}", file=sys.stderr, flush=True)


def _pace(tally: Tally, left: int) -> str:
    """The rate, and the time that the rest takes at it."""
    return f"{tally.rate:.2f} a second, {duration(left / max(tally.rate, 1e-9))} left"


def duration(seconds: float) -> str:
    """Return seconds as a text: below 90 s as ``40 s``, then as ``3 min``, and from 60 minutes on as ``2 h 05 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
