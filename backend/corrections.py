"""The durable log (SQLite): every webhook event, on disk before it is acknowledged, and the phrases that annotators typed.

Learning reads it later; here it is only kept.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.errors import SettingsError
from backend.wire import is_row_id
from sam4mllm.errors import first_line

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY,
    received REAL NOT NULL,
    action TEXT NOT NULL,
    project INTEGER,
    body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS phrases (
    project TEXT NOT NULL,
    task INTEGER NOT NULL,
    phrase TEXT NOT NULL,
    typed REAL NOT NULL,
    PRIMARY KEY (project, task)
);
"""
ANY_TASK = -1
"""The row that holds a project's last phrase, whichever task it was typed for."""


@dataclass(frozen=True)
class Event:
    """A webhook as it came; ``received`` in seconds since 1970."""

    id: int
    received: float
    action: str
    project: int | None
    body: Mapping[str, Any]


class CorrectionLog:
    """One file, one writer at a time; safe to share between threads, and the file between processes."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make one that only its owner can read: events carry tokens. Raises SettingsError if it cannot be written."""
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o600)
            self._connection = sqlite3.connect(path, check_same_thread=False, timeout=10.0)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(f"SAM4MLLM_HOME: {path} cannot be written ({first_line(error)}); choose another folder") from error

    def store(self, body: Mapping[str, Any]) -> int:
        """Keep an event; on disk when this returns. Its number, which only grows."""
        project = body.get("project")
        number = project.get("id") if isinstance(project, dict) else None
        action = str(body.get("action", ""))[:64].encode("ascii", "replace").decode()
        with self._writing() as connection:
            cursor = connection.execute(
                "INSERT INTO events (received, action, project, body) VALUES (?, ?, ?, ?)",
                (time.time(), action, number if is_row_id(number) else None, json.dumps(body)),
            )
        return int(cursor.lastrowid or 0)

    def events(self, after: int = 0) -> list[Event]:
        """What has come since an event, in order."""
        with self._lock:
            rows = self._connection.execute("SELECT id, received, action, project, body FROM events WHERE id > ? ORDER BY id", (after,))
            return [Event(number, received, action, project, json.loads(body)) for number, received, action, project, body in rows]

    def remember(self, project: str, task: int | None, phrase: str) -> None:
        """Keep a typed phrase, for its task if it has a number, and as the project's last."""
        rows = [(project, key, phrase, time.time()) for key in (ANY_TASK, task) if key is not None]
        with self._writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO phrases (project, task, phrase, typed) VALUES (?, ?, ?, ?)", rows)

    def task_phrase(self, project: str, task: int) -> str:
        """The last phrase typed for a task; empty if none."""
        return self._phrase(project, task)

    def project_phrase(self, project: str) -> str:
        """The last phrase typed for any task of a project; empty if none."""
        return self._phrase(project, ANY_TASK)

    def _phrase(self, project: str, key: int) -> str:
        with self._lock:
            row = self._connection.execute("SELECT phrase FROM phrases WHERE project = ? AND task = ?", (project, key)).fetchone()
        return str(row[0]) if row else ""

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._connection:
            yield self._connection

    def close(self) -> None:
        with self._lock:
            self._connection.close()
