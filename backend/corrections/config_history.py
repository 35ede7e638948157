"""Which labelling config a project had when: an annotation is read with the config that it was made under, not with a later one.

A config is noted when an event, ``/setup``, a request for predictions or a pull shows that it has changed. Notes are ordered as they were
written. The time of a note is used only for annotations that came without a config, which is how Label Studio's API sends them.

Functions that write work on a connection that is in a transaction. Times are seconds since 1970.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.corrections.tables import instant, objects, storable, stored_events
from backend.label_studio.wire import row_id

MAX_CONFIGS = 20
"""At most this many of a project's noted configs, the newest ones, are tried for an annotation after its own and the present one."""
CLOCK_SECONDS = 5.0
"""How far Label Studio's clock may be behind ours."""

SCHEMA = (
    "CREATE TABLE configs (digest TEXT PRIMARY KEY, label_config TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE config_notes (id INTEGER PRIMARY KEY, project INTEGER NOT NULL, digest TEXT NOT NULL, noted REAL NOT NULL, "
    "updated REAL NOT NULL)",
    "CREATE INDEX config_notes_by_project ON config_notes (project, id)",
    "CREATE TABLE annotation_configs (annotation INTEGER PRIMARY KEY, updated REAL NOT NULL, digest TEXT NOT NULL)",
)
"""The tables of the notes. All ``updated`` are times of Label Studio's.

``config_notes.updated`` is the project's ``updated_at`` in the event that brought the config. Where a config came without a time, it is
that of the note before, or 0. ``config_notes.noted`` is this server's time. ``annotation_configs.updated`` is the annotation's
``updated_at``; the row is valid only while the annotation has that time."""


