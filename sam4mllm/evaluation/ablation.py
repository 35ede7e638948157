"""Measures many settings on the same images.

All settings with the same models share the work: each image is encoded once, and a question that several settings ask the MLLM is asked
once, unless it belongs to a look back.

The result of one image under one setting is one line of a journal. Its key is a hash of everything that the result depends on. An ablation
that was stopped thus goes on from the journal; results for another dataset, model or setting have other keys and are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sam4mllm
from sam4mllm.answers import STAGES
from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image
from sam4mllm.evaluation.controls import ControlGrounder
from sam4mllm.evaluation.intervals import Sums, Term, sum_by_image, terms
from sam4mllm.evaluation.journal import KeyedLines
from sam4mllm.evaluation.metrics import Sample
from sam4mllm.evaluation.run import by_image, draw_oracle, measure
from sam4mllm.evaluation.settings import Setting
from sam4mllm.evaluation.sharing import SharingGrounder
from sam4mllm.identity import digest_of
from sam4mllm.masks import lies_on
from sam4mllm.pipeline import Opened, Pipeline
from sam4mllm.values import Segmentation

Load = Callable[[Setting], Pipeline]
"""A function that loads the pipeline with a setting's segmenter and adapters. The options of the pipeline that it returns are not used."""
Track = Callable[[Iterable[list[Example]], int, str], Iterable[list[Example]]]
"""A function that takes the images of a group of settings, their number and the names of the models, and returns the images with a progress
bar."""


@dataclass(frozen=True)
class SettingResult:
    """The result of one image under one setting.

    ``samples`` has one sample for each phrase. ``seconds`` is the time of all phrases together, by stage; it is empty for the upper bound,
    where the segmenter gets true boxes and points.
    The counts are of points, compared with the phrase's true mask: ``asked`` is the number of all points, ``right`` of those that were
    judged rightly (P(inside) ≥ 0.5 means inside), ``kept`` of those that the thresholds did not drop, and ``kept_right`` of those among
    them with the right label.
    """

    samples: tuple[Sample, ...]
    seconds: dict[str, float]
    asked: int = 0
    right: int = 0
    kept: int = 0
    kept_right: int = 0

    def terms(self) -> Iterator[dict[str, Term]]:
        """Yield what each phrase adds to the figures. Seconds and counts of points are divided equally among the image's phrases."""
        share = 1 / len(self.samples)
        timed = 1.0 if self.seconds else 0.0
        for sample in self.samples:
            yield {
                **terms(sample),
                "asked_right": (self.right * share, self.asked * share),
                "kept": (self.kept * share, self.asked * share),
                "kept_right": (self.kept_right * share, self.kept * share),
                "seconds_per_phrase": (sum(self.seconds.values()) * share, timed),
                **{f"seconds_{stage}": (self.seconds.get(stage, 0.0) * share, timed) for stage in STAGES},
            }


def ablate(
    settings: Sequence[Setting],
    folder: Path,
    examples: Sequence[Example],
    load: Load,
    journal: Journal,
    track: Track = lambda images, total, what: images,
    min_pixels: int = 0,
) -> dict[Setting, Sums]:
    """Measure every setting and return its figures as sums by image; the order of the images is the same for all settings.

    Args:
        settings: the settings, as ``plan`` returns them.
        folder: the dataset.
        examples: its examples, as ``choose`` returns them.
        load: loads a pipeline. It is called once for each combination of segmenter, adapter and segmenter adapter, when its turn comes.
        journal: holds the results that are known already; the others are added to it.
        track: for a progress bar.
        min_pixels: a predicted mask of fewer pixels counts as empty; 0 keeps every one.

    Raises:
        DatasetError: a picture cannot be read.
        ModelError: a model cannot be loaded, or fails.
        ImageError, PhraseError: a model cannot take a picture or a phrase.
        EvaluationError: the journal cannot be written.
        Exception: whatever else ``load`` raises.
    """
    groups: dict[tuple[str | None, ...], list[Setting]] = {}
    for setting in settings:
        groups.setdefault((setting.segmenter, setting.adapter, setting.segmenter_adapter), []).append(setting)
    images = by_image(examples)
    sums: dict[Setting, Sums] = {}
    for models, some in groups.items():
        bench = Bench(load(some[0]), folder, some, journal, min_pixels)
        what = ", ".join(name for name in models if name is not None)
        done = [bench.answer(group) for group in track(images, len(images), what)]
        for setting in some:
            outcomes = [outcome[setting] for outcome in done]
            names = [group[0].image for group, outcome in zip(images, outcomes, strict=True) for _ in outcome.samples]
            sums[setting] = sum_by_image(names, [row for outcome in outcomes for row in outcome.terms()])
    return {setting: sums[setting] for setting in settings}


