"""The server's parts, put together from its settings; their start and their end."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import sam4mllm
from backend.corrections import CorrectionLog
from backend.engine import Engine
from backend.errors import LabelStudioError
from backend.fetch import Fetcher, FetchLimits
from backend.images import ImageStore
from backend.label_studio import LabelStudio
from backend.metrics import Metrics
from backend.predictor import Images, Predictor
from backend.settings import Settings
from sam4mllm.grounding.remembering import RememberingGrounder
from sam4mllm.pipeline import Options, Pipeline

log = logging.getLogger(__name__)

IMAGE_MEMORY = 256 * 1024 * 1024
DUPLICATE_SECONDS = 3.0
"""After an answer was given twice, Label Studio needs a moment to store both."""


def load_pipeline(settings: Settings) -> Pipeline:
    """The pipeline of the settings, warmed up; of what it is asked about an image, nothing is worked out twice."""
    loaded = sam4mllm.load(settings.model, settings.segmenter, settings.device, Options(joint=settings.points == "joint"))
    pipeline = Pipeline(RememberingGrounder(loaded.grounder), loaded.segmenter, loaded.options, loaded.slug)
    pipeline.segment(np.full((64, 64, 3), 127, np.uint8), ["object"], settings.strategy)
    return pipeline


@dataclass
class Service:
    """Everything that a request needs."""

    settings: Settings
    engine: Engine[Pipeline]
    predictor: Predictor
    corrections: CorrectionLog
    metrics: Metrics
    label_studio: LabelStudio | None
    background: ThreadPoolExecutor

    @property
    def version(self) -> str:
        """The version of predictions; before the models are there, the one that these settings had last time. Empty if never."""
        if self.predictor.version:
            return self.predictor.version
        try:
            return version_file(self.settings).read_text(encoding="utf-8")
        except OSError:
            return ""

    def start(self) -> None:
        """Begin to load the models; returns at once."""
        self.engine.start()

    def close(self, seconds: float) -> None:
        """Serve what is in the house, then end."""
        self.engine.close(seconds)
        self.predictor.close()
        self.background.shutdown(wait=False, cancel_futures=True)
        self.corrections.close()
        if self.label_studio is not None:
            self.label_studio.close()


def build(settings: Settings, load: Callable[[Settings], Pipeline] = load_pipeline, images: Images | None = None) -> Service:
    """The service of the settings, not yet started; tests give it other models and pictures."""
    metrics = Metrics()
    token = settings.label_studio_api_key.get_secret_value()
    label_studio = LabelStudio(settings.label_studio_url, token) if settings.label_studio_url else None
    corrections = CorrectionLog(settings.home / "corrections.sqlite")
    engine: Engine[Pipeline] = Engine(lambda: _noted(load(settings), settings), settings.queue)
    background = ThreadPoolExecutor(1, "background")

    def shared(task: int, version: str) -> None:
        if label_studio is not None and token:
            background.submit(_drop_duplicates, label_studio, task, version)

    predictor = Predictor(engine, images or image_store(settings, label_studio), corrections, settings, metrics, shared)
    return Service(settings, engine, predictor, corrections, metrics, label_studio, background)


def image_store(settings: Settings, label_studio: LabelStudio | None) -> ImageStore:
    """Pictures from Label Studio and from the hosts that the settings allow."""
    trusted = [settings.label_studio_url] if settings.label_studio_url else []
    limits = FetchLimits(max_bytes=settings.max_image_mb * 1024 * 1024)
    return ImageStore(Fetcher(trusted, settings.allow_hosts, limits), label_studio, settings.max_pixels, IMAGE_MEMORY)


def version_file(settings: Settings) -> Path:
    """Where the version of these settings is noted, so that it is known again before the models are."""
    shaping = (settings.model, settings.segmenter, settings.strategy, settings.points)
    return settings.home / f"version-{hashlib.sha256(repr(shaping).encode()).hexdigest()[:12]}.txt"


def _noted(pipeline: Pipeline, settings: Settings) -> Pipeline:
    version = pipeline.version(settings.strategy)
    version_file(settings).write_text(version, encoding="utf-8")
    log.info("ready: %s", version)
    return pipeline


def _drop_duplicates(label_studio: LabelStudio, task: int, version: str) -> None:
    time.sleep(DUPLICATE_SECONDS)
    try:
        dropped = label_studio.drop_duplicates(task, version)
    except LabelStudioError as error:
        log.warning("task %d may have its prediction twice: %s", task, error)
        return
    if dropped:
        log.info("task %d: %d repeated predictions deleted", task, dropped)
