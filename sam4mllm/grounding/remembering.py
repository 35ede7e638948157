"""A grounder that answers a question about a scene only once: what a reviewer changes next to it costs the segmenter alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sam4mllm.grounding.protocol import Grounder, Inquiry, Question, Replies, Scene
from sam4mllm.values import Grounding

K = TypeVar("K")
V = TypeVar("V")

MAX_QUESTIONS = 64
"""Questions remembered of a scene; the longest unused is forgotten first."""


@dataclass(frozen=True, eq=False)
class RememberingScene(Scene):
    """A scene and what was asked of it."""

    scene: Scene
    groundings: OrderedDict[tuple[str, Question], Grounding] = field(default_factory=OrderedDict)
    answers: OrderedDict[tuple[str, bytes, bytes, bool], Replies] = field(default_factory=OrderedDict)
    names: OrderedDict[str, str] = field(default_factory=OrderedDict)


class RememberingGrounder:
    """Wraps a grounder; answers are the wrapped one's own. For one thread at a time, as an engine's is."""

    def __init__(self, grounder: Grounder) -> None:
        self._grounder = grounder

    @property
    def identity(self) -> str:
        return self._grounder.identity

    def open(self, image: NDArray[np.uint8]) -> RememberingScene:
        scene = self._grounder.open(image)
        return RememberingScene(scene.width, scene.height, scene.nbytes, scene)

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        assert isinstance(scene, RememberingScene)
        new = [phrase for phrase in dict.fromkeys(phrases) if (phrase, question) not in scene.groundings]
        if new:
            found = zip(new, self._grounder.ground(scene.scene, new, question), strict=True)
            answers = {(phrase, question): grounding for phrase, grounding in found}
        else:
            answers = {}
        answers |= {(phrase, question): scene.groundings[phrase, question] for phrase in phrases if phrase not in new}
        _keep(scene.groundings, answers)
        return [answers[phrase, question] for phrase in phrases]

    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        """Not remembered: it is asked in comparisons alone."""
        assert isinstance(scene, RememberingScene)
        return self._grounder.ground_after(scene.scene, phrases, thoughts)

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        """Not remembered: each mask is another scene."""
        assert isinstance(scene, RememberingScene)
        return self._grounder.confirm(scene.scene, phrases)

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        assert isinstance(scene, RememberingScene)
        answers = {phrase: scene.names[phrase] for phrase in phrases if phrase in scene.names}
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in answers]
        if new:
            answers |= dict(zip(new, self._grounder.name(scene.scene, new), strict=True))
        _keep(scene.names, answers)
        return [answers[phrase] for phrase in phrases]

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        assert isinstance(scene, RememberingScene)
        keys = [
            (inquiry.grounding.phrase, inquiry.grounding.boxes_px[inquiry.index].tobytes(), inquiry.points_px.tobytes(), joint)
            for inquiry in inquiries
        ]
        new = {key: inquiry for key, inquiry in zip(keys, inquiries, strict=True) if key not in scene.answers}
        answers = {key: scene.answers[key] for key in keys if key not in new}
        if new:
            answers |= dict(zip(new, self._grounder.ask(scene.scene, list(new.values()), joint), strict=True))
        _keep(scene.answers, answers)
        return [answers[key] for key in keys]


def _keep(memory: OrderedDict[K, V], answers: dict[K, V]) -> None:
    for key, answer in answers.items():
        memory[key] = answer
        memory.move_to_end(key)
    while len(memory) > MAX_QUESTIONS:
        memory.popitem(last=False)
