"""What a shard has worked out, on disk: nothing is lost or repeated after a kill, and a file that was cut short is noticed.

``part-000001.jsonl`` holds a line a task, and as its last line how many they are and their SHA-256. The part that is being written has
another name and no last line; its whole lines are taken over after a kill. ``journal.jsonl`` says which parts are in Label Studio.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.errors import BatchError
from sam4mllm.durable import append_line, locked, partial, publish, replace_file

log = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"
PART_SECONDS = 60.0
"""Seconds after a part's first result. A result that is added later closes the part even if it is not full, so that what a slow model
finds is soon seen."""

Row = dict[str, Any]


@dataclass
class Store:
    """The results of one shard in a folder of its own; open it by :func:`opened`.

    One thread may use it, and a second one may call ``begin_push`` and ``end_push`` only. ``size`` is the number of tasks in a full part.
    ``done`` has the key of the question for each task with a result, ``settled`` are the tasks whose results an earlier run pushed,
    ``waiting`` the parts that are not known to be in Label Studio.
    """

    folder: Path
    size: int
    done: dict[int, str] = field(default_factory=dict)
    settled: set[int] = field(default_factory=set)
    waiting: list[Path] = field(default_factory=list)
    _doubtful: set[str] = field(default_factory=set)
    _rows: list[Row] = field(default_factory=list)
    _last: int = 0
    _began: float = 0.0

    @property
    def rows(self) -> int:
        """The number of results in the part that is being written."""
        return len(self._rows)

    def add(self, task: int, key: str, result: object) -> Path | None:
        """Store a result. Return the part that was closed after it, because it was full or older than PART_SECONDS, else None.

        A task may be given again; its last result counts. Raises BatchError if the result cannot be written.
        """
        row = {"task": task, "key": key, "result": result}
        with _writing(self.folder):
            self._append(row)  # without fsync: it survives a kill of the process, and a power cut loses at most this part
        self._took(row)
        return self.close_part() if len(self._rows) >= self.size or time.monotonic() > self._began + PART_SECONDS else None

    def close_part(self) -> Path | None:
        """Finish the part that is being written, and return its file, which now has its final name; None if the part is empty.

        Raises BatchError if it cannot be written.
        """
        if not self._rows:
            return None
        path = self._part
        with _writing(self.folder):
            self._append(_seal(b"".join(map(_line, self._rows)), len(self._rows)))
            publish(self._open_part, path)
        self._last += 1
        self._rows = []
        self.waiting.append(path)
        return path

    def begin_push(self, part: Path) -> bool:
        """Note that a part is about to be pushed. Return whether an earlier run began to push it, so that some of its results may have
        arrived.

        Raises BatchError if the journal cannot be written.
        """
        doubtful = part.name in self._doubtful
        self._note(part, "pushing")
        return doubtful

    def end_push(self, part: Path) -> None:
        """Note that a part is in Label Studio. Raises BatchError if the journal cannot be written."""
        self._note(part, "pushed")
        self.waiting.remove(part)

    def results(self) -> dict[int, object]:
        """The last result of each task, of all parts that are closed."""
        return {row["task"]: row["result"] for part in sorted(self.folder.glob("part-*.jsonl")) for row in read_part(part) or ()}

    def load(self) -> None:
        """Read what earlier runs left in the folder. A part that is cut short or changed is deleted, so that its tasks are asked again."""
        states: dict[str, tuple[str, str]] = {}
        for line in _lines(self.folder / JOURNAL):
            states[str(line.get("part"))] = (str(line.get("state")), str(line.get("sha256")))
        for part in sorted(self.folder.glob("part-*.jsonl")):
            number = part.stem.partition("-")[2]
            if not (number.isascii() and number.isdigit()):
                continue  # somebody else's
            self._last = max(self._last, int(number))
            rows = read_part(part)
            if rows is None:
                log.warning("%s is cut short or changed; its tasks are asked again", part)
                part.unlink()
                continue
            self.done |= {row["task"]: row["key"] for row in rows}
            state, sha256 = states.get(part.name, ("", ""))
            if (state, sha256) == ("pushed", _sha256(part)):
                self.settled |= {row["task"] for row in rows}
            else:
                self.waiting.append(part)
                self._doubtful |= {part.name} if state else set()
        for row in _lines(self._open_part):
            if isinstance(row.get("task"), int) and isinstance(row.get("key"), str) and "result" in row:
                self._took(row)
        replace_file(self._open_part, b"".join(map(_line, self._rows)))  # without what is torn

    @property
    def _part(self) -> Path:
        return self.folder / f"part-{self._last + 1:06d}.jsonl"

    @property
    def _open_part(self) -> Path:
        return partial(self.folder / "open.jsonl")

    def _append(self, row: Row) -> None:
        with self._open_part.open("ab") as file:
            file.write(_line(row))

    def _took(self, row: Row) -> None:
        if not self._rows:
            self._began = time.monotonic()
        self._rows.append(row)
        self.done[row["task"]] = row["key"]

    def _note(self, part: Path, state: str) -> None:
        with _writing(self.folder):
            append_line(self.folder / JOURNAL, _line({"part": part.name, "state": state, "sha256": _sha256(part)})[:-1])


@contextmanager
def opened(folder: Path, size: int) -> Iterator[Store]:
    """A shard's store with what an earlier run left in it, for this process alone; ``size`` is the number of tasks in a part.

    Raises BatchError if another process works on it, or the folder cannot be used.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / "lock", wait=False):
            store = Store(folder, size)
            with _writing(folder):
                store.load()
            yield store
    except BlockingIOError as error:
        raise BatchError(f"another run works on these tasks (in {folder}); wait for its end, or give each its own --shard") from error


def read_part(path: Path) -> list[Row] | None:
    """Return the rows of a part, each with ``task``, ``key`` and ``result``; None if the file is not whole or cannot be read."""
    try:
        text = path.read_bytes()
    except OSError:
        return None
    body, seal = _split(text)
    try:
        rows = [json.loads(line) for line in body.splitlines()]
        whole = json.loads(seal) == _seal(body, len(rows))
        whole = whole and all({"task", "key", "result"} <= row.keys() and isinstance(row["task"], int) for row in rows)
    except (ValueError, AttributeError, RecursionError):
        return None
    return rows if whole else None


def _split(text: bytes) -> tuple[bytes, bytes]:
    """The results and the last line."""
    end = text.rfind(b"\n", 0, len(text) - 1) + 1
    return text[:end], text[end:]


def _seal(text: bytes, count: int) -> Row:
    return {"tasks": count, "sha256": hashlib.sha256(text).hexdigest()}


def _sha256(part: Path) -> str:
    return str(json.loads(_split(part.read_bytes())[1])["sha256"])


def _lines(path: Path) -> Iterator[Row]:
    """Yield the JSON objects in a file, one a line, without lines that are torn; none if there is no file."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _line(row: Row) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        raise BatchError(
            f"{folder} cannot be written ({error.strerror}); free space (or choose another --out) and start it again, it goes on"
        ) from error
