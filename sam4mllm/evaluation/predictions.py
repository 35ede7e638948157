"""The form in which an evaluation keeps and writes answers. Their masks are COCO run lengths, so that thousands of answers fit into memory
and other programs can score them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import Example
from sam4mllm.durable import replace_file
from sam4mllm.errors import EvaluationError
from sam4mllm.evaluation.metrics import Sample
from sam4mllm.masks import union
from sam4mllm.run_lengths import Rle, from_rle, to_rle
from sam4mllm.values import Instance, Segmentation


@dataclass(frozen=True, eq=False)
class StoredInstance:
    """One object found. Its fields mean what they do in :class:`~sam4mllm.values.Instance`; ``rle`` is the mask as COCO run lengths."""

    box_px: NDArray[np.float32]
    points_px: NDArray[np.float32]
    inside: NDArray[np.float64]
    labels: NDArray[np.int64]
    rle: Rle
    score: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for a phrase; without instances it is "no such object". ``size`` is the image's (height, width).

    The other fields mean what they do in :class:`~sam4mllm.values.Segmentation`; ``version`` is the version of the pipeline that answered.
    """

    phrase: str
    instances: tuple[StoredInstance, ...]
    score: float
    no_target_probability: float
    version: str
    note: str
    size: tuple[int, int]
    thought: str = ""

    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, all instances together."""
        return union(np.array([from_rle(one.rle, *self.size) for one in self.instances], np.bool_).reshape(-1, *self.size))

    def fields(self) -> dict[str, Any]:
        """As JSON: boxes and points in pixels of the upright image, masks as COCO run lengths."""
        return {
            "phrase": self.phrase,
            "score": self.score,
            "no_target_probability": self.no_target_probability,
            "version": self.version,
            "note": self.note,
            "thought": self.thought,
            "instances": [
                {
                    "box": one.box_px.tolist(),
                    "score": one.score,
                    "rle": one.rle,
                    "points": one.points_px.tolist(),
                    "inside": one.inside.tolist(),
                    "labels": one.labels.tolist(),
                }
                for one in self.instances
            ],
        }


def keep(answer: Segmentation) -> Prediction:
    """Return an answer with its masks as run lengths."""
    return Prediction(
        phrase=answer.phrase,
        instances=tuple(_keep(instance) for instance in answer.instances),
        score=answer.score,
        no_target_probability=answer.no_target_probability,
        version=answer.version,
        note=answer.note,
        size=answer.size,
        thought=answer.thought,
    )


def _keep(instance: Instance) -> StoredInstance:
    return StoredInstance(instance.box_px, instance.points_px, instance.inside, instance.labels, to_rle(instance.mask), instance.score)


def no_probabilities() -> NDArray[np.float64]:
    return np.zeros(0)


def no_truths() -> NDArray[np.bool_]:
    return np.zeros(0, np.bool_)


@dataclass(frozen=True, eq=False)
class JudgedExample:
    """One example and its results.

    ``sample`` measures the prediction. ``oracle`` measures what the segmenter draws from the true boxes and points; it is None if that was
    not asked for or the phrase has no target. The next three are about K points in the true boxes: ``inside`` (K,) is P(inside) as the
    model answers, ``on`` (K,) bool says whether a point lies on its object, and ``on_other`` (K,) bool whether it lies on another object
    that has a mask in the dataset. ``seconds`` is the phrase's equal share of the seconds that each stage took for its image; ``whole`` is
    its equal share of the elapsed seconds from opening the image to the answers.
    """

    example: Example
    sample: Sample
    score: float
    prediction: Prediction
    oracle: Sample | None = None
    inside: NDArray[np.float64] = field(default_factory=no_probabilities)
    on: NDArray[np.bool_] = field(default_factory=no_truths)
    on_other: NDArray[np.bool_] = field(default_factory=no_truths)
    seconds: dict[str, float] = field(default_factory=dict)
    whole: float = 0.0


def write_predictions(path: Path, judged: Sequence[JudgedExample]) -> None:
    """Write a JSON line for each example, with the prediction and its IoU. A file that is there is replaced; a missing folder is made.

    Raises EvaluationError if the file cannot be written.
    """
    lines = []
    for one in judged:
        example = one.example
        known = {"image": example.image, "sha256": example.sha256, "width": example.width, "height": example.height}
        known |= {"split": example.split, "source": example.source, "has_target": example.has_target, "iou": one.sample.iou}
        lines.append(json.dumps({**known, **one.prediction.fields()}, allow_nan=False) + "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, "".join(lines).encode())
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written ({error.strerror}); choose another file with --out") from error
