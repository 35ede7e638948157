"""How an event, or what Label Studio's API says of a project, becomes rows of the correction log's tables.

Events come late, twice, in any order, or never. So only a later state of the same task or annotation replaces a row: later by Label
Studio's own ``updated_at``, not by the order of arrival. A row that is marked as deleted stays so, whatever an older event says. Only an
answer of Label Studio's API that was requested after the row was written overrides all of this.

All functions work on a connection that is in a transaction. ``updated`` is a time of Label Studio's, in seconds since 1970; ``changed``,
``stamp``, ``began`` and ``now`` are stamps (:mod:`backend.corrections.log_file`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from backend.corrections.schema import ADDED, VERSION
from backend.errors import where
from backend.label_studio.events import ANNOTATIONS_DELETED, SAVED, TASKS_CREATED, TASKS_DELETED
from backend.label_studio.wire import row_id
from backend.support.bounded_json import write_json

log = logging.getLogger(__name__)

KEPT = (
    *("id", "task", "project", "result", "was_cancelled", "ground_truth", "lead_time", "completed_by", "updated_by"),
    *("parent_prediction", "parent_annotation", "last_action", "import_id", "created_at", "updated_at"),
)
"""What is kept of an annotation: what events and the API's lists both have."""
AHEAD_SECONDS = 60.0
"""Seconds that Label Studio's clock may be ahead of ours. As an event is sent at once, a time further ahead comes from a wrong clock."""

GONE = "Label Studio no longer has it"

State = Literal["submitted", "skipped", "live", "deleted"]


@dataclass(frozen=True)
class _Row:
    """A task or an annotation on its way into its table; ``body`` is JSON."""

    id: int
    project: int | None
    task: int | None
    updated: float
    state: State
    body: str = ""
    reason: str = ""
    digest: str = ""
    """The SHA-256 of ``body``, in hexadecimal digits."""


def apply_event(connection: sqlite3.Connection, body: Mapping[str, Any], stamp: float, received: float) -> None:
    """Bring the tables up to date with an event. Malformed parts of it are ignored, and an event that cannot be read changes nothing.

    ``stamp`` is the stamp of the write. ``received`` is the time of day when the event came, which shows whether Label Studio's clock was
    ahead. Raises only sqlite3.OperationalError, for example for a failing disk.
    """
    connection.execute("SAVEPOINT event")
    try:
        _apply(connection, body, _Moment(stamp, received))
    except sqlite3.OperationalError:
        raise
    except Exception as error:  # the event itself is kept, and the next pull from Label Studio mends the tables
        connection.execute("ROLLBACK TO event")
        log.error("an event could not be read: %s", where(error))
    connection.execute("RELEASE event")


@dataclass(frozen=True)
class _Moment:
    """When an event came: the stamp of its write, and the time of day."""

    stamp: float
    received: float

    def is_news(self, updated: float, known: float) -> bool:
        """Whether a state with the time ``updated`` replaces one with the time ``known``. The later time wins, but if Label Studio's clock
        was ahead at the time ``known``, the state that came last wins.
        """
        return updated > known or (updated != known and known > self.received + AHEAD_SECONDS)


def _apply(connection: sqlite3.Connection, body: Mapping[str, Any], moment: _Moment) -> None:
    stamp = moment.stamp
    action, project = body.get("action"), body.get("project")
    number = None
    if isinstance(project, dict):
        number = row_id(project.get("id"))
        _apply_config(connection, project, moment)
    if action in (*SAVED, TASKS_CREATED):
        for raw in objects(body, "task"):
            _apply_row(connection, "tasks", _task(raw, number), moment)
        for raw in objects(body, "annotation"):
            _apply_row(connection, "annotations", _annotation(raw, number), moment)
    elif action == ANNOTATIONS_DELETED:
        for raw in objects(body, "annotation"):
            _bury(connection, "annotations", raw.get("id"), number, stamp, "deleted in Label Studio")
    elif action == TASKS_DELETED:
        for raw in objects(body, "task"):
            _bury(connection, "tasks", raw.get("id"), number, stamp, "deleted in Label Studio")
            _bury_annotations_of(connection, raw.get("id"), stamp)


