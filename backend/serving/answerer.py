"""From one question about a picture to its prediction: what the server and bulk runs have in common. Knows no deadline and no queue."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from backend.errors import TaskError
from backend.images.store import LoadedImage
from backend.label_studio.answer_text import summary, summary_of_clicks, told
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.parameters import NO_PARAMETERS, Parameters
from backend.label_studio.phrases import Pointed, Wanted, wanted
from backend.label_studio.wire import Region, Task, prediction
from backend.label_studio.write_regions import answer_line, to_regions
from backend.serving.edges import Edges
from backend.serving.pointing import OnScreen, answer_ids, of_size, with_shown
from backend.serving.served_records import ServedAnswer
from backend.settings import Settings
from backend.support.byte_cache import ByteCache
from backend.support.demo_project import demo_notice
from backend.support.metrics import Metrics
from sam4mllm.clicks import Clicks
from sam4mllm.edges import Edge, draw_edge
from sam4mllm.errors import EngineAwayError
from sam4mllm.identity import digest_of
from sam4mllm.lockstep import go_on
from sam4mllm.options import Options, Strategy
from sam4mllm.pipeline import Asked, Opened, Pipeline
from sam4mllm.values import Instance, Segmentation

log = logging.getLogger(__name__)

NO_ROOM = "out of memory, even for one phrase at a time; use a smaller model, another device, or a lower SAM4MLLM_MAX_PIXELS"

AHEAD_SECONDS = 60.0
"""How long the results of ``find_ahead`` are kept, so that those of a run that was stopped do not stay."""

Prediction = dict[str, Any]
_Found = tuple[list[Segmentation], dict[str, float]]
"""The answers, one for each phrase in order, and the seconds of each stage."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What the models found for a question, before regions are made of it: ``found`` by phrase, with the ``seconds`` of each stage.
    ``clicks`` are the annotator's in pixels, and ``seen`` what is on the screen in a picture of this size.
    """

    pipeline: Pipeline
    found: list[Segmentation]
    seconds: dict[str, float]
    clicks: Clicks | None
    seen: Sequence[OnScreen]


@dataclass(frozen=True)
class Question:
    """What is asked of one picture of a task. Answers are cached by this, the project and the version (:meth:`key`).

    ``page`` is the index of the picture in a task of several pictures, from 0, and None in any other task. ``selected`` are the ids of the
    regions that the clicks are about.
    """

    task: Task
    config: LabelConfig
    wanted: tuple[Wanted, ...]
    pointed: Pointed
    interactive: bool
    parameters: Parameters = NO_PARAMETERS
    page: int | None = None
    seen: tuple[OnScreen, ...] = ()
    """What the annotator may have on the screen for the phrases."""
    selected: frozenset[str] = frozenset()

    def key(self, version: str, project: int | None) -> str:
        """Return the hash of the question, the version and the project, by which answers are cached and regions get their ids."""
        asked = {"phrases": [asdict(one) for one in self.wanted], "pointed": asdict(self.pointed), "config": self.config.digest}
        shown = {"seen": [asdict(one) for one in self.seen], "selected": sorted(self.selected)}
        where = {"project": project, "task": self.task.id, "data": json.dumps(self.task.data, sort_keys=True), "page": self.page}
        how = {"parameters": shaping} if (shaping := self.parameters.shaping()) else {}
        return digest_of({"version": version, "interactive": self.interactive, **where, **asked, **shown, **how})

    @property
    def image(self) -> str:
        """The reference of the picture. Raises TaskError where there is none."""
        return self.config.pictures(self.task.data)[self.page or 0]

    def each_page(self) -> tuple[Question, ...]:
        """Return the question for each page of a task of several pictures, or the question itself for any other task.

        Raises TaskError if the task's data has no picture.
        """
        if not self.config.paged:
            return (self,)
        pages = range(len(self.config.pictures(self.task.data)))
        return tuple(replace(self, page=page, seen=tuple(one for one in self.seen if one.page == page)) for page in pages)


def bulk_question(task: Task, config: LabelConfig, phrase_field: str, parameters: Parameters = NO_PARAMETERS) -> Question:
    """Return what a bulk run asks of a task. ``config`` is the project's, with the prompts of ``parameters`` already applied.

    ``phrase_field`` is the key of a task's phrase unless ``parameters`` name another. Raises TaskError or PhraseError.
    """
    config = config.for_task(task.data)
    asked = wanted(task, config, (), parameters.phrase_field(phrase_field))
    return Question(task, config, tuple(asked), Pointed(), False, parameters)


@dataclass(frozen=True)
class _Finding:
    """All that the answers to phrases depend on: the key of what ``find_ahead`` found."""

    version: str
    sha256: str
    phrases: tuple[str, ...]
    strategy: Strategy | None
    threshold: float | None

    @classmethod
    def of(cls, pipeline: Pipeline, image: LoadedImage, phrases: Sequence[str], how: Parameters) -> _Finding:
        return cls(pipeline.version, image.sha256, tuple(phrases), how.strategy, how.threshold)


class Answerer:
    """Answers questions by a pipeline, and caches the images it took in. For one thread at a time, but for ``write``."""

    def __init__(self, settings: Settings, metrics: Metrics, edges: Edges, between: Callable[[], None] = go_on) -> None:
        """``between`` is called before an image is opened, and where ``Pipeline.open`` and ``Pipeline.segment`` call theirs."""
        self._settings = settings
        self._between = between
        self._edges = edges
        self._metrics = metrics
        self.opened: ByteCache[tuple[str, str], Opened] = ByteCache(settings.cache_mb * 1024 * 1024, lambda opened: opened.nbytes)
        """Opened images, by version and the SHA-256 of their file."""
        self._ahead: dict[_Finding, _Found] = {}
        self._ahead_until = 0.0

    def look(self, pipeline: Pipeline, image: LoadedImage, question: Question) -> Findings:
        """What the models find for a question. Raises TaskError as ``find`` does, and what the pipeline raises."""
        height, width = image.pixels.shape[:2]
        seen = of_size(question.seen, height, width)
        clicks = with_shown(question.pointed.clicks(width, height), seen, question.selected) if question.pointed else None
        found, seconds = self.find(pipeline, image, [one.phrase for one in question.wanted], clicks, question.parameters)
        return Findings(pipeline, found, seconds, clicks, seen)

    def write(
        self, findings: Findings, question: Question, key: str, fetched: float, project: int | None
    ) -> tuple[bytes, list[ServedAnswer]]:
        """Return a prediction's JSON text, and what was drawn for it. No model is used, and any thread may call this.

        ``key`` is the question's, and ``fetched`` are the seconds that fetching the image took. The metrics count the answer.
        Raises TaskError, before anything is counted, if the question is not interactive, no region was made, and an answer has a note, for
        example that it could not be read.
        """
        pipeline, found, clicks, seen = findings.pipeline, findings.found, findings.clicks, findings.seen
        drawing = time.perf_counter()
        labels = [one.label for one in question.wanted] or [None]
        if question.pointed.label is not None:
            labels = [question.pointed.label] * len(found)
        kept = [one.instances if clicks is None else tuple(instance for instance in one.instances if instance.pointed) for one in found]
        regions: list[Region] = []
        drawn: list[ServedAnswer] = []
        for place, (one, label, instances) in enumerate(zip(found, labels, kept, strict=True)):
            recorded: list[tuple[Instance, tuple[Region, ...]]] = []
            for index, bare in enumerate(instances):
                instance = replace(bare, mask=draw_edge(bare.mask, self._edge(pipeline, project, label)))
                own = _label_alone(question) if instance.pointed == "alone" else label
                made = to_regions(
                    instance, index, question.config, own, f"{key} {place}", question.page, one.calibrated or bool(instance.pointed)
                )
                masks = tuple(region for region in made if region["from_name"] == question.config.mask.name)
                known = seen if clicks is not None else [shown for shown in seen if shown.phrase == one.phrase]
                ids = answer_ids(instance, [region["id"] for region in masks], clicks, known)
                renamed = dict(zip((region["id"] for region in masks), ids, strict=True))
                for region in masks:
                    region["meta"] = {
                        **region.get("meta", {}),
                        **told(renamed[region["id"]], one.phrase, one.note, one.thought, question.parameters.tell()),
                    }
                for region in made:  # of a control beside Labels, two regions have one id
                    region["id"] = renamed.get(region["id"], region["id"])
                regions += made
                if instance.pointed != "alone":
                    recorded.append((instance, masks))
            if recorded or clicks is None:  # a click elsewhere does not say that there is no such object
                drawn.append(ServedAnswer(one, label, tuple(recorded)))
        notes = sorted({one.note for one in found if one.note})
        if notes and not regions and not question.interactive:
            raise TaskError("; ".join(notes))  # an unusable answer must not be stored as "no such object"
        if question.interactive or question.config.tells:
            notice = "" if regions or clicks is not None else demo_notice(self._settings, project)
            said = summary(found, _options(pipeline, question.parameters)) if clicks is None else summary_of_clicks(found, kept, regions)
            said = f"{said}; {notice}" if notice else said
            regions += answer_line(question.config, said, key)
        scores = [instance.score for instances in kept for instance in instances] or [one.score for one in found]
        answer = dump(prediction(regions, min(scores, default=0.0), pipeline.version))
        self._metrics.spent({"fetch": fetched, **findings.seconds, "regions": time.perf_counter() - drawing})
        self._metrics.served(sum(map(len, kept)))
        return answer, drawn

    def _edge(self, pipeline: Pipeline, project: int | None, label: str | None) -> Edge:
        """Return the edge of the version that answers, even if another edge was adopted while the request waited."""
        if pipeline.options.edges == self._edges.digest_of(pipeline.decoder):
            return self._edges.of(project, label, pipeline.decoder)
        return self._edges.at(pipeline.version, project, label)

    def find(
        self,
        pipeline: Pipeline,
        image: LoadedImage,
        phrases: list[str],
        clicks: Clicks | None = None,
        parameters: Parameters = NO_PARAMETERS,
    ) -> _Found:
        """Return the answers, one for each phrase, and the seconds of each stage.

        The strategy and the threshold of ``parameters``, where given, replace the server's. A result of ``find_ahead`` is used once. If
        memory does not suffice for all phrases at once, all cached images are closed and each phrase is asked by itself. Raises TaskError
        if memory does not suffice for that either.
        """
        if time.monotonic() > self._ahead_until:
            self._ahead = {}
        ready = self._ahead.pop(_Finding.of(pipeline, image, phrases, parameters), None) if clicks is None else None
        if ready is not None:
            return ready
        try:
            return self._find_at_once(pipeline, image, phrases, clicks, parameters)
        except torch.cuda.OutOfMemoryError:
            pass  # until the error is gone, what it refers to takes up memory
        log.warning("out of memory: all opened images are closed, and the task is tried again phrase by phrase")
        self.forget_images()
        found: list[Segmentation] = []
        seconds: dict[str, float] = {}
        try:
            for some in [[phrase] for phrase in phrases] or [[]]:
                more, spent = self._find_at_once(pipeline, image, some, clicks, parameters)
                found += more
                seconds = {stage: seconds.get(stage, 0.0) + value for stage, value in spent.items()}
            return found, seconds
        except torch.cuda.OutOfMemoryError:
            pass  # as above
        self.forget_images()
        raise TaskError(NO_ROOM)

    def find_ahead(self, pipeline: Pipeline, asked: Sequence[tuple[LoadedImage, list[str], Parameters]]) -> bool:
        """Answer together what ``find`` will be asked next: phrases in several images, whose questions share forward passes of the MLLM.

        The results wait for ``find`` until the next call of this method or of ``forget_images``, at most AHEAD_SECONDS. What fails here is
        left to ``find``, which raises the error. If memory does not suffice, close all cached images and return False, else return True.
        """
        self._ahead = {}
        try:
            self._ahead, self._ahead_until = self._find_together(pipeline, asked), time.monotonic() + AHEAD_SECONDS
            return True
        except EngineAwayError:
            return True
        except torch.cuda.OutOfMemoryError:
            pass  # until the error is gone, what it refers to takes up memory
        log.warning("out of memory for %d images at once: they are taken one by one", len(asked))
        self.forget_images()
        return False

    def _find_together(self, pipeline: Pipeline, asked: Sequence[tuple[LoadedImage, list[str], Parameters]]) -> dict[_Finding, _Found]:
        began = time.perf_counter()
        opened = [self._open_or_none(pipeline, image) for image, _, _ in asked]
        taken = [(one, *what) for one, what in zip(opened, asked, strict=True) if one is not None]
        seconds = {"open": (time.perf_counter() - began) / max(1, len(taken))}
        each = [Asked(one, phrases, how.strategy, None, how.threshold) for one, _, phrases, how in taken]
        together: dict[_Finding, _Found] = {}
        for (_, image, phrases, how), found in zip(taken, pipeline.segment_each(each, self._between), strict=True):
            if isinstance(found, torch.cuda.OutOfMemoryError):
                raise found
            if not isinstance(found, Exception):
                together[_Finding.of(pipeline, image, phrases, how)] = (found, seconds | _stages(found))
        return together

    def _open_or_none(self, pipeline: Pipeline, image: LoadedImage) -> Opened | None:
        try:
            opened = self._open(pipeline, image)
            self._between()
            opened.scene.read()  # now: where the questions of several images share a step, no annotator's work could come between
            return opened
        except (torch.cuda.OutOfMemoryError, EngineAwayError):
            raise  # these errors concern all images
        except Exception:
            return None  # ``find`` raises the error when it is called for this image

    def _find_at_once(
        self, pipeline: Pipeline, image: LoadedImage, phrases: list[str], clicks: Clicks | None, parameters: Parameters
    ) -> _Found:
        began = time.perf_counter()
        opened = self._open(pipeline, image)
        seconds = {"open": time.perf_counter() - began}
        found = pipeline.segment(opened, phrases, parameters.strategy, clicks, parameters.threshold, self._between)
        return found, seconds | _stages(found)

    def forget_images(self) -> None:
        """Close all cached images, drop the results of ``find_ahead``, and give the memory back."""
        self._ahead = {}
        self.opened.clear()
        gc.collect()
        torch.cuda.empty_cache()

    def _open(self, pipeline: Pipeline, image: LoadedImage) -> Opened:
        self._between()
        key = (pipeline.version, image.sha256)
        opened = self.opened.get(key)
        if opened is None:
            opened = pipeline.open(image.pixels, None, self._between)
            self.opened.put(key, opened)
        return opened


def _stages(found: Sequence[Segmentation]) -> dict[str, float]:
    """The seconds of each stage after the image was taken in."""
    return {stage: spent for stage, spent in found[0].timings.items() if stage != "image"}


def _options(pipeline: Pipeline, parameters: Parameters) -> Options:
    """Return the pipeline's options with the strategy and the threshold of a project's parameters in their place."""
    return replace(pipeline.options, **parameters.shaping())


def _label_alone(question: Question) -> str | None:
    """Return the label of an object that was drawn by clicks alone: the smart tool's, or the only one in the config, or None."""
    labels = question.config.mask.labels
    return question.pointed.label or (labels[0].value if len(labels) == 1 else None)


def dump(value: Prediction) -> bytes:
    """A prediction as JSON text."""
    return json.dumps(value, separators=(",", ":")).encode()
