"""Measures how fast corrective clicks improve answers: the IoU after a number of clicks, and the clicks that a given IoU takes.

Both are measured with and without the former mask as an input of the segmenter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image
from sam4mllm.errors import EvaluationError
from sam4mllm.evaluation.clicking import MOST_CLICKS, click_through
from sam4mllm.evaluation.intervals import Sums, Term, differences, intervals, sum_by_image
from sam4mllm.evaluation.run import by_image
from sam4mllm.evaluation.sharing import SharingGrounder
from sam4mllm.pipeline import Pipeline
from sam4mllm.segmentation.former import MaskTaker

COUNTED = (1, 2, 3, 5)
"""The numbers of clicks after which the mIoU is reported."""
GOALS = (0.85, 0.90)
"""The two IoUs to which interactive segmentation counts clicks (NoC@85, NoC@90)."""
WITHOUT, WITH = "without", "with"

Track = Callable[[Iterable[list[Example]], int], Iterable[list[Example]]]


@dataclass(frozen=True)
class ClickCurve:
    """The IoUs of one phrase: that of the answer, then that after each click. After the last click the IoU counts as unchanged."""

    ious: tuple[float, ...]

    def after(self, clicks: int) -> float:
        return self.ious[min(clicks, len(self.ious) - 1)]

    def clicks_to(self, goal: float) -> int:
        """Return how many clicks it takes until the IoU is ``goal`` or more; MOST_CLICKS if it never is."""
        return next((clicks for clicks, iou in enumerate(self.ious) if iou >= goal), MOST_CLICKS)

    def terms(self) -> dict[str, Term]:
        """Return what the curve adds to the numerator and the denominator of each figure.

        ``harm`` is the share of clicks that lower the IoU by more than 0.01.
        """
        steps = [after - before for before, after in pairwise(self.ious)]
        return {
            "answer": (self.ious[0], 1.0),
            **{f"after {count}": (self.after(count), 1.0) for count in COUNTED},
            **{f"clicks to {goal:.2f}": (float(self.clicks_to(goal)), 1.0) for goal in GOALS},
            "harm": (float(sum(step < -0.01 for step in steps)), float(len(steps))),
        }


def measure_clicks(pipeline: Pipeline, folder: Path, examples: Sequence[Example], track: Track) -> dict[str, Sums]:
    """Click on the answers for all phrases with a target and return the figures, summed by image.

    The key WITHOUT has the figures without the former mask as input, and WITH those with it, if the segmenter can take it. A phrase gets
    max(COUNTED) clicks, and more until max(GOALS) or MOST_CLICKS is reached; clicking ends early if nothing is wrong any more.

    Raises DatasetError if a picture cannot be read, and EvaluationError if no phrase has a target. Errors of :meth:`Pipeline.segment
    <sam4mllm.pipeline.Pipeline.segment>` pass through.
    """
    grounder = SharingGrounder(pipeline.grounder)
    ways = [(WITHOUT, False), (WITH, True)] if isinstance(pipeline.segmenter, MaskTaker) else [(WITHOUT, False)]
    pipelines = {name: pipeline.through(grounder, replace(pipeline.options, former_mask=former)) for name, former in ways}
    groups = by_image([example for example in examples if example.has_target])
    if not groups:
        raise EvaluationError("clicks need phrases with a target, and the dataset has none")
    images: list[str] = []
    rows: dict[str, list[Mapping[str, Term]]] = {name: [] for name in pipelines}
    for group in track(groups, len(groups)):
        opened = pipelines[WITHOUT].open(load_example_image(folder, group[0]))
        answers = pipelines[WITHOUT].segment(opened, [example.phrase for example in group])
        for example, answer in zip(group, answers, strict=True):
            images.append(example.image)
            for name, own in pipelines.items():
                rows[name].append(_curve(click_through(own, opened, example, answer)).terms())
    return {name: sum_by_image(images, found) for name, found in rows.items()}


def _curve(ious: Iterable[float]) -> ClickCurve:
    seen: list[float] = []
    for clicks, iou in enumerate(ious):
        seen.append(iou)
        if clicks >= max(COUNTED) and max(seen) >= max(GOALS):
            break
    return ClickCurve(tuple(seen))


def as_fields(found: Mapping[str, Sums]) -> dict[str, Any]:
    """Return the figures for JSON: with their intervals for WITHOUT and WITH, and as ``gain`` the difference that the former mask makes.

    A gain is [value, low, high], paired by image.
    """
    fields: dict[str, Any] = {name: {"figures": sums.figures(), "intervals": intervals(sums)} for name, sums in found.items()}
    if WITH in found:
        gains = differences(found[WITH], found[WITHOUT])
        fields["gain"] = {name: None if gain is None else [gain.value, gain.low, gain.high] for name, gain in gains.items()}
    return fields
