"""A grounder that answers repeated questions from memory, and records the time that this saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sam4mllm.grounding.protocol import Grounder, Inquiry, Question, Replies, Scene
from sam4mllm.values import Grounding

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SharedScene(Scene):
    """A scene of the wrapped grounder; ``answers`` maps each call made about it, but for those of ``confirm``, to the answer and the
    seconds that it took. None is forgotten while the scene lives.
    """

    scene: Scene
    answers: dict[tuple[object, ...], tuple[Any, float]] = field(default_factory=dict)

    def read(self) -> None:
        self.scene.read()


class SharingGrounder:
    """Wraps a grounder for a comparison of settings, and remembers its answers, a whole call at a time.

    ``saved`` adds up, by stage (``box``, ``points``), the seconds that calls answered from memory took when they were first made. Elapsed
    time plus ``saved`` is the time that a setting would take alone. The caller clears it between settings. Not safe for several threads.
    """

    def __init__(self, grounder: Grounder) -> None:
        self._grounder = grounder
        self.saved: dict[str, float] = {}

    @property
    def identity(self) -> str:
        return self._grounder.identity

    def open(self, image: NDArray[np.uint8]) -> SharedScene:
        """Open the image and have it read, so that its reading does not count as the time of the setting that asks first."""
        scene = self._grounder.open(image)
        scene.read()
        return SharedScene(scene.width, scene.height, scene.nbytes, scene)

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        assert isinstance(scene, SharedScene)
        return self._once(scene, "box", (*phrases, question), lambda: list(self._grounder.ground(scene.scene, phrases, question)))

    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        assert isinstance(scene, SharedScene)
        answer = partial(self._grounder.ground_after, scene.scene, phrases, thoughts)
        return self._once(scene, "box", ("after", *phrases, *thoughts), answer)

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        """Ask the wrapped grounder every time: each mask is shown in a scene of its own, so remembering would not help."""
        assert isinstance(scene, SharedScene)
        return self._grounder.confirm(scene.scene, phrases)

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        assert isinstance(scene, SharedScene)
        return self._once(scene, "box", ("name", *phrases), lambda: list(self._grounder.name(scene.scene, phrases)))

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        assert isinstance(scene, SharedScene)
        questions = [_question(one) for one in inquiries]
        return self._once(scene, "points", (*questions, joint), lambda: list(self._grounder.ask(scene.scene, inquiries, joint)))

    def _once(self, scene: SharedScene, stage: str, question: tuple[object, ...], answer: Callable[[], T]) -> T:
        key = (stage, *question)
        if key in scene.answers:
            known, seconds = scene.answers[key]
            self.saved[stage] = self.saved.get(stage, 0.0) + seconds
            found: T = known
            return found
        began = time.perf_counter()
        found = answer()
        scene.answers[key] = (found, time.perf_counter() - began)
        return found


def _question(one: Inquiry) -> tuple[object, ...]:
    """Return all that an answer about points depends on.

    The boxes are part of it, because the question repeats the model's earlier turn, which spells out the boxes, or the points if the model
    answers with points.
    """
    known = one.grounding
    spoken = tuple(points.inside_px.tobytes() for points in known.points)
    return known.phrase, one.index, known.boxes_px.tobytes(), spoken, one.points_px.tobytes()
