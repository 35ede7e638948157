"""Results by key in a file of JSON lines, so that what was measured once is not measured again after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from sam4mllm.durable import append_line
from sam4mllm.errors import EvaluationError

T = TypeVar("T")


class KeyedLines(Generic[T]):
    """Results by key; kept in memory alone if ``path`` is None. ``parse`` makes a result of a line's fields.

    A line that a kill left half written, or that ``parse`` refuses with ValueError, KeyError, TypeError or AttributeError, is passed over.
    Of several lines with one key the last counts. Raises EvaluationError if the file is there and cannot be read.
    """

    def __init__(self, path: Path | None, parse: Callable[[dict[str, Any]], T]) -> None:
        self._path = path
        self._known: dict[str, T] = {}
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path is not None and path.exists() else []
        except OSError as error:
            raise EvaluationError(f"{path} cannot be read ({error.strerror}); choose another folder") from error
        for line in filter(None, lines):
            try:
                fields = json.loads(line)
                self._known[str(fields["key"])] = parse(fields)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str) -> T | None:
        """Return the result that is kept under a key, or None if there is none."""
        return self._known.get(key)

    def put(self, key: str, result: T, fields: Mapping[str, Any]) -> None:
        """Keep a result under a key, and append a line with its fields to the file.

        A former result under this key is replaced; its line stays in the file. Raises EvaluationError if the file cannot be written, and
        ValueError if a number in ``fields`` is not finite; the result is then kept in memory all the same.
        """
        self._known[key] = result
        if self._path is None:
            return
        try:
            append_line(self._path, json.dumps({"key": key, **fields}, allow_nan=False).encode())
        except OSError as error:
            raise EvaluationError(f"{self._path} cannot be written ({error.strerror}); free space or choose another folder") from error
