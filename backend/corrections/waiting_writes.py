"""The spill file: writes that the log cannot take now, for example because another program has locked it.

They stay on disk, in the order in which they came, until the log can take them.

::

    {"spill": "0f3a…"}           first line: a random name, a new one whenever the file is begun anew
    ["event", {…}]               a write a line

A line counts once it is whole and flushed. Whoever takes lines into the log notes there, in the same transaction, the name and the byte up
to which the lines are taken. So a process that is killed at any moment neither loses a line nor takes one twice.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.support.bounded_json import write_json
from sam4mllm.durable import locked, sync_path

log = logging.getLogger(__name__)

CHUNK_BYTES = 4 * 1024 * 1024
"""Lines of about this size are taken together: this many bytes, and what is left of the last line. Other writers wait meanwhile."""
_HEADER = re.compile(rb'\{"spill": "([0-9a-f]{32})"\}\n')


@dataclass(frozen=True)
class Chunk:
    """Lines of the file with this ``name``, from a byte up to the byte ``end``; damaged lines are left out."""

    name: str
    end: int
    writes: list[tuple[str, Any]]


class WaitingWrites:
    """The spill file. Any number of threads and processes may share it. Each works on it inside ``held``, one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        return self._path

    def is_empty(self) -> bool:
        """Whether nothing waits. Outside ``held`` this is only a hint, because another process may write meanwhile. Raises OSError."""
        try:
            return self._path.stat().st_size == 0
        except FileNotFoundError:
            return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep all other threads and processes from the file during the block. Raises OSError."""
        with self._lock, locked(self._path.with_suffix(".lock")):
            yield

    def append(self, kind: str, value: object) -> None:
        """Keep a write; on disk when this returns. Raises OSError, and then nothing of it is left."""
        line = write_json([kind, value], compact=True).encode() + b"\n"
        new = self._name() is None
        if new and not self.is_empty():
            self._put_aside()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            try:
                file.write((_header() if new else _line_end(file, size)) + line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        if new:
            sync_path(self._path.parent)

    def read(self, taken: tuple[str, int]) -> Chunk | None:
        """Return the next lines; None if there are no more. Raises OSError.

        ``taken`` is the name and the byte up to which lines are taken. If the file has another name, all of its lines are still to take.
        """
        name = self._name()
        if name is None:
            if not self.is_empty():
                self._put_aside()
            return None
        with self._path.open("rb") as file:
            start = taken[1] if taken[0] == name else len(_header())
            file.seek(start)
            data = file.read(CHUNK_BYTES)
            if not data.endswith(b"\n"):
                data += file.readline()
        if not data:
            return None
        return Chunk(name, start + len(data), [found for line in data.splitlines() if (found := _write(line)) is not None])

    def clear(self) -> None:
        """Empty the file. Raises OSError."""
        if not self.is_empty():
            os.truncate(self._path, 0)
            sync_path(self._path)

    def _name(self) -> str | None:
        try:
            with self._path.open("rb") as file:
                found = _HEADER.fullmatch(file.readline(100))
        except FileNotFoundError:
            return None
        return found[1].decode() if found else None

    def _put_aside(self) -> None:
        """Rename the file, which lacks its first line: a process was killed while it began the file, or the file is damaged."""
        aside = self._path.with_name(f"{self._path.name}.damaged-{secrets.token_hex(4)}")
        os.replace(self._path, aside)
        log.error("%s lacks its first line; it is put aside as %s", self._path, aside.name)


def _header() -> bytes:
    return b'{"spill": "%s"}\n' % secrets.token_hex(16).encode()


def _line_end(file: Any, size: int) -> bytes:
    """Return the line end that separates the next line from one that a killed process left half written; empty if none is needed."""
    file.seek(size - 1)
    end = b"" if file.read(1) == b"\n" else b"\n"
    file.seek(size)
    return end


def _write(line: bytes) -> tuple[str, Any] | None:
    try:
        kind, value = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None  # half a line: nobody was told that it was kept
    return (kind, value) if isinstance(kind, str) else None
