"""What the pipeline asks of a multi-modal language model: where a phrase is, and whether points lie on what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


def _no_points() -> NDArray[np.float32]:
    return np.zeros((0, 2), np.float32)


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
class SpokenPoints:
    """Points that the model wrote itself (PPG): ``inside_px`` (P, 2) and ``outside_px`` (Q, 2) float32."""

    inside_px: NDArray[np.float32] = field(default_factory=_no_points)
    outside_px: NDArray[np.float32] = field(default_factory=_no_points)


@dataclass(frozen=True, eq=False)
class Grounding:
    """Where a phrase is in a scene.

    ``boxes_px`` (N, 4) float32 x1, y1, x2, y2; ``box_probabilities`` (N,) float64, the geometric mean probability of each box's
    tokens; ``no_target_probability``: probability that the answer begins with "none" rather than a box; ``points``: N entries if
    they were asked for, else none. No box means that the model found no such object, or wrote nothing that could be read as one.
    """

    phrase: str
    boxes_px: NDArray[np.float32]
    box_probabilities: NDArray[np.float64]
    no_target_probability: float
    points: tuple[SpokenPoints, ...] = ()
    note: str = ""
    """What a user should know of the answer: that it was cut off or could not be read. Empty if all is well."""


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

    def ground(self, scene: Scene, phrases: Sequence[str], with_points: bool = False) -> list[Grounding]:
        """Boxes of each phrase, one entry a phrase in order; with points, the model writes them too (PPG)."""
        ...

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[NDArray[np.float64]]:
        """P(inside) of each inquiry's points, (K,) each: every point on its own (packed), or all of a box in one answer (joint, as
        published).
        """
        ...
