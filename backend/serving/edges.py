"""The edges that a team adopted, by project and label; kept in the home, and part of the version of predictions.

An edge holds for the mask decoder on whose masks it was fitted: a version whose adapter changes that draws edges of its own.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class ServedEdges:
    """The edges of a version's predictions, and the hash of the adapter that its mask decoder had, empty for none."""

    adopted: Adopted = field(default_factory=dict)
    decoder: str = ""


class Edges:
    """Threads may share it. What was served under which edges is kept, so that the offset of later corrections is counted from there.

    ``decoder`` is the hash of the adapter that the mask decoder which serves has, empty for none: of what is adopted under another one,
    nothing holds. If the file is damaged masks are drawn as they are, which is said in the log, and nothing can be adopted.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / FILE
        self._lock = threading.Lock()
        self._by_decoder: dict[str, Adopted] = {}
        self._served: dict[str, ServedEdges] = {}
        self.decoder = ""
        self._problem = ""
        try:
            self._by_decoder, self._served = self._read()
        except LearningError as error:
            self._problem = str(error)
            log.error("%s", error)

    def digest_of(self, decoder: str) -> str:
        """What tells one set of edges from another; empty if none was adopted."""
        adopted = self._by_decoder.get(decoder)
        return digest_of({"edges": _plain(adopted)})[:12] if adopted else ""

    @property
    def adopted(self) -> list[tuple[int, str, Edge]]:
        """(project, label, edge) of all that hold."""
        adopted = sorted(self._by_decoder.get(self.decoder, {}).items())
        return [(int(project), label, edge) for project, labels in adopted for label, edge in sorted(labels.items())]

    def of(self, project: int | str | None, label: str | None, decoder: str | None = None) -> Edge:
        """Where the masks of a project's label are to end, by the decoder that serves or by another."""
        adopted = self._by_decoder.get(self.decoder if decoder is None else decoder, {})
        return adopted.get(str(project), {}).get(label or "", AS_DRAWN)

    def drew(self, version: str) -> bool:
        """Whether a version's predictions were drawn by the decoder that serves."""
        return self._served.get(version, ServedEdges()).decoder == self.decoder

    def at(self, version: str, project: int | None, label: str | None) -> Edge:
        """Where they ended in a version's predictions."""
        return self._served.get(version, ServedEdges()).adopted.get(str(project), {}).get(label or "", AS_DRAWN)

    def adopt(self, project: int, label: str, edge: Edge, decoder: str | None = None) -> None:
        """From now on, for the decoder that serves or another; AS_DRAWN takes it back. Raises LearningError if it cannot be written."""
        with self._lock:
            decoder = self.decoder if decoder is None else decoder
            adopted = self._by_decoder.get(decoder, {})
            labels = {**adopted.get(str(project), {}), label: edge}
            changed = {**adopted, str(project): {name: one for name, one in labels.items() if one != AS_DRAWN}}
            kept = {name: one for name, one in changed.items() if one}
            by_decoder = {**self._by_decoder, decoder: kept}
            self._write({name: one for name, one in by_decoder.items() if one}, self._served)

    def note(self, version: str, decoder: str = "") -> None:
        """A version serves from now on, with this decoder and the edges that were adopted under it.

        On a full disk that is only said: it matters for later offers alone.
        """
        with self._lock:
            self.decoder = decoder
            now = ServedEdges(self._by_decoder.get(decoder, {}), decoder)
            if now != self._served.get(version, ServedEdges()):
                try:
                    self._write(self._by_decoder, {**self._served, version: now})
                except LearningError as error:
                    log.warning("%s", error)

    def _write(self, by_decoder: dict[str, Adopted], served: Mapping[str, ServedEdges]) -> None:
        if self._problem:
            raise LearningError(self._problem)
        record = {
            "adopted": {decoder: _plain(one) for decoder, one in by_decoder.items()},
            "served": {version: {"decoder": one.decoder, "edges": _plain(one.adopted)} for version, one in served.items()},
        }
        try:
            replace_file(self._path, json.dumps(record, indent=1).encode())
        except OSError as error:
            raise LearningError(f"{self._path} could not be written ({error.strerror})") from error
        self._by_decoder, self._served = by_decoder, dict(served)

    def _read(self) -> tuple[dict[str, Adopted], dict[str, ServedEdges]]:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            by_decoder = {str(decoder): _edges(one) for decoder, one in record["adopted"].items()}
            served = {str(version): ServedEdges(_edges(one["edges"]), str(one["decoder"])) for version, one in record["served"].items()}
            return by_decoder, served
        except FileNotFoundError:
            return {}, {}
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise LearningError(
                f"{self._path} is damaged ({first_line(error)}); restore it, or remove it to draw masks as they are"
            ) from error


def _plain(adopted: Adopted) -> dict[str, Any]:
    return {project: {label: vars(edge) for label, edge in labels.items()} for project, labels in adopted.items()}


def _edges(record: Mapping[str, Any]) -> Adopted:
    return {
        str(int(project)): {str(label): Edge(int(edge["offset_px"]), edge["filled"] is True) for label, edge in labels.items()}
        for project, labels in record.items()
    }
