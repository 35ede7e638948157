"""Evaluate a pipeline on a dataset: masks against true masks, points against true points, and the upper bound by true prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam4mllm.answers import STAGES
from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image, read_examples
from sam4mllm.errors import DatasetError
from sam4mllm.evaluation.intervals import Term, intervals, sum_by_image, terms
from sam4mllm.evaluation.metrics import Figures, Sample, compare, summarize
from sam4mllm.evaluation.predictions import JudgedExample, keep, no_probabilities, no_truths
from sam4mllm.grounding.protocol import Inquiry
from sam4mllm.masks import lies_on, union
from sam4mllm.options import PATTERN_SIZE
from sam4mllm.pipeline import Opened, Pipeline
from sam4mllm.points import spread
from sam4mllm.values import Grounding, Prompt

POINT_KINDS = ("points_on_target", "points_on_other", "points_on_background")
"""Where a point in a true box may lie: on the box's object, on another object that has a mask in the dataset, or on neither. A model that
answers whether any object is there, and not whether it is this one, is wrong about the second kind only.
"""

Track = Callable[[Iterable[list[Example]], int], Iterable[list[Example]]]


def _plain(items: Iterable[list[Example]], total: int) -> Iterable[list[Example]]:
    del total
    return items


# -- which examples ------------------------------------------------------------------------------------------------------------------------


def choose(folder: Path, split: str | None = None, limit: int | None = None, seed: int = 0) -> list[Example]:
    """The examples of a dataset to evaluate on, sorted by image.

    Args:
        folder: the dataset.
        split: ``val``, ``testA``, …; all if None.
        limit: the largest number of images, None for all. They are drawn at random from the hashes of their files, so the choice does not
            depend on their names.
        seed: the seed of this draw.

    Raises:
        DatasetError: the folder is no valid dataset, or has no example of the split.
    """
    examples = read_examples(folder)
    chosen = [example for example in examples if split is None or example.split == split]
    if not chosen:
        there = sorted({example.split for example in examples})
        raise DatasetError(
            f"{folder} has no example of the split {split}; it has {', '.join(there)}" if there else f"{folder} has no example"
        )
    if limit is not None:
        images = sorted({example.sha256 for example in chosen})
        drawn = set(np.random.default_rng(seed).permutation(images)[:limit].tolist())
        chosen = [example for example in chosen if example.sha256 in drawn]
    return sorted(chosen, key=lambda example: example.image)


def by_image(examples: Sequence[Example]) -> list[list[Example]]:
    """Group examples by image. They must be sorted by image, as ``choose`` returns them."""
    return [list(group) for _, group in groupby(examples, key=lambda example: example.image)]


# -- the evaluation ------------------------------------------------------------------------------------------------------------------------


def evaluate(
    pipeline: Pipeline,
    folder: Path,
    oracle: bool = False,
    track: Track = _plain,
    *,
    examples: Sequence[Example] | None = None,
    min_pixels: int = 0,
) -> tuple[Figures, list[JudgedExample]]:
    """Answer the examples and return the figures of :func:`summarize_judged` and every example's result.

    All phrases of an image are answered in one call, whose time is divided equally among them. ``oracle`` also draws from the true boxes
    and points. ``track`` wraps the images, for a progress bar. ``examples`` come from ``choose``; None takes all of the dataset.
    ``min_pixels`` is that of ``compare``; it does not apply to the masks of ``oracle``. Raises DatasetError if the dataset or a picture
    cannot be read. Errors of ``Pipeline.segment`` pass through.
    """
    images = by_image(choose(folder) if examples is None else examples)
    judged: list[JudgedExample] = []
    for group in track(images, len(images)):
        judged += _judge(pipeline, folder, group, oracle, min_pixels)
    return summarize_judged(judged), judged


def _judge(pipeline: Pipeline, folder: Path, group: Sequence[Example], oracle: bool, min_pixels: int) -> Iterator[JudgedExample]:
    image = load_example_image(folder, group[0])
    began = time.perf_counter()
    opened = pipeline.open(image)
    answers = pipeline.segment(opened, [example.phrase for example in group])
    whole = (time.perf_counter() - began) / len(group)
    taken = {stage: (opened.seconds.get(stage, 0.0) + answers[0].timings.get(stage, 0.0)) / len(group) for stage in STAGES}
    asked = ask_true_points(pipeline, opened, group)
    for example, answer in zip(group, answers, strict=True):
        points = [next(asked) for _ in example.instances]
        yield JudgedExample(
            example=example,
            sample=measure(answer.mask, example, min_pixels),
            score=answer.score,
            prediction=keep(answer),
            oracle=measure(draw_oracle(pipeline, opened, example), example) if oracle and example.has_target else None,
            inside=np.concatenate([no_probabilities(), *[one.inside for one in points]]),
            on=np.concatenate([no_truths(), *[one.on for one in points]]),
            on_other=np.concatenate([no_truths(), *[one.on_other for one in points]]),
            seconds=taken,
            whole=whole,
        )


def measure(mask: NDArray[np.bool_], example: Example, min_pixels: int = 0) -> Sample:
    """Compare a predicted mask (height, width) bool with an example by ``compare``; the pixels that the example ignores are left out."""
    return compare(mask, example.union(), example.has_target, ignored=example.ignored(), min_pixels=min_pixels)


@dataclass(frozen=True, eq=False)
class TruePoints:
    """The points in one true box; the fields are those of :class:`~sam4mllm.evaluation.predictions.JudgedExample`."""

    inside: NDArray[np.float64] = field(default_factory=no_probabilities)
    on: NDArray[np.bool_] = field(default_factory=no_truths)
    on_other: NDArray[np.bool_] = field(default_factory=no_truths)


def ask_true_points(pipeline: Pipeline, opened: Opened, examples: Sequence[Example]) -> Iterator[TruePoints]:
    """Ask the model about points in each true box of an image's examples; yield its answers and the truth, one TruePoints a box.

    The points are the first ``pipeline.options.points`` of the default pattern. All answers count: no threshold drops any. Without an MLLM
    each TruePoints is empty.
    """
    if not pipeline.has_model:
        yield from [TruePoints() for example in examples for _ in example.instances]
        return
    inquiries = []
    for example in examples:
        known = Grounding(example.phrase, example.boxes_px, np.ones(len(example.instances)), 0.0)
        inquiries += [Inquiry(known, index, spread(box, pipeline.options.points)) for index, box in enumerate(example.boxes_px)]
    answers = pipeline.grounder.ask(opened.scene, inquiries, joint=bool(pipeline.options.joint))
    masks = (mask for example in examples for mask in example.masks())
    known_masks = reduce(np.logical_or, (example.union() for example in examples))
    for inquiry, answer, mask in zip(inquiries, answers, masks, strict=True):
        on = lies_on(mask, inquiry.points_px)
        yield TruePoints(answer.inside, on, lies_on(known_masks, inquiry.points_px) & ~on)


def draw_oracle(pipeline: Pipeline, opened: Opened, example: Example) -> NDArray[np.bool_]:
    """Return (height, width) bool, the union of what the segmenter draws from the true boxes and the pattern's points, truly labelled."""
    prompts = []
    for box, mask in zip(example.boxes_px, example.masks(), strict=True):
        points = spread(box, PATTERN_SIZE)
        prompts.append(Prompt(box, points, lies_on(mask, points).astype(np.int64)))
    decoded = pipeline.segmenter.decode(opened.embedding, prompts) if prompts else []
    best = [masks.mask(masks.best) for masks in decoded]
    return union(np.array(best, np.bool_).reshape(-1, example.height, example.width))


