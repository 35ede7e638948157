"""The records of training runs, each of which says how far its run is, and the collection of all runs of a SAM4MLLM_HOME.

After a restart, a run is as its record was last written.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from backend.learning.holdout import SHARE, WHOLE, Holdout
from backend.learning.run_folder import RunFolder, Side, is_number, parse_object
from sam4mllm.durable import replace_file
from sam4mllm.errors import first_line

log = logging.getLogger(__name__)

RUN = re.compile(r"run-[0-9]{6}")
RunState = Literal["waiting", "preparing", "training", "deciding", "promoted", "kept", "postponed", "failed", "stopped"]
ENDED: frozenset[RunState] = frozenset(("promoted", "kept", "postponed", "failed", "stopped"))
END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
TEXTS = ("id", "state", "reason", "message", "champion", "challenger")


@dataclass(frozen=True)
class Run:
    """The record of one run; times are in seconds since 1970.

    ``reason`` is why it was started, ``message`` what came of it or went wrong, ``champion`` and ``challenger`` are versions, ``counts``
    the examples by split and the refused ones, ``decision`` the gate's, ``attempts`` how often its process was started. ``position`` is the
    log's position when the run was asked for, None if an older release recorded it: later corrections count towards the next run.
    """

    id: str
    state: RunState
    reason: str
    created: float
    ended: float | None = None
    message: str = ""
    champion: str = ""
    challenger: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    decision: dict[str, Any] | None = None
    attempts: int = 0
    position: float | None = None

    @property
    def over(self) -> bool:
        return self.state in ENDED


class Runs:
    """All runs of a home. Threads may share it."""

    def __init__(self, home: Path) -> None:
        self.root = home / "runs"
        self._lock = threading.Lock()
        self._ended: dict[str, Run] = {}
        """The runs that are over, by id. They are kept in memory: there will be hundreds, and only this server writes their records."""
        self._told: dict[str, str] = {}
        """What is wrong with records, so that it is said once."""

    def create(self, reason: str, position: float | None = None, message: str = "") -> Run:
        """A new run that waits; ``position`` is the log's. Raises OSError if the disk refuses."""
        with self._lock:
            self.root.mkdir(parents=True, exist_ok=True)
            number = 1 + max((int(path.name[4:]) for path in self.root.iterdir() if RUN.fullmatch(path.name)), default=0)
            run = Run(f"run-{number:06d}", "waiting", reason, time.time(), message=message, position=position)
            self.folder(run.id).path.mkdir()
        return self.save(run)

    def folder(self, run: str) -> RunFolder:
        return RunFolder(self.root / run)

    def save(self, run: Run, **changes: Any) -> Run:
        """Apply ``changes`` to a run, write its record to the disk and return it; ``ended`` is set when the run is over. Raises OSError."""
        changed = replace(run, **changes)
        if changed.over and changed.ended is None:
            changed = replace(changed, ended=time.time())
        with self._lock:
            replace_file(self.folder(run.id).record, json.dumps(asdict(changed), indent=1).encode())
            if changed.over:
                self._ended[run.id] = changed
        return changed

    def load(self, run: str) -> Run | None:
        """Return a run, or None if there is none of this name. If its record cannot be read, a run that has failed stands for it, and the
        problem is logged once.
        """
        if not RUN.fullmatch(run):
            return None
        if run in self._ended:
            return self._ended[run]
        try:
            found = parse_run(run, self.folder(run).record.read_text(encoding="utf-8"))
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

    def holdout(self) -> Holdout:
        """Return the home's holdout. While no threshold is stored, a home in which an earlier release has trained holds out a fifth, as
        that release did.
        """
        return Holdout(self.root.parent, SHARE if any(run.attempts for run in self.all()) else WHOLE)

    def report(self, run: str) -> bytes | None:
        """The page that tells of a run, or None if there is none. ``run`` may be anything that an address holds."""
        path = self.folder(run).report_page
        return path.read_bytes() if RUN.fullmatch(run) and path.is_file() else None

    def picture(self, run: str, index: int, side: Side) -> bytes | None:
        """A PNG file of a phrase before or after a run, or None if there is none."""
        path = self.folder(run).picture(index, side)
        return path.read_bytes() if RUN.fullmatch(run) and path.is_file() else None


# -- reading a record ----------------------------------------------------------------------------------------------------------------------


def parse_run(name: str, text: str) -> Run:
    """The record of the run with this name. Raises ValueError: what is wrong with it, in a few words."""
    values = parse_object(text)
    found = {one.name: values[one.name] for one in fields(Run) if one.name in values}
    for key in ("id", "state", "reason", "created"):
        if key not in found:
            raise ValueError(f"it has no {key}")
    for key in TEXTS:
        _require(isinstance(found.get(key, ""), str), key, found)
    if found["state"] not in get_args(RunState):
        raise ValueError(f"its state {ascii(found['state'])[:40]} is not known")
    _require(found["id"] == name, "id", found)
    _require(_is_moment(found["created"]), "created", found)
    for key in ("ended", "position"):
        _require(found.get(key) is None or _is_moment(found[key]), key, found)
    counts, decision = found.get("counts", {}), found.get("decision")
    _require(isinstance(counts, dict) and all(type(count) is int for count in counts.values()), "counts", found)
    _require(not counts or {"train", "holdout"} <= counts.keys(), "counts", found)
    _require(decision is None or (isinstance(decision, dict) and _is_plain(decision)), "decision", found)
    _require(type(found.get("attempts", 0)) is int, "attempts", found)
    return Run(**found)


def unreadable(name: str, why: str) -> Run:
    """What stands for a run whose record cannot be read: one that has failed, which nobody takes up again."""
    return Run(name, "failed", "", 0.0, message=f"run.json cannot be read: {why}; restore it, or remove the folder {name}")


def _is_moment(value: object) -> bool:
    return is_number(value) and isinstance(value, int | float) and 0 <= value < END_OF_TIME


def _is_plain(value: Mapping[str, Any]) -> bool:
    """Whether it can be sent as JSON that every reader takes."""
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return True


def _require(right: bool, key: str, values: Mapping[str, Any]) -> None:
    if not right:
        raise ValueError(f"its {key} cannot be {ascii(values.get(key))[:40]}")