def open_notes(connection: sqlite3.Connection) -> None:
    """Make the tables if the file lacks them, and fill them from the events that it holds."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'config_notes'").fetchone():
        return
    for statement in SCHEMA:
        connection.execute(statement)
    for received, body in stored_events(connection):
        note_event(connection, body, received)


def note_event(connection: sqlite3.Connection, body: Mapping[str, Any], received: float) -> None:
    """Note the config that an event carries, and note which config the event's annotations were made under.

    That is the config of the event or, if it carries none, the last one noted for the project. If there is neither, or the event names no
    project, nothing is noted.
    """
    project = body.get("project")
    raw = project if isinstance(project, dict) else {}
    number, config = row_id(raw.get("id")), raw.get("label_config")
    if number is None:
        return
    digest = ""
    if isinstance(config, str) and config.strip():
        digest = _keep(connection, config)
        _note(connection, number, digest, received, instant(raw.get("updated_at")))
    elif (last := _last(connection, number)) is not None:
        digest = last.digest
    if not digest:
        return
    for annotation in objects(body, "annotation"):
        if (annotation_id := row_id(annotation.get("id"))) is not None and "result" in annotation:
            # the same event may come again when a later config is noted: only a newer state of the annotation replaces the first note
            connection.execute(
                "INSERT INTO annotation_configs (annotation, updated, digest) VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET updated = excluded.updated, digest = excluded.digest WHERE excluded.updated > updated",
                (annotation_id, instant(annotation.get("updated_at")), digest),
            )


def note_config(connection: sqlite3.Connection, project: int, config: str, now: float) -> None:
    """Note the config that a project has now, unless it is blank or the last note has the same config."""
    if config.strip():
        _note(connection, project, _keep(connection, config), now, None)


def note_pulled(connection: sqlite3.Connection, project: int) -> None:
    """Note a config for each of a project's annotations for whose present state none is noted. Without any note of the project, do nothing.

    It is the last config that had been noted when the annotation was saved. If none had been noted by then, it is the newest config known
    now: the annotation cannot have been made under one that is noted later.
    """
    query = (
        "SELECT a.id, a.updated FROM annotations a LEFT JOIN annotation_configs c ON c.annotation = a.id AND c.updated = a.updated "
        "WHERE a.project = ? AND a.state != 'deleted' AND c.annotation IS NULL"
    )
    notes = connection.execute(NOTES, (project,)).fetchall()
    if not notes:
        return
    for number, updated in connection.execute(query, (project,)).fetchall():
        row = (number, updated, _at(notes, updated) or notes[-1][0])
        connection.execute("INSERT OR REPLACE INTO annotation_configs (annotation, updated, digest) VALUES (?, ?, ?)", row)


NOTES = "SELECT digest, noted FROM config_notes WHERE project = ? ORDER BY id"
"""All notes of a project, in the order in which they were written."""


def _at(notes: Sequence[tuple[str, float]], updated: float) -> str | None:
    """Return the digest of the last config noted by ``updated``, when an annotation was saved; None if none was noted by then."""
    return next((digest for digest, noted in reversed(notes) if noted <= updated + CLOCK_SECONDS), None)


def config_digest(config: str) -> str:
    """Return the digest that a config is kept under."""
    return hashlib.sha256(storable(config).encode()).hexdigest()


@dataclass(frozen=True)
class _Note:
    id: int
    digest: str
    updated: float


LAST = "SELECT id, digest, updated FROM config_notes WHERE project = ? ORDER BY id DESC LIMIT 1"
"""The last note of a project."""


def _last(connection: sqlite3.Connection, project: int) -> _Note | None:
    row = connection.execute(LAST, (project,)).fetchone()
    return None if row is None else _Note(*row)


def _keep(connection: sqlite3.Connection, config: str) -> str:
    digest = config_digest(config)
    connection.execute("INSERT OR IGNORE INTO configs (digest, label_config) VALUES (?, ?)", (digest, storable(config)))
    return digest


def _note(connection: sqlite3.Connection, project: int, digest: str, now: float, updated: float | None) -> None:
    """Note that a project has the config with this digest.

    ``updated`` is the project's time from an event, or None if the config is the one that the project has now. An event that is no newer
    than the last note came late, and nothing is noted.
    """
    last = _last(connection, project)
    if last is not None and updated is not None and updated <= last.updated:
        return
    known = 0.0 if last is None else last.updated
    if last is not None and digest == last.digest:
        if updated is not None:
            connection.execute("UPDATE config_notes SET updated = ? WHERE id = ?", (updated, last.id))
        return
    connection.execute(
        "INSERT INTO config_notes (project, digest, noted, updated) VALUES (?, ?, ?, ?)",
        (project, digest, now, known if updated is None else updated),
    )


# -- reading -------------------------------------------------------------------------------------------------------------------------------


class ConfigHistory:
    """The configs of the projects in one file. Each project's configs are read only once, so use an object for one pass only."""

    def __init__(self, read: Callable[[str, Sequence[object]], list[Any]]) -> None:
        """``read`` takes a query and its values, and returns the rows."""
        self._read = read
        self._notes: dict[int, list[tuple[str, float]]] = {}
        self._texts: dict[str, str] = {}
        self._found: dict[tuple[int, str, str], tuple[str, ...]] = {}

    def configs(self, project: int, own: str | None, updated: float, current: str) -> tuple[str, ...]:
        """Return the configs that an annotation may have been made under, the likeliest first.

        Args:
            project: the number of the annotation's project.
            own: the digest of the config that is noted for the annotation; None if none is.
            updated: when the annotation was saved, by Label Studio's clock.
            current: the project's present config, or empty.
        """
        notes = self._notes_of(project)
        key = (project, own or _at(notes, updated) or "", current)
        if key not in self._found:
            # configs that are not known to be of the annotation's time: the newest first
            digests = list(dict.fromkeys(digest for digest, _ in reversed(notes)))[:MAX_CONFIGS]
            texts = [self._text(key[1]), current, *map(self._text, digests)]
            self._found[key] = tuple(dict.fromkeys(text for text in texts if text.strip()))
        return self._found[key]

    def _notes_of(self, project: int) -> list[tuple[str, float]]:
        if project not in self._notes:
            self._notes[project] = self._read(NOTES, (project,))
        return self._notes[project]

    def _text(self, digest: str) -> str:
        if digest not in self._texts:
            rows = self._read("SELECT label_config FROM configs WHERE digest = ?", (digest,))
            self._texts[digest] = rows[0][0] if rows else ""
        return self._texts[digest]
