"""What is wrong with the log's file, in one line that says what to do: SQLite tells a damaged file from a full disk, and so do we."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path
from typing import Literal

from backend.errors import BackendError
from sam4mllm.errors import first_line

Kind = Literal["busy", "full", "damaged", "schema", "read_only", "closed", "io", "other"]
"""In this order: locked by another program; the disk is full; damaged, or no database; without this server's tables; may not be written;
may not be opened; the disk reports an error; anything else."""

RESTORE = 'stop the server and restore it from a back-up ("Restore" in docs/upgrade.md)'
_BY_SQLITE: dict[int, Kind] = {
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
    sqlite3.SQLITE_FORMAT: "damaged",
    sqlite3.SQLITE_READONLY: "read_only",
    sqlite3.SQLITE_CANTOPEN: "closed",
    sqlite3.SQLITE_PERM: "closed",
    sqlite3.SQLITE_AUTH: "closed",
    sqlite3.SQLITE_IOERR: "io",
}
_BY_SYSTEM: dict[int, Kind] = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EROFS: "read_only",
    errno.EACCES: "closed",
    errno.EPERM: "closed",
    errno.EIO: "io",
}
_ADVICE: dict[Kind, str] = {
    "busy": "is locked by another program; end that program, or ask again in a moment",
    "full": "cannot grow, for the disk is full; free space in {folder}",
    "damaged": f"is damaged ({{told}}); {RESTORE}",
    "schema": f"does not have this server's tables ({{told}}); if it is another program's, choose another folder, else {RESTORE}",
    "read_only": "cannot be written ({told}); make it and its folder writable for this user, or choose another folder",
    "closed": "cannot be opened ({told}); let this user read and write it and its folder, or choose another folder",
    "io": f"cannot be read or written, for the disk reports an error ({{told}}); look into the system's log, then {RESTORE}",
    "other": "cannot be used ({told})",
}


class LogError(BackendError):
    """The log cannot be read or written; ``kind`` says why."""

    reason = "log"

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind = kind


def explain(path: Path, error: sqlite3.Error | OSError) -> LogError:
    """Return the LogError that says what an error of SQLite or of the system means for the file ``path``."""
    kind = _kind_of(error)
    told = (error.strerror or first_line(error)) if isinstance(error, OSError) else first_line(error)
    return wrong(path, kind, told)


def wrong(path: Path, kind: Kind, told: str) -> LogError:
    """Return the LogError of a kind about the file ``path``. ``told`` is the detail that its text quotes."""
    return LogError(f"{path} {_ADVICE[kind].format(told=told, folder=path.parent)}", kind)


def _kind_of(error: sqlite3.Error | OSError) -> Kind:
    if isinstance(error, OSError):
        return _BY_SYSTEM.get(error.errno or 0, "other")
    code = getattr(error, "sqlite_errorcode", None)
    found = _BY_SQLITE.get(code & 0xFF) if isinstance(code, int) else None
    if found is not None:
        return found
    text = str(error)  # the text decides where there is no code, or only the general one
    if "database or disk is full" in text:
        return "full"
    return "schema" if text.startswith(("no such table", "no such column")) or "has no column named" in text else "other"
