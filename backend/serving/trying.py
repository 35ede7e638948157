"""Asking without a correction in mind: a picture and phrases that somebody tries, answered by what serves and kept nowhere."""

from __future__ import annotations

import io
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
class Tryout:
    """What came of a picture's phrases: the answers in order, the seconds of each stage, and an overlay as a JPEG file."""

    answers: tuple[Segmentation, ...]
    seconds: Mapping[str, float]
    overlay: bytes

    @property
    def score(self) -> float:
        """As a task has it: the lowest of what was found, or of the empty answers where nothing was."""
        found = [instance.score for answer in self.answers for instance in answer.instances]
        return min(found or [answer.score for answer in self.answers])


def try_out(
    engine: Engine[Leases],
    answerer: Answerer,
    image: LoadedImage,
    phrases: Sequence[str],
    parameters: Parameters,
    deadline: float,
    interactive: bool = True,
) -> Tryout:
    """Answer phrases, at least one, about a picture as a project with these parameters is answered, but for edges that a team adopted.

    The caller holds a place of the engine's. ``deadline``: of ``time.monotonic()``.

    Raises:
        Sam4mllmError: a phrase or the strategy cannot be used, there is no model, or the time is over.
    """
    with Lease(engine, interactive, deadline) as lease:
        pipeline = lease.pipeline()
        found, spent = engine.run(lambda _: answerer.find(pipeline, image, list(phrases), None, parameters), interactive, deadline)
    picture = draw(image.pixels, found)
    picture.thumbnail((LONG_SIDE, LONG_SIDE))
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=88)
    return Tryout(tuple(found), spent, packed.getvalue())