def objects(body: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    """The objects under a key or its plural, be it one or a list of them."""
    for value in (body.get(name), body.get(name + "s")):
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict):
                yield entry


def _apply_config(connection: sqlite3.Connection, raw: Mapping[str, Any], moment: _Moment) -> None:
    """Keep the config that an event carries, unless the event is older than the one that brought the known config."""
    number, config = row_id(raw.get("id")), raw.get("label_config")
    if number is None or not isinstance(config, str):
        return
    known = connection.execute("SELECT updated FROM projects WHERE id = ?", (number,)).fetchone()
    updated = instant(raw.get("updated_at"))
    if known is None or moment.is_news(updated, known[0]):
        _put_project(connection, number, raw.get("title"), config, updated, moment.stamp)


def _put_project(connection: sqlite3.Connection, number: int, title: object, config: str, updated: float, changed: float) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO projects (id, title, label_config, updated, changed) VALUES (?, ?, ?, ?, ?)",
        (number, storable(title if isinstance(title, str) else ""), storable(config), updated, changed),
    )


def _task(raw: Mapping[str, Any], project: int | None) -> _Row | None:
    number, data = row_id(raw.get("id")), raw.get("data")
    if number is None or not isinstance(data, dict):
        return None
    return _whole(_Row(number, _first_id(project, raw.get("project")), number, instant(raw.get("updated_at")), "live"), data)


def _annotation(raw: Mapping[str, Any], project: int | None, task: int | None = None) -> _Row | None:
    number, home = row_id(raw.get("id")), _first_id(task, raw.get("task"))
    if number is None or home is None:
        return None
    kept: dict[str, Any] = {name: raw.get(name) for name in KEPT}
    kept |= {"task": home, "project": _first_id(project, raw.get("project"))}
    kept |= {name: _user(raw.get(name)) for name in ("completed_by", "updated_by")}
    state: State = "skipped" if raw.get("was_cancelled") is True else "submitted"
    return _whole(_Row(number, kept["project"], home, instant(raw.get("updated_at")), state), kept)


def _whole(row: _Row, content: Mapping[str, Any]) -> _Row:
    """Return the row with ``content``, as JSON, as its body, and with the digest of that."""
    body = _json(content)
    return replace(row, body=body, digest=hashlib.sha256(body.encode()).hexdigest())


def _apply_row(connection: sqlite3.Connection, table: str, row: _Row | None, moment: _Moment) -> None:
    if row is None:
        return
    known = connection.execute(f"SELECT updated, state FROM {table} WHERE id = ?", (row.id,)).fetchone()
    if known is None or (known[1] != "deleted" and moment.is_news(row.updated, known[0])):
        _put(connection, table, row, moment.stamp)


def _put(connection: sqlite3.Connection, table: str, row: _Row, changed: float) -> None:
    connection.execute(
        f"INSERT OR REPLACE INTO {table} (id, project, task, updated, changed, state, body, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (row.id, row.project, row.task, row.updated, changed, row.state, row.body, row.reason),
    )
    _put_digest(connection, table, row, changed)


def _put_digest(connection: sqlite3.Connection, table: str, row: _Row, changed: float) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO digests (kind, id, changed, digest) VALUES (?, ?, ?, ?)", (table, row.id, changed, row.digest)
    )


def _bury(connection: sqlite3.Connection, table: str, raw_id: object, project: int | None, changed: float, reason: str) -> None:
    """Mark a row as deleted. A task or annotation that was never seen gets such a row, too: the event that made it may still be on its
    way.
    """
    number = row_id(raw_id)
    if number is None:
        return
    known = connection.execute(f"SELECT project, task, state FROM {table} WHERE id = ?", (number,)).fetchone() or (project, None, "")
    if known[2] != "deleted":
        _put(connection, table, _Row(number, known[0], known[1], 0.0, "deleted", reason=reason), changed)


