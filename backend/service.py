"""The server's parts, put together from its settings; their start and their end."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backend.batch.on_server import BulkRuns
from backend.corrections.log import CorrectionLog
from backend.errors import LabelStudioError
from backend.images.decoding import Decoder, shared_decoder
from backend.images.store import ImageStore, image_store
from backend.label_studio.client import LabelStudio
from backend.label_studio.events import START_TRAINING, counted_as
from backend.label_studio.label_config import LabelConfig
from backend.learning.conductor import TRAINER
from backend.learning.scheduler import Learner
from backend.serving.answerer import Answerer
from backend.serving.backlog import Backlog, Predict
from backend.serving.calibration import Scorer
from backend.serving.edges import Edges
from backend.serving.engine import Engine
from backend.serving.leases import Leases
from backend.serving.predictor import Images, Predictor
from backend.serving.project_parameters import ProjectParameters
from backend.serving.versions import Versions, load_leases
from backend.settings import Settings
from backend.support.byte_cache import ByteCache
from backend.support.demo_project import demo_notice
from backend.support.metrics import Metrics
from sam4mllm.adapters.fields import matches
from sam4mllm.adapters.former import former_settings
from sam4mllm.adapters.registry import Registry
from sam4mllm.durable import replace_file
from sam4mllm.identity import digest_of
from sam4mllm.options import Options, resolve_strategy
from sam4mllm.pipeline import Pipeline

log = logging.getLogger(__name__)

_SERVED = re.compile(r"[a-z0-9.-]{1,32}-[0-9]{1,18}-[0-9a-f]{8}")
"""The form of a version's name. The number is that of an adapter, or 0 for the base model."""

RUN_SECONDS = 5.0
"""The most seconds that the server's end waits for a training run, and then for a bulk run, to notice it. A training process then saves its
state by itself; results of a bulk run are on disk already.
"""
DUPLICATE_SECONDS = 3.0
"""Seconds between an answer that was given to two requests and the deletion of the duplicate: Label Studio first has to store both."""


@dataclass
class Service:
    """Everything that a request needs."""

    settings: Settings
    engine: Engine[Leases]
    predictor: Predictor
    corrections: CorrectionLog
    metrics: Metrics
    label_studio: LabelStudio | None
    background: ThreadPoolExecutor
    versions: Versions
    learner: Learner
    parameters: ProjectParameters
    images: Images
    bulk: BulkRuns
    backlog: Backlog | None = None

    @property
    def caches(self) -> dict[str, ByteCache[Any, Any]]:
        """The caches in memory, by name."""
        files = {"files": self.images.files} if isinstance(self.images, ImageStore) else {}
        return {"answers": self.predictor.answers, "images": self.predictor.answerer.opened, **files}

    @property
    def can_push(self) -> bool:
        """Whether predictions can be pushed into projects: there is a Label Studio, and a key for it."""
        return self.backlog is not None

    @property
    def decoder(self) -> Decoder:
        """The decoder for pictures that no task refers to, such as an upload; the image store uses the same one."""
        return shared_decoder(self.settings.max_pixels, self.settings.decode_seconds)

    @property
    def version(self) -> str:
        """The version of predictions; before the models are there, the one that these settings had last time. Empty if never."""
        if self.predictor.version:
            return self.predictor.version
        return _noted_version(self.settings)

    def note_parameters(self, project: int | None, given: object, config: LabelConfig) -> None:
        """Take the extra parameters that Label Studio has for a project."""
        leases = self.engine.model
        self.parameters.note(project, given, config, leases.current if leases is not None else None)

    def start(self) -> None:
        """Begin to load the models and to look for what there is to learn; returns at once."""
        if notice := demo_notice(self.settings):
            log.warning("%s", notice)
        self.engine.start()
        self.learner.start()

    def receive(self, event: Mapping[str, Any]) -> int:
        """Store an event of Label Studio's in the log, which has it on disk when this returns; learning reads it there later.

        Return its number, 0 if the event is still in the log's spill file. Raises LogError.
        """
        number = self.corrections.store(event)
        action = event.get("action")
        self.metrics.stored(counted_as(action))
        if action == START_TRAINING:
            self.learner.wake()
        return number

    def close(self, seconds: float) -> bool:
        """Interrupt bulk and training runs, finish the requests that have begun, which may take so many ``seconds``, and close all parts.

        The next server goes on with the training run by itself, and with a bulk run once somebody starts it again. Return whether the
        thread of the models has ended (:meth:`Engine.close`).
        """
        self.bulk.interrupt()
        if self.backlog is not None:
            self.backlog.close()
        self.learner.close(RUN_SECONDS)
        self.bulk.join(RUN_SECONDS)
        ended = self.engine.close(seconds)
        self.predictor.close()
        self.background.shutdown(wait=False, cancel_futures=True)
        self.corrections.close()
        if self.label_studio is not None:
            self.label_studio.close()
        return ended


