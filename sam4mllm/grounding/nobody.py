"""The grounder of ``--model none``: there is no MLLM, and the segmenter takes the phrase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sam4mllm.errors import ModelError
from sam4mllm.grounding.protocol import Grounder, Inquiry, Question, Replies, Scene
from sam4mllm.options import NO_MODEL
from sam4mllm.values import Grounding

NOBODY = "no MLLM is loaded, so that nobody can be asked; name a model, or use strategy concept"


class NoGrounder:
    """Stands in for an MLLM. Its scenes hold nothing but the image's size, and every question raises ModelError."""

    identity = NO_MODEL

    def open(self, image: NDArray[np.uint8]) -> Scene:
        return Scene(image.shape[1], image.shape[0], 0)

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        del scene, phrases, question
        raise ModelError(NOBODY)

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        del scene, inquiries, joint
        raise ModelError(NOBODY)

    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        del scene, phrases, thoughts
        raise ModelError(NOBODY)

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        del scene, phrases
        raise ModelError(NOBODY)

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        del scene, phrases
        raise ModelError(NOBODY)


def is_nobody(grounder: Grounder) -> bool:
    """Whether a grounder is a NoGrounder, or a wrapper that has taken over a NoGrounder's identity."""
    return grounder.identity == NO_MODEL
