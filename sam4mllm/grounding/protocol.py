"""What the pipeline asks of a multi-modal language model: where a phrase is, and whether points lie on what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sam4mllm.values import Grounding

Question = Literal["box", "prompt", "reason"]
"""What is asked of a phrase."""


@dataclass(frozen=True)
class Scene:
    """An image as a grounder keeps it: opaque, immutable, safe to share between threads. ``width`` and ``height`` are the original
    image's, in pixels.
    """

    width: int
    height: int
    nbytes: int
    """What a cache should count for it."""


@dataclass(frozen=True, eq=False)
class Replies:
    """What was said of K points, or of K outlines: ``inside`` (K,) float64 is P(yes) / (P(yes) + P(no)), and ``mass`` (K,) float64 P(yes) +
    P(no), the share of all that the model might have said next.
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
    """A multi-modal language model that keeps no image: everything about one is in its Scene."""

    @property
    def identity(self) -> str:
        """What shapes its answers (model, adapter, dialect), as a short hash."""
        ...

    def open(self, image: NDArray[np.uint8]) -> Scene:
        """Take in an image (H, W, 3) RGB once, for any number of questions."""
        ...

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        """Boxes of each phrase, one entry a phrase in order.

        ``question``: "box" for boxes alone; "prompt", the model writes points, too (PPG); "reason", it thinks before it answers.
        """
        ...

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        """What is said of each inquiry's points: every point on its own (packed), or all of a box in one answer (joint, as published)."""
        ...

    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        """Boxes as by "reason", but after a thought that is given to each phrase: what the model's own thoughts are worth is measured by
        other ones. A model that cannot think answers without."""
        ...

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        """Whether what is outlined in the scene's image is what each phrase means: one reply a phrase."""
        ...

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        """The kind of thing that each phrase asks for, in one to three words; empty where the model does not say it in such."""
        ...
