"""The durable log (SQLite): webhook events, annotations, what was served, and what annotators typed.

Each event is on disk before it is acknowledged. The log also holds what events say of tasks and annotations, and why nothing is learnt from
some annotations. Learning reads the log later; this module only keeps it. :mod:`backend.corrections.log_records` has the log's content as
values, :mod:`backend.corrections.tables` turns events into rows, and :mod:`backend.corrections.log_file` reads and writes the file.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.corrections.config_history import LAST, ConfigHistory, config_digest, note_config, note_event, note_pulled, open_notes
from backend.corrections.log_file import PATIENTLY, LogFile, next_stamp, put_mark
from backend.corrections.log_records import Event, Served, StoredAnnotation, read_served, served_row
from backend.corrections.schema import NOTED
from backend.corrections.tables import Pulled, apply_event, apply_project, bury_project, project_rows, storable
from backend.errors import ParametersError
from backend.label_studio.parameters import NO_PARAMETERS, Parameters, read_parameters
from backend.label_studio.wire import row_id
from backend.support.bounded_json import write_json

AT_ONCE = 20
"""Annotations that are read from the file at once: each may hold megabytes."""

_ANNOTATIONS = """
SELECT a.id, a.project, a.task, a.updated, a.changed, a.state, a.body, coalesce(t.body, '{}'), coalesce(p.label_config, ''), c.digest
FROM annotations a LEFT JOIN tasks t ON t.id = a.task LEFT JOIN projects p ON p.id = a.project
LEFT JOIN annotation_configs c ON c.annotation = a.id AND c.updated = a.updated
WHERE a.id {which} AND a.state != 'deleted' AND coalesce(t.state, 'live') != 'deleted' ORDER BY a.id LIMIT ?
"""
_FOLLOWING, _NUMBERED = (_ANNOTATIONS.replace("{which}", which) for which in ("> ?", "IN (SELECT value FROM json_each(?))"))
_TOUCHED = """
SELECT id FROM annotations WHERE changed > :since
UNION SELECT a.id FROM tasks t JOIN annotations a ON a.task = t.id WHERE t.changed > :since
UNION SELECT a.id FROM served s JOIN annotations a ON a.task = s.task AND a.project = s.project WHERE s.noted > :since
"""
_CONFIG_TEXTS = (
    "SELECT c.label_config FROM config_notes n JOIN configs c ON c.digest = n.digest WHERE n.project = ? ORDER BY n.id DESC LIMIT 100"
)
_CONFIGS = (
    "SELECT p.id, p.label_config, (SELECT max(n.id) FROM config_notes n WHERE n.project = p.id), coalesce(q.body, '') "
    "FROM projects p LEFT JOIN parameters q ON q.project = p.id"
)
_REFUSALS = """
SELECT r.annotation, r.reason FROM refusals r LEFT JOIN annotations a ON a.id = r.annotation LEFT JOIN tasks t ON t.id = a.task
WHERE coalesce(a.state, '') != 'deleted' AND coalesce(t.state, 'live') != 'deleted' ORDER BY r.annotation, r.noted, r.stage
"""

_PHRASE = "SELECT phrase FROM phrases WHERE task = ? AND (project = ? OR (project > ? AND project < ?)) ORDER BY typed DESC LIMIT 1"
"""The last phrase typed for a task. Older releases wrote a project as Label Studio sends it, ``<id>.<created>``; both forms are found."""


class CorrectionLog(LogFile):
    """The log. Threads may share the object, and processes may share the file. Methods raise LogError.

    Events, what was served or withheld, typed phrases, configs and parameters that are noted, and ``set_mark`` are on disk when the method
    returns, within a fraction of a second. If another program has locked the file, or the file is damaged, they go into a spill file beside
    it and are taken into the log later, in the order in which they came. All other writes wait up to PATIENTLY seconds for a locked file,
    and then raise LogError.
    """

    def __init__(self, path: Path) -> None:
        """Open the log's file, or make it, as :class:`LogFile` does. Raises SettingsError if it cannot be used."""
        self._typed: dict[tuple[int | None, int], str] = {}
        """Phrases, by project and task, that may still be in the spill file only."""
        super().__init__(path)

    def _open(self) -> None:
        super()._open()
        if not self._read("SELECT 1 FROM sqlite_master WHERE name = 'config_notes'", wait=PATIENTLY):
            with self._writing() as connection:
                open_notes(connection)
        if not self._read("SELECT 1 FROM sqlite_master WHERE name = 'served_by_note'", wait=PATIENTLY):
            # not part of SCHEMA: that is run on an older file before the column of this index is added
            with self._writing() as connection:
                connection.execute(NOTED)

    def _take(self, connection: sqlite3.Connection, kind: str, value: Any) -> int:
        return _TAKERS[kind](connection, value)

    # -- events ----------------------------------------------------------------------------------------------------------------------------

    def store(self, body: Mapping[str, Any]) -> int:
        """Keep an event, and what it says of tasks and annotations. Both are on disk when this returns.

        Return the event's number, which is larger than that of every event before, or 0 if the event is in the spill file and is taken into
        the log later. An event that is repeated, late or malformed is kept like any other but does not change tasks and annotations.
        """
        return self._keep("event", [time.time(), body])

    def events(self, after: int = 0) -> list[Event]:
        """Return the events with a number greater than ``after``, in order."""
        rows = self._patiently("SELECT id, received, action, project, body FROM events WHERE id > ? ORDER BY id", (after,))
        return [Event(number, received, action, project, json.loads(body)) for number, received, action, project, body in rows]

    def last(self, action: str) -> int:
        """The number of the last event of an action; 0 if none came."""
        [[number]] = self._read("SELECT max(id) FROM events WHERE action = ?", (action,))
        return int(number or 0)

    def last_until(self, action: str, moment: float) -> int:
        """Return the number of the last event of an action that had come by ``moment``, in seconds since 1970; 0 if none had.

        This relies on the clock having been right then.
        """
        [[number]] = self._read(
            "SELECT max(id) FROM events WHERE action = ? AND id <= "
            "(SELECT id FROM events WHERE received <= ? ORDER BY received DESC, id DESC LIMIT 1)",
            (action, moment),
        )
        return int(number or 0)

    # -- annotations -----------------------------------------------------------------------------------------------------------------------

    def annotations(self) -> list[StoredAnnotation]:
        """All annotations that are not deleted, skipped ones included, by number."""
        return list(self.each_annotation())

    def each_annotation(self, numbers: Sequence[int] | None = None) -> Iterator[StoredAnnotation]:
        """Yield all annotations that are not deleted, or only those with these numbers.

        Annotations of a deleted task count as deleted. A few are read at a time, because masks take memory. An annotation that is stored
        meanwhile may be yielded or not.
        """
        history = ConfigHistory(self._patiently)
        if numbers is not None:
            for start in range(0, len(numbers), AT_ONCE):
                rows = self._patiently(_NUMBERED, (json.dumps(numbers[start : start + AT_ONCE]), AT_ONCE))
                yield from (_stored(row, history) for row in rows)
            return
        last = -1
        while rows := self._patiently(_FOLLOWING, (last, AT_ONCE)):
            last = rows[-1][0]
            yield from (_stored(row, history) for row in rows)

    def touched(self, since: float) -> list[int]:
        """Return the numbers of annotations, deleted ones too, that something was written for after the stamp ``since``: for the annotation
        itself, for its task, or about what was served for its task.
        """
        return [number for (number,) in self._patiently(_TOUCHED, {"since": since})]

    def config_texts(self, project: int) -> list[str]:
        """Return the last 100 configs that were noted for a project, the oldest first."""
        return [text for (text,) in self._patiently(_CONFIG_TEXTS, (project,))][::-1]

    def config_states(self) -> dict[int, str]:
        """Return, by project, a text that changes when another labelling config or other parameters become known for the project."""
        return {project: f"{note}:{config_digest(config)}:{told}" for project, config, note, told in self._patiently(_CONFIGS)}

    def count_new(self, since: float) -> int:
        """Return how many annotations, neither deleted nor skipped, came or changed after the stamp ``since``."""
        [[count]] = self._read(
            "SELECT count(*) FROM annotations a LEFT JOIN tasks t ON t.id = a.task "
            "WHERE a.changed > ? AND a.state = 'submitted' AND coalesce(t.state, 'live') != 'deleted'",
            (since,),
        )
        return int(count)

    def projects(self) -> list[int]:
        """The numbers of the projects that events or pulls told of, and of those for whose tasks something was served."""
        return [number for (number,) in self._read("SELECT id FROM projects UNION SELECT DISTINCT project FROM served ORDER BY 1")]

    def reconcile(
        self, project: int, title: str, label_config: str, tasks: Sequence[Mapping[str, Any]], began: float, gone: Sequence[int] = ()
    ) -> Pulled:
        """Take over what Label Studio holds of some tasks, all or nothing.

        Annotations that the tasks do not have are marked as deleted; annotations that they have come back even if they were so marked. The
        project's config is noted, too, also for annotations without one. Return how many annotations this changed.

        Args:
            project: its number, and its ``title`` and ``label_config``.
            tasks: each with ``id``, all of its ``annotations`` in full, and ``data`` and ``updated_at`` if they are known.
            began: ``position()`` before the tasks were requested: what events have told since then stands.
            gone: numbers of tasks that Label Studio does not have.
        """
        # first, and not with the lock: events and what is served are not to wait for it
        rows = project_rows(project, title, label_config, tasks)
        with self._writing() as connection:
            pulled = apply_project(connection, rows, gone, math.nextafter(began, math.inf), next_stamp(connection))
            for (current,) in connection.execute("SELECT label_config FROM projects WHERE id = ?", (project,)).fetchall():
                note_config(connection, project, current, time.time())  # that of an event, if one came since the pull began
            note_pulled(connection, project)
            return pulled

    def annotation_counts(self, project: int) -> dict[int, int]:
        """By task, how many annotations it has that are not deleted, skipped ones included."""
        query = "SELECT task, count(*) FROM annotations WHERE project = ? AND state != 'deleted' GROUP BY task"
        return dict(self._patiently(query, (project,)))

    def annotations_of(self, task: int) -> list[int]:
        """The numbers of a task's annotations that are not deleted, skipped ones among them."""
        return [number for (number,) in self._patiently("SELECT id FROM annotations WHERE task = ? AND state != 'deleted'", (task,))]

    def replace_mark(self, name: str, at: float) -> None:
        """Keep a number under a name. Unlike with ``set_mark``, a smaller number than the kept one replaces it, too: the kept one may come
        from a wrong clock.
        """
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO marks (name, at) VALUES (?, ?)", (name, at))

    def compared(self, task: int) -> float | None:
        """Return the time of a task's last change, in seconds since 1970, as of its last comparison with Label Studio; None without one."""
        rows = self._patiently("SELECT updated FROM compared WHERE task = ?", (task,))
        return float(rows[0][0]) if rows else None

    def drop(self, project: int, began: float) -> Pulled:
        """Mark all tasks and annotations of a project as deleted, except those that events told of since ``position()`` was ``began``."""
        with self._writing() as connection:
            return bury_project(connection, project, math.nextafter(began, math.inf), next_stamp(connection))

    # -- labelling configs -----------------------------------------------------------------------------------------------------------------

    def note_config(self, project: int, label_config: str) -> None:
        """Note the config that Label Studio says a project has now. Nothing is written if the last note has the same config."""
        if any(digest == config_digest(label_config) for _, digest, _ in self._read(LAST, (project,))):
            return
        self._keep("config", [project, label_config, time.time()])

    def note_parameters(self, project: int, parameters: Parameters) -> None:
        """Keep a project's extra parameters, by which its tasks are answered from now on. They replace those kept before."""
        self._keep("parameters", [project, parameters.to_json()])

    def parameters(self, project: int, wait: float = PATIENTLY) -> Parameters:
        """Return a project's extra parameters; NO_PARAMETERS if none are kept or they cannot be read. ``wait`` is as in ``served``."""
        rows = self._read("SELECT body FROM parameters WHERE project = ?", (project,), wait)
        try:
            return read_parameters(rows[0][0]) if rows else NO_PARAMETERS
        except ParametersError:  # a newer release may have written them
            return NO_PARAMETERS

    # -- what nothing is learnt from -------------------------------------------------------------------------------------------------------

    def note_refusals(self, stage: str, reasons: Mapping[int, str]) -> None:
        """Keep why a stage of the learning refused annotations. This replaces all refusals of the stage, all or nothing.

        Args:
            stage: the stage's name.
            reasons: one line for each annotation, by its number. A reason that is already kept keeps its stamp.
        """
        with self._writing() as connection:
            now = next_stamp(connection)
            known = dict(connection.execute("SELECT annotation, reason FROM refusals WHERE stage = ?", (stage,)).fetchall())
            said = {annotation: storable(reason) for annotation, reason in reasons.items()}
            over = [(stage, annotation) for annotation in known.keys() - said.keys()]
            connection.executemany("DELETE FROM refusals WHERE stage = ? AND annotation = ?", over)
            news = [(stage, annotation, reason, now) for annotation, reason in said.items() if known.get(annotation) != reason]
            connection.executemany("INSERT OR REPLACE INTO refusals (stage, annotation, reason, noted) VALUES (?, ?, ?, ?)", news)

    def refusals(self) -> dict[int, str]:
        """Return why nothing is learnt from annotations, by their number, without deleted ones.

        If several stages refused an annotation, the newest reason counts.
        """
        return dict(self._patiently(_REFUSALS))

    # -- what was served -------------------------------------------------------------------------------------------------------------------

    def serve(self, records: Sequence[Served]) -> None:
        """Keep what was served, all or nothing.

        If a record of the same task, version, phrase and region (or page) is there already, that one stays as it is, except that it counts
        as a batch's for good once a batch has served it.
        """
        self._keep("served", [served_row(one) for one in records])

    def served(self, project: int, task: int, wait: float = PATIENTLY) -> list[Served]:
        """What was served for a task, in the order of keeping. It waits ``wait`` seconds for a locked file, SOON or PATIENTLY."""
        rows = self._read(
            "SELECT time, version, phrase, region, interactive, body FROM served WHERE project = ? AND task = ? "
            "ORDER BY coalesce(noted, time), time, version, phrase, region",
            (project, task),
            wait,
        )
        return [read_served(project, task, row) for row in rows]

    def withhold(self, project: int, task: int) -> None:
        """Note that a task gets no pre-annotation, on purpose."""
        self._keep("withheld", [project, task])

    def withheld(self, project: int, task: int) -> bool:
        """Whether a task gets no pre-annotation, on purpose."""
        return bool(self._read("SELECT 1 FROM withheld WHERE project = ? AND task = ?", (project, task)))

    # -- phrases ---------------------------------------------------------------------------------------------------------------------------

    def remember(self, project: int | None, task: int, phrase: str) -> None:
        """Keep a phrase that was typed for a task, in place of the one before. Phrases without a project are kept under a nameless one."""
        if not self._keep("phrase", [[_text_of(project), task, phrase, time.time()]]):
            self._typed[project, task] = phrase

    def task_phrase(self, project: int | None, task: int) -> str:
        """The last phrase typed for a task; empty if none."""
        if self._typed and not self.waiting:
            self._typed = {}
        if (project, task) in self._typed:
            return self._typed[project, task]
        name = _text_of(project)
        rows = self._read(_PHRASE, (task, name, f"{name}.", f"{name}/"))
        return str(rows[0][0]) if rows else ""

    def _patiently(self, query: str, values: Sequence[object] | Mapping[str, object] = ()) -> list[Any]:
        """Return a query's rows. If another program has locked the file, this waits up to PATIENTLY seconds: the learning has that time."""
        return self._read(query, values, PATIENTLY)


