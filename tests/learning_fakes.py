"""Adapters without weights: each draws a box as wide as its number, so that a mask tells which version drew it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from backend.service import Service, build
from backend.serving.leases import Leases
from benchmarks.waiting import wait_for
from sam4mllm.adapters.manifest import Manifest, Papers
from sam4mllm.errors import ModelError
from sam4mllm.pipeline import Pipeline
from tests.adapter_files import ORIGIN, PAPERS, SHA, adapter
from tests.backend_fakes import FakeImages, settings
from tests.fakes import FakeGrounder, FakeSegmenter, grounding

PHRASE = "the left cup"
FAKE_TRAINER = (sys.executable, "-m", "tests.fake_trainer")
"""Writes what a training process writes, and takes no time."""


def width(number: int) -> int:
    """How wide the box of an adapter's number is."""
    return 10 + number % 80


def pipeline(number: int, manifest: Manifest | None) -> Pipeline:
    grounder = FakeGrounder({PHRASE: grounding(PHRASE, [[5, 5, 5 + width(number), 25]])})
    return Pipeline(grounder, FakeSegmenter(), slug="demo", adapter=manifest)


@dataclass
class FakeLoader:
    """Loads what is in the registry; a metric ``broken`` makes an adapter that cannot be loaded, ``mute`` one that cannot answer."""

    base_sha256: str = SHA
    template_sha256: str = "cd" * 32
    base: Pipeline = field(default_factory=lambda: pipeline(0, None))
    loaded: set[str] = field(default_factory=set)
    away_from_device: bool = False
    nbytes: int = 2**30

    def identity_for(self, papers: Papers) -> str:
        return self.base.identity

    def load(self, folder: Path, adapter: Manifest) -> Pipeline:
        assert folder.is_dir()
        if "broken" in adapter.metrics:
            raise ModelError(f"the adapter {adapter.version} cannot be loaded")
        self.loaded.add(adapter.version)
        return pipeline(adapter.number, adapter)

    def drop(self, version: str) -> None:
        self.loaded.discard(version)

    def away(self) -> None:
        self.away_from_device = True

    def back(self) -> None:
        self.away_from_device = False


@dataclass
class School:
    """A running service whose versions can be swapped."""

    service: Service
    loader: FakeLoader

    def add(self, value: float = 0.5, **metrics: float) -> str:
        """A new adapter in the registry; its version."""
        papers = replace(PAPERS, metrics={"gIoU": 0.5, **metrics})
        origin: Any = {**ORIGIN, "papers": papers, "identity": self.loader.base.identity, "parent": self.serving}
        return self.service.versions.registry.add(adapter(value), **origin).version

    @property
    def serving(self) -> str | None:
        champion = self.service.versions.registry.champion()
        return champion.version if champion else None


def school(home: Path, trainer: tuple[str, ...] | None = None, **given: Any) -> School:
    """Started; its models are there when this returns."""
    loader = FakeLoader()
    service = build(settings(home, **given), lambda _: Leases(loader.base, loader), FakeImages(), trainer)
    service.start()
    wait_for("the models", lambda: service.engine.state != "loading", 30, 0.002)
    return School(service, loader)


def mask_width(mask: np.ndarray[Any, Any]) -> int:
    return int(mask.any(0).sum())
