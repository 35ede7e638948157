"""The mask edges that a team adopted, by project and label. They are kept in the home, and are part of the version of predictions.

An edge (:class:`sam4mllm.edges.Edge`) moves the outline of a mask, and may fill its holes. It was fitted on the masks of one mask decoder
and holds for that decoder only: a version whose adapter changes the decoder has its own edges.
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
"""Edges by the project's id, as a text, and then by the label."""


@dataclass(frozen=True)
class ServedEdges:
    """The edges of a version's predictions, and the hash of the adapter that its mask decoder had, empty for none."""

    adopted: Adopted = field(default_factory=dict)
    decoder: str = ""


class Edges:
    """The adopted edges of a home. Threads may share it.

    It also keeps the edges under which each version served, so that corrections of its masks are compared with what was drawn.
    ``decoder`` is the hash of the serving mask decoder's adapter, empty if it has none; edges that were adopted for another decoder do not
    apply. If the file is damaged, the log says so, masks are drawn without an edge, and nothing can be adopted.
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
        """Return a short hash of the edges that are adopted for a decoder, or an empty text if there are none."""
        adopted = self._by_decoder.get(decoder)
        return digest_of({"edges": _plain(adopted)})[:12] if adopted else ""

    @property
    def adopted(self) -> list[tuple[int, str, Edge]]:
        """All edges that apply to the serving decoder, as (project, label, edge)."""
        adopted = sorted(self._by_decoder.get(self.decoder, {}).items())
        return [(int(project), label, edge) for project, labels in adopted for label, edge in sorted(labels.items())]

    def of(self, project: int | str | None, label: str | None, decoder: str | None = None) -> Edge:
        """Return the edge that is adopted for a project's label, or AS_DRAWN. ``decoder`` None means the serving one."""
        adopted = self._by_decoder.get(self.decoder if decoder is None else decoder, {})
        return adopted.get(str(project), {}).get(label or "", AS_DRAWN)

    def drew(self, version: str) -> bool:
        """Whether a version's predictions were drawn by the mask decoder that serves now.

        A version of which nothing is noted counts as drawn by a decoder without an adapter.
        """
        return self._served.get(version, ServedEdges()).decoder == self.decoder

    def at(self, version: str, project: int | None, label: str | None) -> Edge:
        """Return the edge with which a version's masks of a project's label were drawn; AS_DRAWN if none is noted."""
        return self._served.get(version, ServedEdges()).adopted.get(str(project), {}).get(label or "", AS_DRAWN)

    def adopt(self, project: int, label: str, edge: Edge, decoder: str | None = None) -> None:
        """Adopt an edge for a project's label; AS_DRAWN removes the one that is adopted. ``decoder`` None means the serving one.

        Raises LearningError if the file is damaged or cannot be written.
        """
        with self._lock:
            decoder = self.decoder if decoder is None else decoder
            adopted = self._by_decoder.get(decoder, {})
            labels = {**adopted.get(str(project), {}), label: edge}
            changed = {**adopted, str(project): {name: one for name, one in labels.items() if one != AS_DRAWN}}
            kept = {name: one for name, one in changed.items() if one}
            by_decoder = {**self._by_decoder, decoder: kept}
            self._write({name: one for name, one in by_decoder.items() if one}, self._served)

    def note(self, version: str, decoder: str = "") -> None:
        """Note that a version serves from now on, with the edges that are adopted for its mask decoder.

        ``decoder`` is the hash of that decoder's adapter, empty if it has none. If the note cannot be written, the log says so and nothing
        is raised. The version serves all the same: the note is read only for later offers of edges, and for answers that are still being
        made when another edge is adopted.
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