# -- what is kept, in a transaction --------------------------------------------------------------------------------------------------------


def _take_event(connection: sqlite3.Connection, value: Any) -> int:
    received, body = value
    project = body.get("project")
    number = row_id(project.get("id")) if isinstance(project, dict) else None
    action = str(body.get("action", ""))[:64].encode("ascii", "replace").decode()
    cursor = connection.execute(
        "INSERT INTO events (received, action, project, body) VALUES (?, ?, ?, ?)",
        (received, action, number, write_json(body)),
    )
    apply_event(connection, body, next_stamp(connection), received)
    note_event(connection, body, received)
    return int(cursor.lastrowid or 0)


def _text_of(project: int | None) -> str:
    """Return a project as the table of phrases holds it."""
    return "" if project is None else str(project)


def _take_served(connection: sqlite3.Connection, value: Any) -> int:
    stamp = next_stamp(connection)
    connection.executemany(
        "INSERT INTO served (project, task, version, phrase, region, time, interactive, body, noted) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET interactive = min(interactive, excluded.interactive)",
        [[*row, stamp] for row in value],
    )
    return 1


def _take_withheld(connection: sqlite3.Connection, value: Any) -> int:
    connection.execute("INSERT OR IGNORE INTO withheld (project, task) VALUES (?, ?)", value)
    return 1