def _bury_annotations_of(connection: sqlite3.Connection, raw_id: object, changed: float) -> None:
    number = row_id(raw_id)
    if number is not None:
        connection.execute(
            "UPDATE annotations SET state = 'deleted', changed = ?, body = '', reason = 'its task was deleted in Label Studio' "
            "WHERE task = ? AND state != 'deleted'",
            (changed, number),
        )


# -- the whole of a project ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pulled:
    """What a pull changed: how many ``annotations`` the log lacked or had in another state.

    ``dropped`` is how many annotations were marked as deleted.
    """

    annotations: int
    dropped: int


@dataclass(frozen=True)
class ProjectRows:
    """A project of Label Studio's on its way into the tables."""

    project: int
    title: str
    label_config: str
    tasks: Sequence[_Row]
    annotations: Sequence[_Row]
    whole: Sequence[int]
    """The tasks of which ``annotations`` holds all annotations, so that any others are deleted."""


def project_rows(project: int, title: str, label_config: str, tasks: Sequence[Mapping[str, Any]]) -> ProjectRows:
    """Return what Label Studio says of a project and of some of its tasks, as rows.

    Writing the masks as JSON takes long, so call this before the transaction, not in it.
    """
    pulled_tasks = [row for raw in tasks if (row := _task({**raw, "project": project}, project))]
    pulled = [
        row
        for raw in tasks
        for entry in _listed(raw.get("annotations"))
        if (row := _annotation(entry, project, row_id(raw.get("id")))) is not None
    ]
    whole = [number for raw in tasks if isinstance(raw.get("annotations"), list) and (number := row_id(raw.get("id"))) is not None]
    return ProjectRows(project, title, label_config, pulled_tasks, pulled, whole)


def apply_project(connection: sqlite3.Connection, rows: ProjectRows, gone: Sequence[int], began: float, now: float) -> Pulled:
    """Make the tables say what Label Studio says of some tasks of a project, and mark the tasks ``gone``, which it lacks, as deleted.

    What events have told since the pull ``began`` stands.
    """
    project = rows.project
    updated, changed = connection.execute("SELECT updated, changed FROM projects WHERE id = ?", (project,)).fetchone() or (0.0, 0.0)
    if changed < began:
        # the API does not say when a config was saved: the last time that is known stays
        _put_project(connection, project, rows.title, rows.label_config, updated, now)
    for row in rows.tasks:
        _take(connection, "tasks", row, began, now)
        connection.execute("INSERT OR REPLACE INTO compared (task, updated) VALUES (?, ?)", (row.id, row.updated))
    taken = sum(_take(connection, "annotations", row, began, now) for row in rows.annotations)
    dropped = sum(_bury_others(connection, project, task, rows.annotations, began, now) for task in (*rows.whole, *gone))
    for task in gone:
        [(changed, state)] = connection.execute("SELECT changed, state FROM tasks WHERE id = ?", (task,)).fetchall() or [(0.0, "")]
        if changed < began and state:
            _bury(connection, "tasks", task, project, now, GONE)
    return Pulled(taken, dropped)


def bury_project(connection: sqlite3.Connection, project: int, began: float, now: float) -> Pulled:
    """Mark all tasks and annotations of a project that Label Studio no longer has as deleted, except those that were written since
    ``began``.
    """
    _bury_all(connection, "tasks", project, began, now)
    return Pulled(0, _bury_all(connection, "annotations", project, began, now))


def _bury_all(connection: sqlite3.Connection, table: str, project: int, began: float, now: float) -> int:
    query = f"SELECT id FROM {table} WHERE project = ? AND state != 'deleted' AND changed < ?"
    lost = connection.execute(query, (project, began)).fetchall()
    for (number,) in lost:
        _bury(connection, table, number, project, now, GONE)
    return len(lost)