# -- what came of it -----------------------------------------------------------------------------------------------------------------------


def summarize_judged(judged: Sequence[JudgedExample]) -> Figures:
    """Return the figures of :func:`~sam4mllm.evaluation.metrics.summarize` and two more kinds.

    For each of POINT_KINDS there is the share of points that are judged rightly. For each of STAGES, ``seconds_…`` is the mean time of a
    phrase in this stage. Together the stages take ``seconds_per_phrase`` except for the time between them.
    """
    figures = summarize(
        [one.sample for one in judged],
        point_probabilities=np.concatenate([no_probabilities(), *[one.inside for one in judged]]),
        point_truths=np.concatenate([no_truths(), *[one.on for one in judged]]),
        oracle_ious=[one.oracle.iou for one in judged if one.oracle is not None],
        seconds=[one.whole for one in judged],
    )
    stages = {f"seconds_{stage}": float(np.mean([one.seconds.get(stage, 0.0) for one in judged])) if judged else None for stage in STAGES}
    judged_points = [_point_terms(one) for one in judged]
    kinds = {kind: _share([terms[kind] for terms in judged_points]) for kind in POINT_KINDS}
    return {**figures, **kinds, **stages}


def _point_terms(one: JudgedExample) -> dict[str, Term]:
    """Return, for each of POINT_KINDS, how many points were judged rightly and how many were asked about."""
    right = (one.inside >= 0.5) == one.on
    places = (one.on, one.on_other, ~one.on & ~one.on_other)
    return {kind: (float((right & place).sum()), float(place.sum())) for kind, place in zip(POINT_KINDS, places, strict=True)}


def _share(parts: Sequence[Term]) -> float | None:
    below = sum(part[1] for part in parts)
    return sum(part[0] for part in parts) / below if below else None


def intervals_of(judged: Sequence[JudgedExample]) -> dict[str, tuple[float, float] | None]:
    """Return the 95 % interval of each figure but ``point_ece``, the times of the stages and ``count``, by a bootstrap over images.

    The value is None for a figure for which nothing was measured.
    """
    return intervals(sum_by_image([one.example.image for one in judged], [_terms(one) for one in judged]))


def _terms(one: JudgedExample) -> dict[str, Term]:
    ideal = (0.0, 0.0) if one.oracle is None else (one.oracle.iou, 1.0)
    right = float(((one.inside >= 0.5) == one.on).sum())
    return {
        **terms(one.sample),
        "point_accuracy": (right, float(len(one.on))),
        **_point_terms(one),
        "oracle_mIoU": ideal,
        "seconds_per_phrase": (one.whole, 1.0),
    }


def parts(judged: Sequence[JudgedExample]) -> dict[str, dict[str, list[JudgedExample]]]:
    """Group the results by ``split``, and by the part of ``source`` before its first colon.

    A grouping that has only one group is left out.
    """
    found: dict[str, dict[str, list[JudgedExample]]] = {"split": {}, "source": {}}
    for one in judged:
        found["split"].setdefault(one.example.split, []).append(one)
        found["source"].setdefault(one.example.source.partition(":")[0], []).append(one)
    return {name: some for name, some in found.items() if len(some) > 1}
