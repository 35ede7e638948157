"""The pipeline that answers a request. A request keeps the pipeline that it began with, even if another version is promoted meanwhile, so
that all its answers are of one version.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from backend.serving.engine import Engine
from sam4mllm.adapters.loose import LooseAdapter
from sam4mllm.adapters.manifest import Manifest, Papers
from sam4mllm.confidence import Calibration
from sam4mllm.grounding.remembering import RememberingGrounder
from sam4mllm.pipeline import Pipeline


class AdapterLoader(Protocol):
    """Makes pipelines of one base model with different adapters. Its models are loaded, freed and moved on the engine's thread only.

    ``drop`` frees the adapter of a version. ``away`` moves the models off their device, ``back`` moves them to it again.
    """

    @property
    def base(self) -> Pipeline: ...
    def identity_for(self, papers: Papers) -> str: ...
    @property
    def base_sha256(self) -> str: ...
    @property
    def template_sha256(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def load(self, folder: Path, adapter: Manifest | LooseAdapter) -> Pipeline: ...
    def drop(self, version: str) -> None: ...
    def away(self) -> None: ...
    def back(self) -> None: ...


class Leases:
    """The pipeline that serves, and those that still answer requests which began with them."""

    def __init__(self, pipeline: Pipeline, loader: AdapterLoader | None = None) -> None:
        self.current = pipeline
        self.loader = loader
        self._leases: Counter[Pipeline] = Counter()
        self._retired: list[Pipeline] = []
        self._lock = threading.Lock()
        self._calibration: Calibration | None = None
        self._edges: Callable[[str], str] = lambda decoder: ""

    def calibrate(self, calibration: Calibration | None) -> None:
        """Use this calibration for scores from now on, whichever pipeline serves; None means the fixed formula."""
        with self._lock:
            self._calibration = self.current.calibration = calibration

    def name_edges(self, edges: Callable[[str], str]) -> None:
        """Make the adopted edges part of the version from now on. ``edges`` returns the digest of a decoder's edges
        (:class:`backend.serving.edges.Edges`).
        """
        with self._lock:
            self._edges = edges
        self.seat(self.current)

    def with_edges(self, pipeline: Pipeline) -> Pipeline:
        """Return the pipeline with the edges that are adopted now for its decoder, or the pipeline itself if it has them already."""
        edges = self._edges(pipeline.decoder)
        if pipeline.options.edges == edges:
            return pipeline
        return pipeline.through(pipeline.grounder, replace(pipeline.options, edges=edges))

    def take(self) -> Pipeline:
        """Return the pipeline that serves, and count it as in use until ``give_back`` is called with it."""
        with self._lock:
            self._leases[self.current] += 1
            return self.current

    def give_back(self, pipeline: Pipeline) -> None:
        with self._lock:
            self._leases[pipeline] -= 1
            if not self._leases[pipeline]:
                del self._leases[pipeline]

    def seat(self, pipeline: Pipeline) -> None:
        """Let requests begin with this pipeline from now on, with the edges that are adopted for its decoder and the calibration in use."""
        pipeline = self.with_edges(pipeline)
        with self._lock:
            pipeline.calibration = self._calibration
            if pipeline is not self.current:
                self._retired.append(self.current)
                self.current = pipeline

    def sweep(self) -> None:
        """On the engine's thread: free the adapters that no request needs any more."""
        with self._lock:
            done = [pipeline for pipeline in self._retired if not self._leases[pipeline]]
            self._retired = [pipeline for pipeline in self._retired if pipeline not in done]
            used = {_adapter_of(pipeline) for pipeline in (*self._retired, self.current)}
        for version in {_adapter_of(pipeline) for pipeline in done} - used:
            if self.loader is not None and version is not None:
                self.loader.drop(version)

    def discard(self, version: str) -> None:
        """On the engine's thread: free the adapter of a version that was loaded and could not serve, unless another pipeline uses it."""
        with self._lock:
            used = {_adapter_of(pipeline) for pipeline in (*self._retired, self.current)}
        if self.loader is not None and version not in used:
            self.loader.drop(version)

    def away(self) -> None:
        """On the engine's thread: take the models off their device, for a training that needs it."""
        if self.loader is not None:
            self.loader.away()

    def back(self) -> None:
        """On the engine's thread: put the models where they were."""
        if self.loader is not None:
            self.loader.back()


class Lease:
    """The pipeline of one request: taken when it is first needed, the same for all of its tasks, given back at the end."""

    def __init__(self, engine: Engine[Leases], interactive: bool, deadline: float) -> None:
        self._engine = engine
        self._interactive = interactive
        self._deadline = deadline
        self._lock = threading.Lock()
        self._from: Leases | None = None
        self._pipeline: Pipeline | None = None

    def pipeline(self) -> Pipeline:
        """Return the request's pipeline. The first call takes it, and waits while the models are loading.

        Raises DeadlineError if the deadline passes first, and NotReadyError if the models could not be loaded or the engine has ended.
        """
        with self._lock:
            if self._pipeline is None:
                self._from = self._engine.model or self._engine.run(lambda leases: leases, self._interactive, self._deadline)
                self._pipeline = self._from.take()
            return self._pipeline

    def version(self) -> str:
        """The version of the request's answers; the text ``none`` while the models are not loaded, or if they could not be."""
        if self._pipeline is None and self._engine.model is None:
            return "none"
        return self.pipeline().version

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            if self._from is not None and self._pipeline is not None:
                self._from.give_back(self._pipeline)
                self._from = None


def remembering(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline with a grounder that remembers its last answers about each scene (:class:`RememberingGrounder`)."""
    return pipeline.through(RememberingGrounder(pipeline.grounder))


def _adapter_of(pipeline: Pipeline) -> str | None:
    return pipeline.adapter.version if isinstance(pipeline.adapter, Manifest) else None
