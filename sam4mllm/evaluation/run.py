"""Evaluate a pipeline on a dataset: masks against true masks, points against true points, and the upper bound by true prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import Example, load_example_image, read_examples
from sam4mllm.evaluation.metrics import Figures, Sample, Tally
from sam4mllm.grounding.protocol import Grounding, Inquiry
from sam4mllm.masks import lies_on, mask_iou, union
from sam4mllm.pipeline import Opened, Pipeline, Strategy
from sam4mllm.points import PATTERN_SIZE, spread
from sam4mllm.segmentation.protocol import Prompt


@dataclass(frozen=True, eq=False)
class Judged:
    """One example and what came of it; ``oracle_iou`` is None if it was not asked for or the phrase has no target."""

    example: Example
    sample: Sample
    score: float
    oracle_iou: float | None


Track = Callable[[Iterable[list[Example]], int], Iterable[list[Example]]]


def _plain(items: Iterable[list[Example]], total: int) -> Iterable[list[Example]]:
    del total
    return items


def evaluate(
    pipeline: Pipeline, folder: Path, strategy: Strategy = "pqpp", oracle: bool = False, track: Track = _plain
) -> tuple[Figures, list[Judged]]:
    """The figures of :func:`~sam4mllm.evaluation.metrics.summarize` and every example's result.

    All phrases of an image are answered in one call, whose time they share. ``track`` wraps the images, for a progress bar. Raises
    DatasetError.
    """
    examples = sorted(read_examples(folder), key=lambda example: example.image)
    images = [list(group) for _, group in groupby(examples, key=lambda example: example.image)]
    tally, judged = Tally(), list[Judged]()
    for group in track(images, len(images)):
        image = load_example_image(folder, group[0])
        began = time.perf_counter()
        opened = pipeline.open(image)
        answers = pipeline.segment(opened, [example.phrase for example in group], strategy)
        seconds = (time.perf_counter() - began) / len(group)
        for inside, truth in ask_true_points(pipeline, opened, group):
            tally.add_points(inside, truth)
        for example, answer in zip(group, answers, strict=True):
            sample = tally.add(answer.mask, example.union(), example.has_target, seconds)
            ideal = draw_oracle(pipeline, opened, example) if oracle and example.has_target else None
            if ideal is not None:
                tally.add_oracle(ideal)
            judged.append(Judged(example, sample, answer.score, ideal))
    return tally.figures(), judged


def ask_true_points(
    pipeline: Pipeline, opened: Opened, examples: Sequence[Example]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """For each true box of the examples, P(inside) and the truth of the default pattern's points; no point is dropped."""
    inquiries = []
    for example in examples:
        known = Grounding(example.phrase, example.boxes_px, np.ones(len(example.instances)), 0.0)
        inquiries += [Inquiry(known, index, spread(box, pipeline.options.points)) for index, box in enumerate(example.boxes_px)]
    answers = pipeline.grounder.ask(opened.scene, inquiries, joint=pipeline.options.joint)
    masks = [mask for example in examples for mask in example.masks()]
    for inquiry, inside, mask in zip(inquiries, answers, masks, strict=True):
        yield inside, lies_on(mask, inquiry.points_px)


def draw_oracle(pipeline: Pipeline, opened: Opened, example: Example) -> float:
    """IoU of the union of what the segmenter draws from the true boxes and the pattern's points with their true labels."""
    prompts = []
    for box, mask in zip(example.boxes_px, example.masks(), strict=True):
        points = spread(box, PATTERN_SIZE)
        prompts.append(Prompt(box, points, lies_on(mask, points).astype(np.int64)))
    decoded = pipeline.segmenter.decode(opened.embedding, prompts)
    best = np.stack([masks.masks[int(masks.predicted_iou.argmax())] for masks in decoded])
    return mask_iou(union(best), example.union())
