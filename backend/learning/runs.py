"""Training runs on disk: a folder each, with a record that says how far it is. What a restart finds is what was last written."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from backend.learning.run_record import ENDED, Run, ShownPair, State, parse_changes, parse_progress, parse_run, read_text, unreadable
from sam4mllm.durable import replace_file
from sam4mllm.errors import first_line

__all__ = ["ENDED", "Run", "Runs", "ShownPair", "State"]

log = logging.getLogger(__name__)

RUN = re.compile(r"run-[0-9]{6}")


class Runs:
    """All runs of a home. Threads may share it."""

    def __init__(self, home: Path) -> None:
        self.root = home / "runs"
        self._lock = threading.Lock()
        self._ended: dict[str, Run] = {}
        """Runs that are over do not change, and there will be hundreds; nobody but this server writes them."""
        self._told: dict[str, str] = {}
        """What is wrong with records, so that it is said once."""

    def create(self, reason: str, position: float | None = None) -> Run:
        """A new run that waits; ``position`` is the log's. Raises OSError if the disk refuses."""
        with self._lock:
            self.root.mkdir(parents=True, exist_ok=True)
            number = 1 + max((int(path.name[4:]) for path in self.root.iterdir() if RUN.fullmatch(path.name)), default=0)
            run = Run(f"run-{number:06d}", "waiting", reason, time.time(), position=position)
            self.folder(run.id).mkdir()
        return self.save(run)

    def folder(self, run: str) -> Path:
        return self.root / run

    def save(self, run: Run, **changes: Any) -> Run:
        """Write a run with changes; on disk when this returns."""
        changed = replace(run, **changes)
        if changed.over and changed.ended is None:
            changed = replace(changed, ended=time.time())
        with self._lock:
            replace_file(self.folder(run.id) / "run.json", json.dumps(asdict(changed), indent=1).encode())
            if changed.over:
                self._ended[run.id] = changed
        return changed

    def load(self, run: str) -> Run | None:
        """A run, or None if there is no such; one whose record cannot be read has failed, and says why."""
        if not RUN.fullmatch(run):
            return None
        if run in self._ended:
            return self._ended[run]
        try:
            found = parse_run(run, (self.folder(run) / "run.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            return self._unreadable(run, error)
        if found.over:
            self._ended[run] = found
        return found

    def _unreadable(self, run: str, error: OSError | ValueError) -> Run:
        found = unreadable(run, (error.strerror or first_line(error)) if isinstance(error, OSError) else first_line(error))
        if self._told.get(run) != found.message:
            self._told[run] = found.message
            log.error("%s: %s", run, found.message)
        return found

    def all(self) -> list[Run]:
        """Every run, the newest first."""
        names = sorted((path.name for path in self.root.iterdir()), reverse=True) if self.root.is_dir() else []
        return [run for name in names if (run := self.load(name)) is not None]

    def report(self, run: str) -> bytes | None:
        """The page that tells of a run, or None if there is none."""
        path = self.folder(run) / "report.html"
        return path.read_bytes() if RUN.fullmatch(run) and path.is_file() else None

    def changes(self, run: str, count: int) -> list[ShownPair]:
        """The first pictures of what a run changed, those that changed most; none before it was judged."""
        return parse_changes(read_text(self.folder(run) / "evaluation.json"), count)

    def picture(self, run: str, index: int, side: str) -> bytes | None:
        """A PNG file of a phrase before or after a run, or None if there is none. ``side``: "before" or "after"."""
        path = self.folder(run) / "pictures" / f"{index}-{side}.png"
        return path.read_bytes() if RUN.fullmatch(run) and path.is_file() else None

    def progress(self, run: str) -> dict[str, Any]:
        """How far the process of a run is: its stage, and what is done of how much; empty before it tells."""
        return parse_progress(read_text(self.folder(run) / "progress.json"))
