"""The interface between the pipeline and a multi-modal language model: the protocol Grounder and the values that it takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sam4mllm.values import Grounding

Question = Literal["box", "prompt", "reason"]
"""What the model is asked to write for a phrase; see :meth:`Grounder.ground`."""


@dataclass(frozen=True)
class Scene:
    """An image as a grounder keeps it: opaque, immutable, safe to share between threads. ``width`` and ``height`` are the original
    image's, in pixels.
    """

    width: int
    height: int
    nbytes: int
    """The bytes that a cache of scenes should count for this scene."""

    def read(self) -> None:
        """Have the model read the image now, if it would read it together with the first question. Answers are the same either way."""


@dataclass(frozen=True, eq=False)
class Replies:
    """The model's answers to K yes-or-no questions, about points or about outlines.

    ``inside`` (K,) float64 is P(yes) / (P(yes) + P(no)). ``mass`` (K,) float64 is P(yes) + P(no), the probability that the model says
    either of the two next.
    """

    inside: NDArray[np.float64]
    mass: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Inquiry:
    """A question about points: do ``points_px`` (K, 2) float32 lie on the object in the grounding's box ``index``?"""

    grounding: Grounding
    index: int
    points_px: NDArray[np.float32]


class Grounder(Protocol):
    """A multi-modal language model that keeps no image: everything about one is in its Scene.

    ``open`` raises ImageError if the model cannot take the image. The methods that take phrases raise PhraseError for one that the model
    cannot take, such as one with a control word of the model. All methods but ``identity`` may raise ModelError if the model cannot answer.
    """

    @property
    def identity(self) -> str:
        """A short hash of what determines the answers besides the adapter and the pipeline's options, such as the base model, the dialect,
        the chat template's markup, the number type and quantisation of the weights, and the most tokens of an answer. Without an MLLM it is
        a fixed text.
        """
        ...

    def open(self, image: NDArray[np.uint8]) -> Scene:
        """Take in an image (H, W, 3) RGB once, for any number of questions."""
        ...

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        """Find the boxes of each phrase; the result has one entry for each phrase, in order.

        With the ``question`` "box" the model writes boxes alone, with "prompt" points as well (PPG); with "reason" it thinks beforehand,
        if it can think; else "reason" is the same as "box". A model that answers with points writes points in place of boxes.
        """
        ...

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        """Ask whether each inquiry's points lie on its object: each point by itself (packed), or, if ``joint``, all points of a box in one
        question and answer, as published.
        """
        ...

    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        """Find boxes as with the question "reason", but with one of ``thoughts`` for each phrase in place of the model's own thought.

        Comparisons use this to measure what the model's own thoughts are worth. A model that cannot think answers without any thought."""
        ...

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        """Ask whether the outline drawn on the scene's image surrounds what each phrase means; one reply for each phrase."""
        ...

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        """Name the kind of thing that each phrase asks for, in one to three words; empty where the model's answer is not such a name, or
        where the model is not able to name things (the demo model).
        """
        ...