def build(
    settings: Settings,
    load: Callable[[Settings], Leases] = load_leases,
    images: Images | None = None,
    trainer: Sequence[str] | None = None,
) -> Service:
    """Return the service of the settings, not yet started. ``load``, ``images`` and ``trainer`` (a training's command) are for tests.
    Raises SettingsError, LabelStudioError or LearningError if the log, an address, the token or the file of those left out is faulty.
    """
    metrics = Metrics()
    token = settings.label_studio_api_key.get_secret_value()
    label_studio = LabelStudio(settings.label_studio_url, token) if settings.label_studio_url else None
    corrections = CorrectionLog(settings.home / "corrections.sqlite")
    scorer = Scorer(settings.home / "score.json")

    def begin() -> Leases:
        leases = load(settings)
        leases.name_edges(edges.digest_of)
        versions.begin(leases)
        leases.calibrate(scorer.calibration)
        return leases

    edges = Edges(settings.home)
    engine: Engine[Leases] = Engine(begin, settings.queue, lambda: answerer.forget_images())  # noqa: PLW0108 – it is made below
    answerer = Answerer(settings, metrics, edges, engine.give_way)
    background = ThreadPoolExecutor(1, "background")

    def noted(pipeline: Pipeline) -> None:
        edges.note(pipeline.version, pipeline.decoder)
        former = _note(pipeline.version, settings)
        if settings.refresh and former and former != pipeline.version and label_studio is not None and token:
            background.submit(_refresh, label_studio, corrections.projects(), former, pipeline.version)

    versions = Versions(engine, Registry(settings.home), noted)

    def shared(task: int, version: str) -> None:
        if label_studio is not None and token:
            background.submit(_drop_duplicates, label_studio, task, version)

    pictures = images or image_store(settings, label_studio)
    late: Predict = lambda raw, request: predictor.predict_late(raw, request)  # noqa: E731, PLW0108 – the predictor is made below
    backlog = Backlog(late, label_studio) if label_studio is not None and token else None
    parameters = ProjectParameters(corrections)
    predictor = Predictor(engine, answerer, pictures, corrections, settings, metrics, shared, backlog, parameters=parameters.of)
    learner = Learner(
        settings,
        engine,
        versions,
        corrections,
        pictures,
        metrics,
        label_studio=label_studio,
        scorer=scorer,
        edges=edges,
        trainer=trainer or TRAINER,
    )
    bulk = BulkRuns(settings, engine, answerer, pictures, corrections, metrics)
    return Service(
        settings, engine, predictor, corrections, metrics, label_studio, background, versions, learner, parameters, pictures, bulk, backlog
    )


def version_file(settings: Settings) -> Path:
    """Return the file that notes the version of these settings, so that after a restart it is known before the models are loaded."""
    shaping = {"model": settings.model, "segmenter": settings.segmenter, "options": _noted_options(settings).shaping()}
    return settings.home / f"version-{digest_of(shaping)[:12]}.txt"


def _former_version_file(settings: Settings) -> Path:
    """Return the file in which earlier releases noted the version: those whose identities were not yet hashes of JSON."""
    points = settings.points or "packed"
    return settings.home / f"version-{former_settings(settings.model, settings.segmenter, _noted_options(settings), points)}.txt"


def _noted_options(settings: Settings) -> Options:
    """Return the options that the name of the version's file is made from.

    Strategy ``auto`` is resolved only where no adapter has a say: for the demo model, as in earlier releases, and without an MLLM.
    """
    options = replace(settings.options, joint=bool(settings.options.joint))
    demo = settings.model == "demo"
    if settings.has_model and not demo:
        return options
    return replace(options, strategy=resolve_strategy(options.strategy, demo=demo, has_adapter=False, has_model=settings.has_model))


def _noted_version(settings: Settings) -> str:
    """Return the version that these settings had last time; empty if none was noted, or the file holds no version."""
    path = version_file(settings)
    try:
        noted = (path if path.exists() else _former_version_file(settings)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return noted if matches(_SERVED, noted) else ""


def _note(version: str, settings: Settings) -> str:
    """Note the version that serves, and return the one that was noted before, empty if none was."""
    path = version_file(settings)
    former = _noted_version(settings)
    try:
        replace_file(path, version.encode())
    except OSError as error:
        log.warning("%s could not be written (%s); until the models are there, a restart will not know its version", path, error.strerror)
    log.info("%s serves", version)
    return former


def _refresh(label_studio: LabelStudio, projects: Sequence[int], former: str, version: str) -> None:
    """Name the projects' backends after the new version, and delete predictions of the former one.

    Label Studio by itself asks for new predictions only of tasks that are opened; bulk runs make the others.
    """
    for project in projects:
        try:
            if label_studio.rename_backends(project, former, version):
                label_studio.drop_version(project, former)
        except LabelStudioError as error:
            log.warning("project %d still shows predictions of %s: %s", project, former, error)


def _drop_duplicates(label_studio: LabelStudio, task: int, version: str) -> None:
    time.sleep(DUPLICATE_SECONDS)
    try:
        dropped = label_studio.drop_duplicates(task, version)
    except LabelStudioError as error:
        log.warning("task %d may have its prediction twice: %s", task, error)
        return
    if dropped:
        log.info("task %d: %d repeated predictions deleted", task, dropped)
