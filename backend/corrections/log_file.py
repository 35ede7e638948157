"""The log's file: its connections, how long each waits for a lock, the order of its writes, and what waits beside it while it is locked.

Each write of events, annotations, tasks, served records or refusals has a *stamp*, a number larger than that of every such write before.
Writes of configs, parameters, typed phrases and marks have none. A stamp is the time in seconds since 1970 or, if the clock has
gone back, just above the last stamp. Stamps decide what came first, because a time of day may have been wrong.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from backend.corrections.log_faults import LogError, explain, wrong
from backend.corrections.schema import SCHEMA, VERSION
from backend.corrections.tables import upgrade
from backend.corrections.waiting_writes import WaitingWrites
from backend.errors import SettingsError
from sam4mllm.errors import first_line

log = logging.getLogger(__name__)

SOON = 0.25
"""Seconds that a webhook, a prediction or a page waits for the file; Label Studio gives a webhook one second."""
PATIENTLY = 10.0
"""Seconds that the opening of the file, most reads of the learning, and writes that cannot go into the spill file wait for the file."""
CHECKED_BYTES = 256 * 1024 * 1024
"""A file up to this size is checked as a whole when it is opened, within a second or two; what is wrong with a larger one shows in use."""
CLOCK = "clock"
"""The name of the mark that holds the last stamp."""
_TAKEN = "spill "
"""The first part of a mark's name; the spill file's own name follows. The mark holds the byte up to which that file is in the log."""


class LogFile:
    """The base class of :class:`backend.corrections.log.CorrectionLog`: it opens, reads and writes the file.

    Its methods raise LogError. Threads may share the object, and processes the file.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make one that only its owner can read, because events carry tokens.

        The tables that an older file lacks are filled from its events, once. Raises SettingsError if the file cannot be used.
        """
        self.path = path
        self._lock, self._read_locks = threading.Lock(), {SOON: threading.Lock(), PATIENTLY: threading.Lock()}
        self._spill = WaitingWrites(path.with_suffix(".waiting.jsonl"))
        self._fault = ""
        try:
            with self._explained():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(0o600)
                self._connection = _connect(path, PATIENTLY)
                self._readers = {wait: _connect(path, wait) for wait in self._read_locks}
                self._open()
        except LogError as error:
            self._close_all()
            raise SettingsError(f"SAM4MLLM_HOME: {error}") from error
        except BaseException:
            self._close_all()
            raise
        self._drain_if_possible()

    # -- opening and closing ---------------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        connection = self._connection
        connection.execute("PRAGMA synchronous=FULL")
        [[version]] = connection.execute("PRAGMA user_version").fetchall()
        if version > VERSION:
            raise SettingsError(f"SAM4MLLM_HOME: {self.path} is of a newer release; use that, or choose another folder")
        self._check_whole()
        [[mode]] = connection.execute("PRAGMA journal_mode").fetchall()
        if mode != "wal":
            connection.execute("PRAGMA journal_mode=WAL")
        if version < VERSION or _missing(connection):  # else nothing is written: a lock must not stop the server's start
            connection.executescript(SCHEMA)
            with self._writing() as writing:
                upgrade(writing)
            if lacking := _missing(connection):
                raise wrong(self.path, "schema", lacking)
        self._follow_older_stamps()

    def _check_whole(self) -> None:
        if not all(os.access(place, os.W_OK) for place in (self.path, self.path.parent)):
            raise wrong(self.path, "read_only", "it or its folder is read-only")
        if self.path.stat().st_size <= CHECKED_BYTES:
            [[found], *_] = self._connection.execute("PRAGMA quick_check(1)").fetchall()
            if found != "ok":
                raise wrong(self.path, "damaged", first_line(ValueError(found)))

    def _follow_older_stamps(self) -> None:
        """Make stamps go on after the latest time in the tables: a release that did not know stamps may have written last."""
        tables = ("annotations", "tasks", "projects")
        latest = max(self._read(f"SELECT max(changed) FROM {table}", wait=PATIENTLY)[0][0] or 0.0 for table in tables)
        if latest > self.position():
            with self._writing() as connection:
                put_mark(connection, CLOCK, latest)

    def close(self) -> None:
        """Close the file. Waiting writes are taken into the log now if that is possible, or else at the next start."""
        self._drain_if_possible()
        self._close_all()

    def _close_all(self) -> None:
        readers = getattr(self, "_readers", {}).values()
        for connection in (*readers, getattr(self, "_connection", None)):
            if connection is not None:
                connection.close()

    # -- reading and writing ---------------------------------------------------------------------------------------------------------------

    def _read(self, query: str, values: Sequence[object] | Mapping[str, object] = (), wait: float = SOON) -> list[Any]:
        lock = self._read_locks[wait]
        if not lock.acquire(timeout=wait):
            raise LogError(f"{self.path} is busy; ask again in a moment", "busy")
        try:
            with self._explained():
                return self._readers[wait].execute(query, values).fetchall()
        finally:
            lock.release()

    @contextmanager
    def _writing(self, wait: float = PATIENTLY) -> Iterator[sqlite3.Connection]:
        """Hold a write transaction, which is on disk when the block ends; an error in the block undoes it.

        Raises LogError if the file stays locked for ``wait`` seconds, and in place of any error of SQLite or of the system.
        """
        end = time.monotonic() + wait
        if not self._lock.acquire(timeout=wait):
            raise LogError(f"{self.path} is busy; ask again in a moment", "busy")
        try:
            with self._explained(), self._connection:
                self._connection.execute(f"PRAGMA busy_timeout = {max(0, int(1000 * (end - time.monotonic()))):d}")
                # lock now, not at the first change: no other process may write between what is read here and what is written
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
        finally:
            self._lock.release()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise explain(self.path, error) from error

    # -- what has to be kept at once -------------------------------------------------------------------------------------------------------

    def _keep(self, kind: str, value: Any) -> int:
        """Write a value to the log or, if that is not possible now or the spill file is not empty, to the spill file. When this returns,
        the value is on disk, after all values that were kept before.

        Return what ``_take`` returns, or 0 if the value is in the spill file. Raises LogError if neither takes it. The spill file is not
        tried if the log's disk is full or its error is of an unknown kind.
        """
        with self._explained(), self._spill.held():
            if self._spill.is_empty():
                try:
                    with self._writing(SOON) as connection:
                        return self._take(connection, kind, value)
                except LogError as error:
                    if error.kind in ("full", "other"):
                        raise
                    self._fault = str(error)
                    log.warning("%s; what comes meanwhile is kept in %s", error, self._spill.path)
            self._spill.append(kind, value)
            return 0

    def drain(self) -> None:
        """Take into the log what waits beside it. Raises LogError while that cannot be done; nothing is lost by that. A waiting write that
        the tables do not take, such as a damaged one, is left out, and the error is logged.
        """
        while self.waiting and self._drain_some():
            pass

    def _drain_some(self) -> bool:
        with self._explained(), self._spill.held():
            name, at = next(iter(self._read("SELECT name, at FROM marks WHERE name LIKE 'spill %'")), (_TAKEN, 0.0))
            chunk = self._spill.read((name.removeprefix(_TAKEN), int(at)))
            if chunk is None:
                self._spill.clear()
                self._fault = ""
                return False
            with self._writing(SOON) as connection:
                for kind, value in chunk.writes:
                    self._take_apart(connection, kind, value)
                connection.execute("DELETE FROM marks WHERE name LIKE 'spill %'")
                put_mark(connection, _TAKEN + chunk.name, float(chunk.end))
        log.info("%d writes taken into %s that had waited for it", len(chunk.writes), self.path)
        return True

    def _take_apart(self, connection: sqlite3.Connection, kind: str, value: Any) -> None:
        """Take one waiting write. One that cannot be taken, as after damage to the disk, is left out and does not stop the others."""
        connection.execute("SAVEPOINT one")
        try:
            self._take(connection, kind, value)
        except (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, LookupError, TypeError, ValueError) as error:
            connection.execute("ROLLBACK TO one")
            log.error("a line of %s is left out: %s", self._spill.path, first_line(error))
        connection.execute("RELEASE one")

    def _take(self, connection: sqlite3.Connection, kind: str, value: Any) -> int:
        """Write a kept value into the tables, inside a transaction. Subclasses say how for each ``kind``."""
        raise NotImplementedError

    @property
    def waiting(self) -> bool:
        """Whether something is on disk that the log does not hold yet."""
        with self._explained():
            return not self._spill.is_empty()

    @property
    def problem(self) -> str:
        """One line on what kept a write of this object out of the log, until ``drain`` has taken in all that waits; then empty."""
        return self._fault and f"{self._fault}; what came since waits in {self._spill.path.name}, and nothing is lost"

    def _drain_if_possible(self) -> None:
        try:
            self.drain()
        except LogError as error:
            log.warning("%s; what waits in %s is taken in later", error, self._spill.path)

    # -- order -----------------------------------------------------------------------------------------------------------------------------

    def position(self) -> float:
        """The stamp of the last write; 0 of an empty log."""
        return self.mark(CLOCK)

    def mark(self, name: str) -> float:
        """A number that was kept under a name; 0 if none was."""
        return float(next(iter(self._read("SELECT at FROM marks WHERE name = ?", (name,))), (0.0,))[0])

    def set_mark(self, name: str, at: float) -> None:
        """Keep a number under a name; a smaller one than before changes nothing."""
        self._keep("mark", [name, at])

    def since(self, moment: float) -> float:
        """Return the stamp for a time of day that was noted before there were stamps. A time in the future, from a wrong clock, gives 0."""
        return moment if moment <= time.time() else 0.0


def next_stamp(connection: sqlite3.Connection) -> float:
    """Return a new stamp for a write, and keep it as the last stamp. ``connection`` is in the transaction of that write."""
    rows = connection.execute("SELECT at FROM marks WHERE name = ?", (CLOCK,)).fetchall()
    stamp = max(time.time(), math.nextafter(rows[0][0], math.inf) if rows else 0.0)
    put_mark(connection, CLOCK, stamp)
    return stamp


def put_mark(connection: sqlite3.Connection, name: str, at: float) -> None:
    """Write a mark; a smaller one than before changes nothing."""
    connection.execute("INSERT INTO marks (name, at) VALUES (?, ?) ON CONFLICT DO UPDATE SET at = max(at, excluded.at)", (name, at))


def _connect(path: Path, seconds: float) -> sqlite3.Connection:
    return sqlite3.connect(path, check_same_thread=False, timeout=seconds)


def _missing(connection: sqlite3.Connection) -> str:
    """Say which table or column of this release the file lacks, the first one found only; empty if it lacks none."""
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(SCHEMA)
        wanted = _columns(model)
    found = _columns(connection)
    for table, columns in wanted.items():
        if table not in found:
            return f"it has no table {table}"
        if lacking := sorted(columns - found[table]):
            return f"its table {table} has no column {lacking[0]}"
    return ""


def _columns(connection: sqlite3.Connection) -> Mapping[str, set[str]]:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
    return {table: {row[1] for row in connection.execute(f"PRAGMA table_info({_quoted(table)})").fetchall()} for table in tables}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