class Bench:
    """Answers images under all settings that share one pipeline of model and segmenter."""

    def __init__(self, pipeline: Pipeline, folder: Path, settings: Sequence[Setting], journal: Journal, min_pixels: int) -> None:
        self._folder = folder
        self._journal = journal
        self._min_pixels = min_pixels
        self._grounder = SharingGrounder(pipeline.grounder)
        self._pipelines = {
            setting: pipeline.through(ControlGrounder(self._grounder, setting.answers), setting.options) for setting in settings
        }

    def answer(self, group: Sequence[Example]) -> dict[Setting, SettingResult]:
        """Return every setting's result for one image, whose examples are ``group``.

        Results that are in the journal are taken from it; the others are computed and added to it. The image is opened only if one is
        missing.
        """
        keys = {setting: self._key(setting, group) for setting in self._pipelines}
        found = {setting: outcome for setting, key in keys.items() if (outcome := self._journal.find(key)) is not None}
        missing = [setting for setting in self._pipelines if setting not in found]
        if missing:
            opened = self._pipelines[missing[0]].open(load_example_image(self._folder, group[0]))
            for setting in missing:
                found[setting] = self._compute(setting, opened, group)
                self._journal.add(keys[setting], setting.label, group[0].image, found[setting])
        return found

    def _compute(self, setting: Setting, opened: Opened, group: Sequence[Example]) -> SettingResult:
        pipeline = self._pipelines[setting]
        if setting.oracle:
            masks = [draw_oracle(pipeline, opened, example) for example in group]
            return SettingResult(self._samples(group, masks), {})
        self._grounder.saved.clear()
        answers = pipeline.segment(opened, [example.phrase for example in group])
        seconds = {
            stage: opened.seconds.get(stage, 0.0) + answers[0].timings.get(stage, 0.0) + self._grounder.saved.get(stage, 0.0)
            for stage in STAGES
        }
        counts = np.sum([_count(answer, example.union()) for answer, example in zip(answers, group, strict=True)], 0).tolist()
        return SettingResult(self._samples(group, [answer.mask for answer in answers]), seconds, *counts)

    def _samples(self, group: Sequence[Example], masks: Sequence[NDArray[np.bool_]]) -> tuple[Sample, ...]:
        return tuple(measure(mask, example, self._min_pixels) for example, mask in zip(group, masks, strict=True))

    def _key(self, setting: Setting, group: Sequence[Example]) -> str:
        """Return the hash of all that shapes an outcome: models, options, control, image, phrases, true masks, ignored pixels, the size
        below which a mask counts as empty, and this package's release.
        """
        asked = [(one.sha256, one.phrase, [instance.rle for instance in one.instances], one.ignore) for one in group]
        pipeline = self._pipelines[setting]
        whole = pipeline.version if pipeline.adapter else ""
        shape = {"identity": pipeline.identity, "version": whole, "oracle": setting.oracle, "min_pixels": self._min_pixels}
        if setting.answers != "model":
            shape["answers"] = setting.answers
        return digest_of({**shape, "release": sam4mllm.__version__, "asked": asked})


def _count(answer: Segmentation, truth: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Count an answer's points: all, those judged rightly, those kept, and those kept with the right label. ``truth`` is the true mask."""
    counts = np.zeros(4, np.int64)
    for instance in answer.instances:
        on, used = lies_on(truth, instance.points_px), instance.labels >= 0
        right, rightly_kept = (instance.inside >= 0.5) == on, (instance.labels == 1)[used] == on[used]
        counts += [len(on), right.sum(), used.sum(), rightly_kept.sum()]
    asked, right_count, kept, kept_right = counts.tolist()
    return asked, right_count, kept, kept_right


# -- the journal ---------------------------------------------------------------------------------------------------------------------------


class Journal(KeyedLines[SettingResult]):
    """The results of images under settings, by the keys that ``Bench`` makes; kept in memory alone if ``path`` is None."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path, _parse)

    def add(self, key: str, setting: str, image: str, outcome: SettingResult) -> None:
        """Keep an outcome as ``put`` does. Setting and image stand in its line only for people to read.

        Raises EvaluationError if the file cannot be written.
        """
        self.put(key, outcome, {"setting": setting, "image": image, **asdict(outcome)})


def _parse(fields: dict[str, Any]) -> SettingResult:
    counts = {name: int(fields[name]) for name in ("asked", "right", "kept", "kept_right")}
    seconds = {str(stage): float(taken) for stage, taken in fields["seconds"].items()}
    samples = tuple(Sample(**sample) for sample in fields["samples"])
    if not samples:
        raise ValueError("an outcome has a sample of each phrase")
    return SettingResult(samples, seconds, **counts)
