"""Lets the registry's champion (the version that is to serve) serve: from the server's start, after a promotion by this server, and after a
promotion by the command line while the server runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from backend.errors import DeadlineError, NotReadyError, where
from backend.serving.engine import Engine
from backend.serving.leases import AdapterLoader, Leases, remembering
from backend.settings import Settings
from backend.setup.gpu_plan import tell_plan
from sam4mllm.adapters.files import hash_files
from sam4mllm.adapters.loose import read_papers
from sam4mllm.adapters.manifest import Manifest, Papers
from sam4mllm.adapters.registry import Registry
from sam4mllm.errors import EngineAwayError, ModelError, RegistryError, Sam4mllmError
from sam4mllm.pipeline import Pipeline

log = logging.getLogger(__name__)

T = TypeVar("T")

SWAP_SECONDS = 300.0
"""Seconds that a swap of adapters may take, the wait for the engine included; a LoRA of some hundred megabytes loads in seconds."""


class Versions:
    """Keeps the pipeline that serves and the registry's champion the same. Threads may share it."""

    def __init__(self, engine: Engine[Leases], registry: Registry, noted: Callable[[Pipeline], None]) -> None:
        """``noted`` is called with the pipeline that is to serve, at the start and whenever its version changes."""
        self.registry = registry
        self._engine = engine
        self._noted = noted
        self._lock = threading.RLock()
        self._refused: str | None = None

    @property
    def serving(self) -> str | None:
        """The name of the registry's version that serves; None if the base model serves, or while the models are not loaded."""
        leases = self._engine.model
        return _name(leases.current) if leases is not None else None

    def begin(self, leases: Leases) -> Leases:
        """On the engine's thread, with the models just loaded: let the champion serve, and return the leases.

        If the champion cannot be used, the version that served before it is tried, and so on down to the base model. The base model serves,
        too, if the registry cannot be read. Without an MLLM no version can serve, and the champion stays what it is.
        """
        try:
            champion = self.registry.serving()
            names = [champion, *self.registry.before()] if leases.loader is not None else []
            if champion is not None and not leases.current.has_model:
                log.warning("%s waits: it serves with an MLLM, and the model is none; it serves again when its model does", champion)
                names = []
        except RegistryError as error:
            log.error("the base model serves: %s", error)
            names = []
        for name in names:
            try:
                if name is not None:
                    leases.seat(self._make(leases, name))
                break
            except Sam4mllmError as error:
                self._refused = None if isinstance(error, EngineAwayError) else champion
                log.error("%s cannot serve, what served before it does: %s", name, error)
        _tell(leases.current)
        self._noted(leases.current)
        return leases

    def sync(self) -> None:
        """Let the registry's champion serve if another version does, and free adapters that are no longer used.

        It does nothing while the models are not loaded, or without an MLLM. A champion that failed to load is not tried again by later
        calls, unless a vLLM engine did not answer (EngineAwayError). Raises RegistryError, ModelError, NotReadyError or DeadlineError; what
        served before then still does.
        """
        with self._lock:
            leases = self._engine.model
            if leases is None or leases.loader is None or not leases.current.has_model:
                return
            name = self.registry.serving()
            if name == _name(leases.current) or (name is not None and name == self._refused):
                self._run(lambda leases: leases.sweep())
                return
            try:
                pipeline = self._run(lambda leases: self._make(leases, name))
            except EngineAwayError:
                raise  # this passes, so the version is tried again at the next call
            except (RegistryError, ModelError):
                self._refused = name
                raise
            self._seat(leases, pipeline)

    def add(self, folder: Path, data_sha256: str, metrics: Mapping[str, float]) -> Manifest:
        """Store the adapter in ``folder``, which was trained on this server's base model, as a new version of the registry.

        ``data_sha256`` is the hash of the examples that it learned from. Raises RegistryError, ModelError, or NotReadyError while the
        models are not loaded.
        """
        leases = self._engine.model
        if leases is None or leases.loader is None:
            raise NotReadyError("the models are not loaded; ask again when the server is ready")
        loader, current = leases.loader, leases.current
        papers = read_papers(folder) or Papers(  # an adapter of a run that an earlier release began has none
            base_model=current.slug,
            base_sha256=loader.base_sha256,
            template_sha256=loader.template_sha256,
            data_sha256=data_sha256,
            metrics={},
            files=hash_files(folder),
        )
        papers = replace(papers, data_sha256=data_sha256, metrics={**papers.metrics, **metrics})
        files = {name: folder / name for name in hash_files(folder)}
        return self.registry.add(files, papers, slug=current.slug, identity=loader.identity_for(papers), parent=_name(current))

    def name_edges(self, edges: Callable[[str], str]) -> None:
        """Make the adopted edges part of the version from now on, as :meth:`Leases.name_edges` does, and call ``noted``.

        Raises NotReadyError while the models are not loaded, or if they could not be.
        """
        with self._lock:
            leases = self._engine.model
            if leases is None:
                raise NotReadyError("the models are not loaded; ask again when the server is ready")
            leases.name_edges(edges)
            self._noted(leases.current)

    def promote(self, version: str) -> Manifest:
        """Verify a version, load it, make it champion and let it serve, in this order: one that cannot be loaded never becomes champion.

        Raises RegistryError if the version cannot be verified or the registry written, ModelError if the adapter cannot be loaded or gives
        no answer, NotReadyError while the models are not loaded or after the engine has ended, and DeadlineError after SWAP_SECONDS.
        """
        with self._lock:
            leases = self._engine.model
            if leases is None or leases.loader is None:
                raise NotReadyError("the models are not loaded; ask again when the server is ready")
            pipeline = self._run(lambda leases: self._make(leases, version))
            manifest = self.registry.promote(version)
            self._refused = None
            self._seat(leases, pipeline)
            return manifest

    def rollback(self, serving: str | None = None) -> Manifest | None:
        """Let the version serve that served before the champion, and return its manifest, None for the base model.

        As with a promotion, nothing changes if it cannot be loaded. If ``serving`` is given and is no longer the champion, RegistryError
        is raised, so that two requests for one rollback do not go back twice. While the models are not loaded, only the registry is
        changed. Raises ModelError without an MLLM, for no version serves then; else the errors of :meth:`promote`.
        """
        with self._lock:
            if serving is not None and self.registry.serving() != serving:
                raise RegistryError("another version serves by now; look again")
            leases = self._engine.model
            if leases is not None and not leases.current.has_model:
                raise ModelError("there is nothing to roll back: the model is none; start the server with the versions' model")
            if leases is None or leases.loader is None:
                return self.registry.rollback()
            former = self.registry.before()[0]
            pipeline = self._run(lambda leases: self._make(leases, former))
            manifest = self.registry.rollback()
            self._refused = None
            self._seat(leases, pipeline)
            return manifest

    def _seat(self, leases: Leases, pipeline: Pipeline) -> None:
        pipeline = leases.with_edges(pipeline)
        _tell(pipeline)
        self._noted(pipeline)
        leases.seat(pipeline)
        try:
            self._run(lambda leases: leases.sweep())
        except DeadlineError as error:  # the version serves; what the former one held is swept away at the next change
            log.warning("the former version's memory is not freed yet: %s", error)

    def _make(self, leases: Leases, version: str | None) -> Pipeline:
        """On the engine's thread: load the pipeline of a version (None: the base model), and let it answer once as a test.

        Raises RegistryError or ModelError.
        """
        assert leases.loader is not None
        if version is None:
            return remembering(leases.loader.base)
        manifest = self.registry.verify(version)
        try:
            pipeline = remembering(leases.loader.load(self.registry.path(version), manifest))
            warm_up(pipeline)
        except Exception as error:
            leases.discard(version)
            if isinstance(error, Sam4mllmError):
                raise
            raise ModelError(f"the adapter {version} has no answer ({where(error)})") from error
        return pipeline

    def _run(self, work: Callable[[Leases], T]) -> T:
        return self._engine.run(work, False, time.monotonic() + SWAP_SECONDS)


