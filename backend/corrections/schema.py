"""The tables of the log's file."""

from __future__ import annotations

VERSION = 1
"""The version of the tables, which the file keeps in ``user_version``. Version 0 had only ``events`` and ``phrases``."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY,
    received REAL NOT NULL,
    action TEXT NOT NULL,
    project INTEGER,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_action ON events (action, received);
CREATE TABLE IF NOT EXISTS phrases (
    project TEXT NOT NULL,
    task INTEGER NOT NULL,
    phrase TEXT NOT NULL,
    typed REAL NOT NULL,
    PRIMARY KEY (project, task)
);
CREATE TABLE IF NOT EXISTS served (
    project INTEGER NOT NULL,
    task INTEGER NOT NULL,
    version TEXT NOT NULL,
    phrase TEXT NOT NULL,
    region TEXT NOT NULL,
    time REAL NOT NULL,
    interactive INTEGER NOT NULL,
    body TEXT NOT NULL,
    noted REAL,
    PRIMARY KEY (project, task, version, phrase, region)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS withheld (
    project INTEGER NOT NULL,
    task INTEGER NOT NULL,
    PRIMARY KEY (project, task)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS projects (
    id INTEGER PRIMARY KEY,
    title TEXT NOT NULL,
    label_config TEXT NOT NULL,
    updated REAL NOT NULL,
    changed REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY,
    project INTEGER,
    task INTEGER,
    updated REAL NOT NULL,
    changed REAL NOT NULL,
    state TEXT NOT NULL,
    body TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS annotations (
    id INTEGER PRIMARY KEY,
    project INTEGER,
    task INTEGER,
    updated REAL NOT NULL,
    changed REAL NOT NULL,
    state TEXT NOT NULL,
    body TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS digests (
    kind TEXT NOT NULL,
    id INTEGER NOT NULL,
    changed REAL NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refusals (
    stage TEXT NOT NULL,
    annotation INTEGER NOT NULL,
    reason TEXT NOT NULL,
    noted REAL NOT NULL,
    PRIMARY KEY (stage, annotation)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parameters (
    project INTEGER PRIMARY KEY,
    body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS compared (
    task INTEGER PRIMARY KEY,
    updated REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS marks (
    name TEXT PRIMARY KEY,
    at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS annotations_by_task ON annotations (task);
CREATE INDEX IF NOT EXISTS annotations_by_change ON annotations (changed);
CREATE INDEX IF NOT EXISTS tasks_by_change ON tasks (changed);
"""
"""The tables of the file.

``updated`` is Label Studio's time, ``changed`` the stamp of the row's last write (:mod:`backend.corrections.log_file`). ``tasks.body`` is
the task's data, and ``tasks.task`` the task's own number. A deleted task or annotation keeps its row, without a body and with the reason.
``digests`` holds the digests of the bodies in the table named by ``kind``. A digest is valid only while its ``changed`` equals the row's:
otherwise a release that does not know digests wrote the row. ``served.noted`` is the stamp of the row's first write, NULL if an older
release wrote it; ``refusals.noted`` is the stamp under which the reason was noted. ``parameters`` holds a project's current extra
parameters as JSON, empty for none. ``compared`` holds the time of a task's last change as it was when the task was last compared with Label
Studio. ``marks`` holds numbers under names.
"""
ADDED = "ALTER TABLE served ADD COLUMN noted REAL"
"""Adds ``served.noted`` to a file of a release that did not have this column."""
NOTED = "CREATE INDEX IF NOT EXISTS served_by_note ON served (noted)"
