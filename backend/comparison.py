"""Champion and challenger on the same examples: both see each image through one segmenter embedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import Example, load_example_image
from sam4mllm.evaluation.metrics import compare
from sam4mllm.pipeline import Opened, Pipeline, Segmentation, Strategy


@dataclass(frozen=True, eq=False)
class Answers:
    """What the pipelines, in order, made of an example's phrase."""

    image: NDArray[np.uint8]
    example: Example
    answers: tuple[Segmentation, ...]


def answer_all(pipelines: Sequence[Pipeline], folder: Path, examples: Sequence[Example], strategy: Strategy) -> Iterator[Answers]:
    """The answers of pipelines that share a segmenter to all examples, image by image. Raises DatasetError."""
    ordered = sorted(examples, key=lambda example: example.image)
    for _, group in groupby(ordered, key=lambda example: example.image):
        some = list(group)
        image = load_example_image(folder, some[0])
        embedding = pipelines[0].segmenter.encode(image)
        phrases = [example.phrase for example in some]
        answered = [pipeline.segment(Opened(pipeline.grounder.open(image), embedding), phrases, strategy) for pipeline in pipelines]
        for example, answers in zip(some, zip(*answered, strict=True), strict=True):
            yield Answers(image, example, answers)


def score(answer: Segmentation, example: Example) -> float:
    """IoU with the truth; for a phrase without a target 1 if nothing was drawn, else 0."""
    sample = compare(answer.mask, example.union(), example.has_target)
    return sample.iou if example.has_target else float(sample.predicted_empty)