def _take_phrase(connection: sqlite3.Connection, value: Any) -> int:
    connection.executemany("INSERT OR REPLACE INTO phrases (project, task, phrase, typed) VALUES (?, ?, ?, ?)", value)
    return 1


def _take_config(connection: sqlite3.Connection, value: Any) -> int:
    note_config(connection, *value)
    return 1


def _take_parameters(connection: sqlite3.Connection, value: Any) -> int:
    connection.execute("INSERT OR REPLACE INTO parameters (project, body) VALUES (?, ?)", value)
    return 1


def _take_mark(connection: sqlite3.Connection, value: Any) -> int:
    put_mark(connection, *value)
    return 1


_TAKERS: Mapping[str, Callable[[sqlite3.Connection, Any], int]] = {
    "event": _take_event,
    "served": _take_served,
    "withheld": _take_withheld,
    "phrase": _take_phrase,
    "config": _take_config,
    "parameters": _take_parameters,
    "mark": _take_mark,
}


# -- rows ----------------------------------------------------------------------------------------------------------------------------------


def _stored(row: Sequence[Any], history: ConfigHistory) -> StoredAnnotation:
    number, project, task, updated, changed, state, body, data, current, own = row
    home = -1 if project is None else project
    configs = history.configs(home, own, updated, current)
    return StoredAnnotation(number, home, task, updated, changed, state, json.loads(body), json.loads(data), configs)