def load_leases(settings: Settings) -> Leases:
    """Load the models that the settings name, and let them answer once as a warm-up.

    The log tells the plan that fits the GPU, unless a vLLM engine has the MLLM. Raises ModelError if the models cannot be loaded, and what
    :func:`warm_up` raises.
    """
    if not settings.engine and (plan := tell_plan(settings)):
        log.info("%s", plan)
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 – as below

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # a log is no terminal
    leases = load_cold(settings)
    warm_up(leases.current)
    return leases


def load_cold(settings: Settings) -> Leases:
    """Load the models that the settings name, without a warm-up."""
    given = (settings.model, settings.segmenter, settings.device, settings.options, settings.precision)
    variants: AdapterLoader
    if settings.engine:
        from sam4mllm.vllm.variants import load_vllm_variants  # noqa: PLC0415 – takes many seconds; the server answers /health meanwhile

        variants = load_vllm_variants(settings.engine, settings.home, *given)
    else:
        from sam4mllm.loading import load_variants  # noqa: PLC0415 – as above

        variants = load_variants(*given)
    return Leases(remembering(variants.base), variants)


def warm_up(pipeline: Pipeline) -> None:
    """Let the pipeline answer once about a grey picture; the answer does not matter. Its errors are raised."""
    pipeline.segment(np.full((64, 64, 3), 127, np.uint8), ["object"])


def _tell(pipeline: Pipeline) -> None:
    log.info("%s", pipeline.manner)


def _name(pipeline: Pipeline) -> str | None:
    return pipeline.adapter.version if isinstance(pipeline.adapter, Manifest) else None
