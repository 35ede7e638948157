"""How long a phrase takes, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from sam4mllm.demo.scenes import make_scene
from sam4mllm.pipeline import Pipeline

SEED = 990_001
"""Scenes of this seed are for timing only."""

Timed = tuple[NDArray[np.uint8], str]


def time_phrases(pipeline: Pipeline, images: int, track: Callable[[Iterable[Timed], int], Iterable[Timed]]) -> dict[str, float]:
    """Return the median seconds of ``segment`` with one phrase on a new image, in total (``phrase``) and by stage.

    ``images`` demo scenes, at least one, are timed, after one call on another scene to warm up. ``track`` wraps the loop, for a progress
    bar. Errors of ``segment`` pass through.
    """
    scenes = [make_scene((SEED, index)) for index in range(images + 1)]
    jobs = [(scene.image, scene.expressions[0].phrase) for scene in scenes]
    pipeline.segment(jobs[0][0], [jobs[0][1]])
    rows: list[dict[str, float]] = []
    for image, phrase in track(jobs[1:], images):
        began = time.perf_counter()
        [answer] = pipeline.segment(image, [phrase])
        rows.append({"phrase": time.perf_counter() - began, **answer.timings})
    return {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
