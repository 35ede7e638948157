"""Controls: the model's answers about points, or its thoughts, are replaced by wrong or random ones.

A method that measures as well with a control does not depend on what the control replaces.
"""

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
    """Wraps a grounder and replaces its answers about points, or its thoughts, as ``answers`` says.

    ``model``: nothing is replaced. ``uniform``: P(inside) is drawn uniformly from 0 to 1. ``coin-flipped``: it is 0 or 1, each as likely.
    ``inverted``: it is 1 - P(inside). Phrase, box and points seed the draws, so they are repeatable; the mass of a drawn answer is 1. The
    model is still asked, so that the time is the same. ``shuffled-thoughts``: with the question "reason", each phrase is answered after the
    thought about another phrase of the same call; a single phrase is answered after an empty thought. Replies of ``confirm`` are never
    replaced. ``identity`` is that of the wrapped grounder, whatever is replaced.
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
