"""Training runs on disk: a folder each, with a record that says how far it is. What a restart finds is what was last written."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from sam4mllm.durable import replace_file

State = Literal["waiting", "preparing", "training", "deciding", "promoted", "kept", "postponed", "failed", "stopped"]
ENDED: frozenset[State] = frozenset(("promoted", "kept", "postponed", "failed", "stopped"))
RUN = re.compile(r"run-[0-9]{6}")


@dataclass(frozen=True)
class Run:
    """One run; times in seconds since 1970.

    ``reason`` is why it was started, ``message`` what came of it or went wrong, ``champion`` and ``challenger`` versions, ``counts`` the
    examples it saw, ``decision`` the gate's, ``attempts`` how often its process was started.
    """

    id: str
    state: State
    reason: str
    created: float
    ended: float | None = None
    message: str = ""
    champion: str = ""
    challenger: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    decision: dict[str, Any] | None = None
    attempts: int = 0

    @property
    def over(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Shown:
    """A held-out phrase with pictures: its ``index`` among the run's pairs, and the IoU to the reviewer's mask before and after, 0–1."""

    index: int
    phrase: str
    label: str
    before_iou: float
    after_iou: float


class Runs:
    """All runs of a home. Threads may share it."""

    def __init__(self, home: Path) -> None:
        self.root = home / "runs"
        self._lock = threading.Lock()
        self._ended: dict[str, Run] = {}
        """Runs that are over do not change, and there will be hundreds; nobody but this server writes them."""

    def create(self, reason: str) -> Run:
        """A new run that waits. Raises OSError if the disk refuses."""
        with self._lock:
            self.root.mkdir(parents=True, exist_ok=True)
            number = 1 + max((int(path.name[4:]) for path in self.root.iterdir() if RUN.fullmatch(path.name)), default=0)
            run = Run(f"run-{number:06d}", "waiting", reason, time.time())
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
        """A run, or None if there is no such or its record cannot be read."""
        if not RUN.fullmatch(run):
            return None
        if run in self._ended:
            return self._ended[run]
        try:
            values = json.loads((self.folder(run) / "run.json").read_text(encoding="utf-8"))
            found = Run(**{name.name: values[name.name] for name in fields(Run) if name.name in values})
        except (OSError, ValueError, TypeError):
            return None
        if found.over:
            self._ended[run] = found
        return found

    def all(self) -> list[Run]:
        """Every run, the newest first."""
        names = sorted((path.name for path in self.root.iterdir()), reverse=True) if self.root.is_dir() else []
        return [run for name in names if (run := self.load(name)) is not None]

    def report(self, run: str) -> bytes | None:
        """The page that tells of a run, or None if there is none."""
        path = self.folder(run) / "report.html"
        return path.read_bytes() if RUN.fullmatch(run) and path.is_file() else None

    def changes(self, run: str, count: int) -> list[Shown]:
        """The first pictures of what a run changed, those that changed most; none before it was judged."""
        try:
            found = json.loads((self.folder(run) / "evaluation.json").read_text(encoding="utf-8"))
            chosen = [(int(index), found["pairs"][index]) for index in found["pictures"][:count]]
            return [Shown(index, one["phrase"], one["label"], one["champion"], one["challenger"]) for index, one in chosen]
        except (OSError, ValueError, LookupError, TypeError):
            return []

    def picture(self, run: str, index: int, side: str) -> bytes | None:
        """A PNG file of a phrase before or after a run, or None if there is none. ``side``: "before" or "after"."""
        path = self.folder(run) / "pictures" / f"{index}-{side}.png"
        return path.read_bytes() if RUN.fullmatch(run) and path.is_file() else None

    def progress(self, run: str) -> dict[str, Any]:
        """How far the process of a run is: its stage, and what is done of how much; empty before it tells."""
        try:
            value = json.loads((self.folder(run) / "progress.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}
