"""Running champion and challenger on the same examples; both use the same segmenter embedding of an image.

Examples that a pipeline refuses (an image too long for the model, a phrase with one of its control words) are left out, with a line in the
log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.learning.views import views
from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image
from sam4mllm.edges import AS_DRAWN, Edge, draw_edge
from sam4mllm.errors import ImageError, PhraseError
from sam4mllm.evaluation.metrics import compare
from sam4mllm.pipeline import Opened, Pipeline
from sam4mllm.values import Segmentation

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Compared:
    """What the pipelines, in order, made of an example's phrase, in one view of its image."""

    image: NDArray[np.uint8]
    example: Example
    answers: tuple[Segmentation, ...]


def answer_all(pipelines: Sequence[Pipeline], folder: Path, examples: Sequence[Example], count: int = 1) -> Iterator[Compared]:
    """The answers of pipelines that share a segmenter to all examples, image by image, each in ``count`` views. Raises DatasetError."""
    ordered = sorted(examples, key=lambda example: example.image)
    for _, group in groupby(ordered, key=lambda example: example.image):
        whole = list(group)
        for image, some in views(load_example_image(folder, whole[0]), whole, count):
            try:
                embedding = pipelines[0].segmenter.encode(image)
                opened = [pipeline.open(image, embedding) for pipeline in pipelines]
            except ImageError as error:
                log.warning("%s is left out: %s", whole[0].image, error)
                break
            yield from _answer(pipelines, opened, some, image)


def _answer(
    pipelines: Sequence[Pipeline], opened: Sequence[Opened], some: Sequence[Example], image: NDArray[np.uint8]
) -> Iterator[Compared]:
    """Yield the answers to an image's examples, which are asked together. If a phrase is refused, each is asked alone, and those that are
    refused are left out.
    """
    phrases = [example.phrase for example in some]
    try:
        answered = [pipeline.segment(seen, phrases) for pipeline, seen in zip(pipelines, opened, strict=True)]
    except PhraseError as error:
        if len(some) == 1:
            log.warning("a phrase about %s is left out: %s", some[0].image, error)
            return
        for example in some:
            yield from _answer(pipelines, opened, [example], image)
        return
    for example, answers in zip(some, zip(*answered, strict=True), strict=True):
        yield Compared(image, example, answers)


def score(answer: Segmentation, example: Example, edge: Edge = AS_DRAWN) -> float:
    """Return the IoU of an answer, drawn with ``edge``, with the truth; for a phrase without a target 1 if nothing was drawn, else 0."""
    sample = compare(draw_edge(answer.mask, edge), example.union(), example.has_target)
    return sample.iou if example.has_target else float(sample.predicted_empty)
