"""Asking without a correction in mind: a picture and phrases that somebody tries, answered by what serves and kept nowhere."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backend.images.store import LoadedImage
from backend.label_studio.parameters import Parameters
from backend.serving.answerer import Answerer
from backend.serving.engine import Engine
from backend.serving.leases import Lease, Leases
from sam4mllm.overlay import draw
from sam4mllm.values import Segmentation

LONG_SIDE = 1200
"""Of the picture on the page, in pixels."""


@dataclass(frozen=True)
class Tried:
    """What came of a picture's phrases: the answers in order, the seconds of each stage, and an overlay as a JPEG file."""

    answers: tuple[Segmentation, ...]
    seconds: Mapping[str, float]
    overlay: bytes

    @property
    def score(self) -> float:
        """The lowest of the phrases', as a task has it."""
        return min(answer.score for answer in self.answers)


def try_out(
    engine: Engine[Leases], answerer: Answerer, image: LoadedImage, phrases: Sequence[str], parameters: Parameters, seconds: float
) -> Tried:
    """Answer phrases, at least one, about a picture as a project with these parameters is answered.

    Raises:
        Sam4mllmError: a phrase or the strategy cannot be used, there is no model, or ``seconds`` are over.
    """
    deadline = time.monotonic() + seconds
    with engine.place(True), Lease(engine, True, deadline) as lease:
        pipeline = lease.pipeline()
        found, spent = engine.run(lambda _: answerer.find(pipeline, image, list(phrases), None, parameters), True, deadline)
    picture = draw(image.pixels, found)
    picture.thumbnail((LONG_SIDE, LONG_SIDE))
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=88)
    return Tried(tuple(found), spent, packed.getvalue())
