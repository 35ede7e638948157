"""Controls: answers about points, and thoughts, that are wrong on purpose. A method that does as well with them does not go by them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sam4mllm.grounding.protocol import Grounder, Inquiry, Question, Replies, Scene
from sam4mllm.values import Grounding

Answers = Literal["model", "uniform", "coin-flipped", "inverted", "shuffled-thoughts"]
ANSWERS: tuple[Answers, ...] = get_args(Answers)


@dataclass(frozen=True)
class ControlGrounder:
    """A grounder whose answers about points, or whose thoughts, are replaced.

    ``uniform``: P(inside) is drawn from 0 to 1; ``coin-flipped``: it is 0 or 1, each as likely; ``inverted``: 1 - P. What is drawn follows
    from phrase, box and points. The model is asked all the same, for the time it takes. ``shuffled-thoughts``: where it thinks, each
    phrase is answered after the thought about another one of the same image; a phrase that is alone there after no thought.
    """

    grounder: Grounder
    answers: Answers

    @property
    def identity(self) -> str:
        return self.grounder.identity

    def open(self, image: NDArray[np.uint8]) -> Scene:
        return self.grounder.open(image)

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        found = self.grounder.ground(scene, phrases, question)
        if self.answers != "shuffled-thoughts" or question != "reason":
            return found
        thoughts = [one.thought for one in found] if len(found) > 1 else [""] * len(found)
        return self.grounder.ground_after(scene, phrases, thoughts[1:] + thoughts[:1])

    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        return self.grounder.ground_after(scene, phrases, thoughts)

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        return self.grounder.confirm(scene, phrases)

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        return self.grounder.name(scene, phrases)

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        said = self.grounder.ask(scene, inquiries, joint)
        return [self._replaced(inquiry, one) for inquiry, one in zip(inquiries, said, strict=True)]

    def _replaced(self, inquiry: Inquiry, said: Replies) -> Replies:
        rng, count = np.random.default_rng(_seed(inquiry)), len(said.inside)
        match self.answers:
            case "model" | "shuffled-thoughts":
                return said
            case "inverted":
                return Replies(1 - said.inside, said.mass)
            case "coin-flipped":
                return Replies(rng.integers(0, 2, count).astype(np.float64), np.ones(count))
            case "uniform":
                return Replies(rng.random(count), np.ones(count))


def _seed(inquiry: Inquiry) -> int:
    shown = inquiry.grounding.boxes_px[inquiry.index].tobytes() + inquiry.points_px.tobytes()
    return zlib.crc32(inquiry.grounding.phrase.encode() + shown)
