"""The registry's champion serves: at the start, after a promotion here, and after one by the command line beside the server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from backend.errors import NotReadyError, where
from backend.serving.engine import Engine
from backend.serving.leases import Roster, remembering
from backend.settings import Settings
from sam4mllm.adapters.files import Manifest
from sam4mllm.adapters.registry import Registry
from sam4mllm.errors import ModelError, RegistryError, Sam4mllmError
from sam4mllm.loading import load_variants
from sam4mllm.pipeline import Pipeline

log = logging.getLogger(__name__)

T = TypeVar("T")

SWAP_SECONDS = 300.0
"""For loading an adapter behind whatever the engine is at; a LoRA of some hundred megabytes takes seconds."""


class Versions:
    """Keeps the pipeline that serves and the registry's champion the same. Threads may share it."""

    def __init__(self, engine: Engine[Roster], registry: Registry, noted: Callable[[str], None]) -> None:
        """``noted`` is called with the version that serves, whenever that is another one."""
        self.registry = registry
        self._engine = engine
        self._noted = noted
        self._lock = threading.RLock()
        self._refused: str | None = None

    @property
    def serving(self) -> str | None:
        """The version in the registry that serves, None for the base model."""
        roster = self._engine.model
        return _name(roster.current) if roster is not None else None

    def begin(self, roster: Roster) -> Roster:
        """On the engine's thread, with the models just loaded: let the champion serve; if it cannot be used, the version that served before
        it, and so on.
        """
        try:
            champion = self.registry.serving()
            names = [champion, *self.registry.before()] if roster.workshop is not None else []
        except RegistryError as error:
            log.error("the base model serves: %s", error)
            names = []
        for name in names:
            try:
                if name is not None:
                    roster.seat(self._make(roster, name))
                break
            except Sam4mllmError as error:
                self._refused = champion
                log.error("%s cannot serve, what served before it does: %s", name, error)
        self._noted(roster.current.version)
        return roster

    def sync(self) -> None:
        """Let the registry's champion serve if another does. Raises RegistryError or ModelError; what served before still does."""
        with self._lock:
            roster = self._engine.model
            if roster is None or roster.workshop is None:
                return
            name = self.registry.serving()
            if name == _name(roster.current) or (name is not None and name == self._refused):
                self._run(lambda roster: roster.sweep())
                return
            try:
                pipeline = self._run(lambda roster: self._make(roster, name))
            except (RegistryError, ModelError):  # any other reason, such as a busy engine, passes
                self._refused = name
                raise
            self._seat(roster, pipeline)

    def add(self, files: Mapping[str, Path | bytes], data_sha256: str, metrics: Mapping[str, float]) -> Manifest:
        """Store an adapter of the base model that serves here as a new version. Raises RegistryError."""
        roster = self._engine.model
        if roster is None or roster.workshop is None:
            raise NotReadyError("the models are not loaded; ask again when the server is ready")
        workshop, current = roster.workshop, roster.current
        return self.registry.add(
            files,
            slug=current.slug,
            identity=workshop.base.identity,
            base_model=current.slug,
            base_sha256=workshop.base_sha256,
            template_sha256=workshop.template_sha256,
            data_sha256=data_sha256,
            metrics=metrics,
            parent=_name(current),
        )

    def promote(self, version: str) -> Manifest:
        """Verify, load and let serve a version, in this order: one that cannot be loaded never becomes champion."""
        with self._lock:
            roster = self._engine.model
            if roster is None or roster.workshop is None:
                raise NotReadyError("the models are not loaded; ask again when the server is ready")
            pipeline = self._run(lambda roster: self._make(roster, version))
            manifest = self.registry.promote(version)
            self._refused = None
            self._seat(roster, pipeline)
            return manifest

    def rollback(self, serving: str | None = None) -> Manifest | None:
        """Let serve what served before the champion, and return it. As with a promotion, nothing changes if it cannot be loaded.

        Asked to go back from ``serving``, it raises RegistryError if that does not serve any more: asked twice must not go two back.
        """
        with self._lock:
            if serving is not None and self.registry.serving() != serving:
                raise RegistryError("another version serves by now; look again")
            roster = self._engine.model
            if roster is None or roster.workshop is None:
                return self.registry.rollback()
            former = self.registry.before()[0]
            pipeline = self._run(lambda roster: self._make(roster, former))
            manifest = self.registry.rollback()
            self._refused = None
            self._seat(roster, pipeline)
            return manifest

    def _seat(self, roster: Roster, pipeline: Pipeline) -> None:
        self._noted(pipeline.version)
        roster.seat(pipeline)
        self._run(lambda roster: roster.sweep())

    def _make(self, roster: Roster, version: str | None) -> Pipeline:
        """On the engine's thread: the pipeline of a version, None for the base model, tried once. Raises RegistryError or ModelError."""
        assert roster.workshop is not None
        if version is None:
            return remembering(roster.workshop.base)
        manifest = self.registry.verify(version)
        try:
            pipeline = remembering(roster.workshop.load(self.registry.path(version), manifest))
            warm_up(pipeline)
        except Exception as error:
            roster.discard(version)
            if isinstance(error, Sam4mllmError):
                raise
            raise ModelError(f"the adapter {version} has no answer ({where(error)})") from error
        return pipeline

    def _run(self, work: Callable[[Roster], T]) -> T:
        return self._engine.run(work, False, time.monotonic() + SWAP_SECONDS)


def load_roster(settings: Settings) -> Roster:
    """The base models of the settings, warmed up."""
    roster = load_cold(settings)
    warm_up(roster.current)
    return roster


def load_cold(settings: Settings) -> Roster:
    """The same, for who has work at once."""
    models = (settings.model, settings.segmenter, settings.device)
    variants = load_variants(*models, settings.options, settings.precision)
    return Roster(remembering(variants.base), variants)


def warm_up(pipeline: Pipeline) -> None:
    """One answer, whatever it is."""
    pipeline.segment(np.full((64, 64, 3), 127, np.uint8), ["object"])


def _name(pipeline: Pipeline) -> str | None:
    return pipeline.adapter.version if isinstance(pipeline.adapter, Manifest) else None