def _listed(value: object) -> Iterator[Mapping[str, Any]]:
    yield from (entry for entry in value if isinstance(entry, dict)) if isinstance(value, list) else ()


def _bury_others(connection: sqlite3.Connection, project: int, task: int, theirs: Sequence[_Row], began: float, now: float) -> int:
    """Mark a task's annotations that are not among Label Studio's (``theirs``) as deleted, and return how many. Those that were written
    since ``began`` stay.
    """
    query = "SELECT id FROM annotations WHERE project = ? AND task = ? AND state != 'deleted' AND changed < ?"
    kept = {row.id for row in theirs if row.task == task}
    lost = [number for (number,) in connection.execute(query, (project, task, began)).fetchall() if number not in kept]
    for number in lost:
        _bury(connection, "annotations", number, project, now, GONE)
    return len(lost)


def _take(connection: sqlite3.Connection, table: str, row: _Row, began: float, now: float) -> bool:
    """Write Label Studio's row if it is news, and return whether it was.

    An unchanged row keeps its stamp, because nothing new is to be learnt from it.
    """
    known = connection.execute(f"SELECT updated, changed, state, project FROM {table} WHERE id = ?", (row.id,)).fetchone()
    if known is not None:
        updated, changed, state, project = known
        if changed >= began and (state == "deleted" or updated >= row.updated):
            return False
        if (updated, state, project) == (row.updated, row.state, row.project) and _has_body(connection, table, row, changed):
            return False
    _put(connection, table, row, now)
    return True


def _has_body(connection: sqlite3.Connection, table: str, row: _Row, changed: float) -> bool:
    """Whether the row in the table, last written at ``changed``, has the body of ``row``. If its digest is known, its body is not read; if
    not, and the bodies are equal, the digest is kept for the next time.
    """
    known = connection.execute("SELECT digest FROM digests WHERE kind = ? AND id = ? AND changed = ?", (table, row.id, changed)).fetchone()
    if known is not None:
        return bool(known[0] == row.digest)
    [[body]] = connection.execute(f"SELECT body FROM {table} WHERE id = ?", (row.id,)).fetchall()
    if body != row.body:
        return False
    _put_digest(connection, table, row, changed)
    return True


# -- older files ---------------------------------------------------------------------------------------------------------------------------


def upgrade(connection: sqlite3.Connection) -> None:
    """Add what an older file lacks: the column ``served.noted``, and the rows that its events make in newer tables.

    As it runs in a transaction, it is done once or not at all.
    """
    if "noted" not in {row[1] for row in connection.execute("PRAGMA table_info(served)")}:
        connection.execute(ADDED)
    [[version]] = connection.execute("PRAGMA user_version").fetchall()
    if version >= VERSION:
        return
    for received, body in stored_events(connection):
        apply_event(connection, body, received, received)
    connection.execute(f"PRAGMA user_version = {VERSION:d}")


def stored_events(connection: sqlite3.Connection) -> Iterator[tuple[float, dict[str, Any]]]:
    """When each of a file's events was received, and its body, in order; what cannot be read is passed over."""
    for received, text in connection.execute("SELECT received, body FROM events ORDER BY id"):
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(body, dict):
            yield received, body


# -- values --------------------------------------------------------------------------------------------------------------------------------


def instant(value: object) -> float:
    """Return a time of Label Studio's as seconds since 1970; 0 for anything else, so that it counts as older than any real time."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(0, UTC)
        return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return 0.0


def _first_id(*values: object) -> int | None:
    return next((number for value in values if (number := row_id(value)) is not None), None)


def _user(value: object) -> int | None:
    """A user's number; some routes give the whole user."""
    return row_id(value.get("id") if isinstance(value, dict) else value)


def storable(text: str) -> str:
    """Return the text as SQLite can store it: each lone surrogate (half of a UTF-16 pair) becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _json(value: object) -> str:
    return write_json(value, compact=True, sort_keys=True)
