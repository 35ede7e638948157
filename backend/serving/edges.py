"""The edges that a team adopted, by project and label; kept in the home, and part of the version of predictions."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.errors import LearningError
from sam4mllm.durable import replace_file
from sam4mllm.edges import AS_DRAWN, Edge
from sam4mllm.errors import first_line
from sam4mllm.identity import digest_of

log = logging.getLogger(__name__)

FILE = "edges.json"

Adopted = dict[str, dict[str, Edge]]
"""By project and label."""


class Edges:
    """Threads may share it. What was served under which edges is kept, so that the offset of later corrections is counted from there.

    If the file is damaged masks are drawn as they are, which is said in the log, and nothing can be adopted.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / FILE
        self._lock = threading.Lock()
        self._adopted: Adopted = {}
        self._served: dict[str, Adopted] = {}
        self._problem = ""
        try:
            self._adopted, self._served = self._read()
        except LearningError as error:
            self._problem = str(error)
            log.error("%s", error)

    @property
    def digest(self) -> str:
        """What tells one set of edges from another; empty if none was adopted."""
        return _digest(self._adopted)

    @property
    def adopted(self) -> list[tuple[int, str, Edge]]:
        """(project, label, edge) of all that were adopted."""
        return [(int(project), label, edge) for project, labels in sorted(self._adopted.items()) for label, edge in sorted(labels.items())]

    def of(self, project: int | str | None, label: str | None) -> Edge:
        """Where the masks of a project's label are to end."""
        return self._adopted.get(str(project), {}).get(label or "", AS_DRAWN)

    def at(self, version: str, project: int | None, label: str | None) -> Edge:
        """Where they ended in a version's predictions."""
        return self._served.get(version, {}).get(str(project), {}).get(label or "", AS_DRAWN)

    def adopt(self, project: int, label: str, edge: Edge) -> None:
        """From now on; AS_DRAWN takes it back. Raises LearningError if it cannot be written."""
        with self._lock:
            labels = {**self._adopted.get(str(project), {}), label: edge}
            changed = {**self._adopted, str(project): {name: one for name, one in labels.items() if one != AS_DRAWN}}
            self._write({name: one for name, one in changed.items() if one}, self._served)

    def note(self, version: str) -> None:
        """Predictions of this version have the edges of now. On a full disk that is only said: it matters for later offers alone."""
        with self._lock:
            if self._adopted != self._served.get(version, {}):
                try:
                    self._write(self._adopted, {**self._served, version: self._adopted})
                except LearningError as error:
                    log.warning("%s", error)

    def _write(self, adopted: Adopted, served: Mapping[str, Adopted]) -> None:
        if self._problem:
            raise LearningError(self._problem)
        record = {"adopted": _plain(adopted), "served": {version: _plain(one) for version, one in served.items()}}
        try:
            replace_file(self._path, json.dumps(record, indent=1).encode())
        except OSError as error:
            raise LearningError(f"{self._path} could not be written ({error.strerror})") from error
        self._adopted, self._served = adopted, dict(served)

    def _read(self) -> tuple[Adopted, dict[str, Adopted]]:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            return _edges(record["adopted"]), {str(version): _edges(one) for version, one in record["served"].items()}
        except FileNotFoundError:
            return {}, {}
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise LearningError(
                f"{self._path} is damaged ({first_line(error)}); restore it, or remove it to draw masks as they are"
            ) from error


def _digest(adopted: Adopted) -> str:
    return digest_of({"edges": _plain(adopted)})[:12] if adopted else ""


def _plain(adopted: Adopted) -> dict[str, Any]:
    return {project: {label: vars(edge) for label, edge in labels.items()} for project, labels in adopted.items()}


def _edges(record: Mapping[str, Any]) -> Adopted:
    return {
        str(int(project)): {str(label): Edge(int(edge["offset_px"]), edge["filled"] is True) for label, edge in labels.items()}
        for project, labels in record.items()
    }
