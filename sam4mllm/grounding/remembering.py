"""A grounder that answers a question about a scene only once: what a reviewer changes next to it costs the segmenter alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sam4mllm.grounding.many import ask_each, ground_each
from sam4mllm.grounding.protocol import Grounder, Inquiry, Question, Replies, Scene
from sam4mllm.values import Grounding

K = TypeVar("K")
V = TypeVar("V")
Q = TypeVar("Q")

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
        return self.ground_each([(scene, phrases)], question)[0]

    def ground_each(self, asked: Sequence[tuple[Scene, Sequence[str]]], question: Question = "box") -> list[list[Grounding]]:
        """Boxes of each scene's phrases (:mod:`sam4mllm.grounding.many`)."""

        def answer(new: Sequence[tuple[Scene, Sequence[str]]]) -> list[list[Grounding]]:
            return ground_each(self._grounder, new, question)

        wanted = [(_own(scene), [((phrase, question), phrase) for phrase in phrases]) for scene, phrases in asked]
        return _recall([(scene.scene, scene.groundings, questions) for scene, questions in wanted], answer)

    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        """Not remembered: it is asked in comparisons alone."""
        return self._grounder.ground_after(_own(scene).scene, phrases, thoughts)

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        """Not remembered: each mask is another scene."""
        return self._grounder.confirm(_own(scene).scene, phrases)

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        own = _own(scene)

        def answer(new: Sequence[tuple[Scene, Sequence[str]]]) -> list[list[str]]:
            return [self._grounder.name(whole, some) for whole, some in new]

        return _recall([(own.scene, own.names, [(phrase, phrase) for phrase in phrases])], answer)[0]

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        return self.ask_each([(scene, inquiries)], joint)[0]

    def ask_each(self, asked: Sequence[tuple[Scene, Sequence[Inquiry]]], joint: bool = False) -> list[list[Replies]]:
        """What is said of each scene's points."""

        def answer(new: Sequence[tuple[Scene, Sequence[Inquiry]]]) -> list[list[Replies]]:
            return ask_each(self._grounder, new, joint)

        wanted = [(_own(scene), [(_key(inquiry, joint), inquiry) for inquiry in inquiries]) for scene, inquiries in asked]
        return _recall([(scene.scene, scene.answers, questions) for scene, questions in wanted], answer)


def _key(inquiry: Inquiry, joint: bool) -> tuple[str, bytes, bytes, bool]:
    told = inquiry.grounding
    return told.phrase, told.boxes_px[inquiry.index].tobytes(), inquiry.points_px.tobytes(), joint


def _recall(
    wanted: Sequence[tuple[Scene, OrderedDict[K, V], Sequence[tuple[K, Q]]]],
    answer: Callable[[Sequence[tuple[Scene, Sequence[Q]]]], list[list[V]]],
) -> list[list[V]]:
    """The answers to keyed questions about scenes, each with its memory: those not remembered are asked, in one call for all scenes."""
    new = [{key: question for key, question in questions if key not in memory} for _, memory, questions in wanted]
    asked = [(scene, list(own.values())) for (scene, *_), own in zip(wanted, new, strict=True) if own]
    said = iter(answer(asked) if asked else [])
    results = []
    for (_, memory, questions), own in zip(wanted, new, strict=True):
        answers = dict(zip(own, next(said), strict=True)) if own else {}
        answers |= {key: memory[key] for key, _ in questions if key not in own}
        _keep(memory, answers)
        results.append([answers[key] for key, _ in questions])
    return results


def _own(scene: Scene) -> RememberingScene:
    assert isinstance(scene, RememberingScene)
    return scene


def _keep(memory: OrderedDict[K, V], answers: dict[K, V]) -> None:
    for key, answer in answers.items():
        memory[key] = answer
        memory.move_to_end(key)
    while len(memory) > MAX_QUESTIONS:
        memory.popitem(last=False)
