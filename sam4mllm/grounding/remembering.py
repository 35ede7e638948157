"""A grounder that remembers its last answers about each scene, at most MAX_QUESTIONS of each kind, so that the model is seldom asked a
question twice.

When a reviewer corrects a mask, only the segmenter has to run again.
"""

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
"""Most answers that are remembered for each scene and kind of question: where a phrase is, whether points lie on an object, and what a
thing is called. The least recently used one is forgotten first.
"""


@dataclass(frozen=True, eq=False)
class RememberingScene(Scene):
    """A scene with the last answers that were given about it, by question, so that the model is seldom asked the same question twice.

    ``answers`` are about points. Their key is the phrase, the box, the points and whether they were asked jointly; the phrase's other boxes
    are no part of it.
    """

    scene: Scene
    groundings: OrderedDict[tuple[str, Question], Grounding] = field(default_factory=OrderedDict)
    answers: OrderedDict[tuple[str, bytes, bytes, bool], Replies] = field(default_factory=OrderedDict)
    names: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def read(self) -> None:
        self.scene.read()


class RememberingGrounder:
    """Wraps a grounder and gives the wrapped grounder's answers, from memory where they are remembered. ``confirm`` and ``ground_after``
    always ask the wrapped grounder. Only one thread may use it at a time.
    """

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
        """Ask the wrapped grounder every time: only comparisons call this, and a SharingGrounder remembers for them."""
        return self._grounder.ground_after(_own(scene).scene, phrases, thoughts)

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        """Ask the wrapped grounder every time: each mask is shown in a scene of its own, so remembering would not help."""
        return self._grounder.confirm(_own(scene).scene, phrases)

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        own = _own(scene)

        def answer(new: Sequence[tuple[Scene, Sequence[str]]]) -> list[list[str]]:
            return [self._grounder.name(whole, some) for whole, some in new]

        return _recall([(own.scene, own.names, [(phrase, phrase) for phrase in phrases])], answer)[0]

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        return self.ask_each([(scene, inquiries)], joint)[0]

    def ask_each(self, asked: Sequence[tuple[Scene, Sequence[Inquiry]]], joint: bool = False) -> list[list[Replies]]:
        """Ask about the points of each scene's inquiries, in one call for all scenes."""

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
    """Return the answers to questions about scenes, and remember them. The questions that are new are asked in one call of ``answer``.

    ``wanted`` holds for each scene its memory and its questions, each with the key under which its answer is remembered.
    """
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
