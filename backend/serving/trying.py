"""Trying phrases on a picture: the models that serve answer, and nothing is written to disk. The opened picture and the MLLM's answers stay
in the caches in memory.
"""

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
"""Longest side of the overlay on the page, in pixels."""


@dataclass(frozen=True)
class Tryout:
    """What came of a picture's phrases: the answers in order, the seconds of each stage, and an overlay as a JPEG file."""

    answers: tuple[Segmentation, ...]
    seconds: Mapping[str, float]
    overlay: bytes

    @property
    def score(self) -> float:
        """The score as a task's prediction has it: the lowest among the instances found, or among the answers if there are none."""
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
    """Answer at least one phrase about a picture, as in a project with these parameters, but without the edges that a team adopted.

    The caller must hold a place in the engine (:meth:`Engine.place`). ``deadline`` is a time of ``time.monotonic()``.

    Raises:
        DeadlineError: the deadline passed, also while the models were loading.
        NotReadyError: the models could not be loaded, or the engine has ended.
        TaskError: memory does not suffice.
        Sam4mllmError: the picture, a phrase or the strategy cannot be used, or a model failed.
    """
    with Lease(engine, interactive, deadline) as lease:
        pipeline = lease.pipeline()
        found, spent = engine.run(lambda _: answerer.find(pipeline, image, list(phrases), None, parameters), interactive, deadline)
    picture = draw(image.pixels, found)
    picture.thumbnail((LONG_SIDE, LONG_SIDE))
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=88)
    return Tryout(tuple(found), spent, packed.getvalue())
