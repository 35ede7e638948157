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
from sam4mllm.evaluation.metrics import Sample, sample, summarize
from sam4mllm.grounding.protocol import Grounding, Inquiry
from sam4mllm.masks import union
from sam4mllm.pipeline import Opened, Pipeline, Strategy
from sam4mllm.points import PATTERN_SIZE, spread
from sam4mllm.segmentation.protocol import Prompt


@dataclass(frozen=True, eq=False)
class Judged:
    """One example and what came of it: the phrase's sample, the oracle's IoU if asked for, and its points' P(inside) and truth."""

    example: Example
    sample: Sample
    score: float
    oracle_iou: float | None
    inside: NDArray[np.float64]
    truth: NDArray[np.bool_]


Track = Callable[[Iterable[list[Example]], int], Iterable[list[Example]]]


def _plain(items: Iterable[list[Example]], total: int) -> Iterable[list[Example]]:
    del total
    return items


def evaluate(
    pipeline: Pipeline, folder: Path, strategy: Strategy = "pqpp", oracle: bool = False, track: Track = _plain
) -> tuple[dict[str, float | int | None], list[Judged]]:
    """The summary of :func:`~sam4mllm.evaluation.metrics.summarize` and every example's result.

    All phrases of an image are answered in one call. ``track`` wraps the images, for a progress bar. Raises DatasetError.
    """
    examples = sorted(read_examples(folder), key=lambda example: example.image)
    images = [list(group) for _, group in groupby(examples, key=lambda example: example.image)]
    judged: list[Judged] = []
    seconds = 0.0
    for group in track(images, len(images)):
        image = load_example_image(folder, group[0])
        began = time.perf_counter()
        opened = pipeline.open(image)
        answers = pipeline.segment(opened, [example.phrase for example in group], strategy)
        seconds += time.perf_counter() - began
        points = list(ask_true_points(pipeline, opened, group))
        for example, answer, (inside, truth) in zip(group, answers, points, strict=True):
            true = example.masks()
            ideal = draw_oracle(pipeline, opened, example, true) if oracle and len(true) else None
            judged.append(Judged(example, sample(answer.mask, union(true)), answer.score, ideal, inside, truth))
    return summarize_judged(judged, seconds), judged


def summarize_judged(judged: Sequence[Judged], seconds: float) -> dict[str, float | int | None]:
    """The metrics of a list of results that took ``seconds`` in all."""
    return summarize(
        [one.sample for one in judged],
        inside=np.concatenate([one.inside for one in judged]) if judged else None,
        truth=np.concatenate([one.truth for one in judged]) if judged else None,
        oracle_ious=[one.oracle_iou for one in judged if one.oracle_iou is not None] or None,
        seconds=seconds,
    )


def ask_true_points(
    pipeline: Pipeline, opened: Opened, examples: Sequence[Example]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """For each example P(inside) and the truth of the default pattern in its true boxes; no point is dropped."""
    inquiries = []
    for example in examples:
        boxes = np.array([instance.box_px for instance in example.instances], np.float32).reshape(-1, 4)
        known = Grounding(example.phrase, boxes, np.ones(len(boxes)), 0.0)
        inquiries += [Inquiry(known, index, spread(box, PATTERN_SIZE)) for index, box in enumerate(boxes)]
    answers = iter(pipeline.grounder.ask(opened.scene, inquiries, joint=False) if inquiries else [])
    asked = iter(inquiries)
    for example in examples:
        inside, truth = [np.zeros(0)], [np.zeros(0, np.bool_)]
        for mask in example.masks():
            inside.append(next(answers))
            truth.append(_lies_on(mask, next(asked).points_px))
        yield np.concatenate(inside), np.concatenate(truth)


def draw_oracle(pipeline: Pipeline, opened: Opened, example: Example, true: NDArray[np.bool_]) -> float:
    """IoU of the union of what the segmenter draws from the true boxes and the pattern's points with their true labels."""
    prompts = []
    for instance, mask in zip(example.instances, true, strict=True):
        points = spread(instance.box_px, PATTERN_SIZE)
        prompts.append(Prompt(instance.box_px, points, _lies_on(mask, points).astype(np.int64)))
    decoded = pipeline.segmenter.decode(opened.embedding, prompts)
    best = np.stack([masks.masks[int(masks.predicted_iou.argmax())] for masks in decoded])
    return sample(union(best), union(true)).iou


def _lies_on(mask: NDArray[np.bool_], points_px: NDArray[np.float32]) -> NDArray[np.bool_]:
    rows = np.clip(points_px[:, 1].astype(int), 0, mask.shape[0] - 1)
    columns = np.clip(points_px[:, 0].astype(int), 0, mask.shape[1] - 1)
    return mask[rows, columns]
