"""From what was found for a phrase to its answer, with the time of each stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sam4mllm.confidence import Calibration, score_empty
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Grounding, Instance, Segmentation

STAGES = ("image", "box", "points", "segmenter")
"""The stages whose time is measured: ``image``, the MLLM takes in the image; ``box``, it finds boxes; ``points``, it answers about points
and outlines; ``segmenter``, the segmenter encodes the image and draws masks. Where the MLLM reads a new image in one pass with its first
question, that pass belongs to the question's stage."""


def answer_of(
    grounding: Grounding,
    found: list[Instance],
    embedding: Embedding,
    version: str,
    seconds: dict[str, float],
    calibration: Calibration | None,
) -> Segmentation:
    """Return the answer to a phrase: the instances that were ``found``, or why there is none. ``seconds`` has the time of each stage.

    The score is the least of the instances' scores, or that of the empty answer; an answer that is empty because of a failure has 0.
    """
    note = grounding.note or ("" if found or not len(grounding.boxes_px) else "the segmenter drew nothing in the box")
    empty = 0.0 if note else score_empty(grounding.no_target_probability, calibration)
    return Segmentation(
        phrase=grounding.phrase,
        instances=tuple(found),
        score=min((instance.score for instance in found), default=empty),
        note=note,
        no_target_probability=grounding.no_target_probability,
        version=version,
        calibrated=calibration is not None,
        thought=grounding.thought,
        size=(embedding.height, embedding.width),
        timings={stage: seconds.get(stage, 0.0) for stage in STAGES},
    )


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time that the ``with`` block takes to ``seconds`` under ``stage``; nothing is added if the block raises."""
    began = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began
