"""Questions about several images in one call. A grounder that can answer them in fewer passes does; any other is asked image by image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sam4mllm.grounding.protocol import Grounder, Inquiry, Question, Replies, Scene
from sam4mllm.values import Grounding

T = TypeVar("T")


@runtime_checkable
class ManyScenes(Protocol):
    """A grounder that can answer questions about several images in shared passes. The answers equal those of ``ground`` and ``ask``."""

    def ground_each(self, asked: Sequence[tuple[Scene, Sequence[str]]], question: Question = "box") -> list[list[Grounding]]:
        """Boxes of each scene's phrases."""
        ...

    def ask_each(self, asked: Sequence[tuple[Scene, Sequence[Inquiry]]], joint: bool = False) -> list[list[Replies]]:
        """Ask about the points of each scene's inquiries: for each scene one Replies an inquiry, in order."""
        ...


@runtime_checkable
class OpensMany(Protocol):
    """A grounder that takes in several images at once."""

    def open_each(self, images: Sequence[NDArray[np.uint8]]) -> Sequence[Scene]:
        """A scene of each image (H, W, 3)."""
        ...


def open_each(grounder: Grounder, images: Sequence[NDArray[np.uint8]]) -> Sequence[Scene]:
    """A scene of each image, by any grounder."""
    if isinstance(grounder, OpensMany):
        return grounder.open_each(images)
    return [grounder.open(image) for image in images]


def ground_each(grounder: Grounder, asked: Sequence[tuple[Scene, Sequence[str]]], question: Question = "box") -> list[list[Grounding]]:
    """Boxes of each scene's phrases, by any grounder."""
    if isinstance(grounder, ManyScenes):
        return grounder.ground_each(asked, question)
    return [grounder.ground(scene, phrases, question) for scene, phrases in asked]


def ask_each(grounder: Grounder, asked: Sequence[tuple[Scene, Sequence[Inquiry]]], joint: bool = False) -> list[list[Replies]]:
    """Ask any grounder about the points of each scene's inquiries, in shared passes if it can: for each scene one Replies an inquiry."""
    if isinstance(grounder, ManyScenes):
        return grounder.ask_each(asked, joint)
    return [grounder.ask(scene, inquiries, joint) for scene, inquiries in asked]


def parted(items: Sequence[T], counts: Sequence[int]) -> list[list[T]]:
    """Items in lists of these lengths, in order.

    >>> parted("abc", [2, 0, 1])
    [['a', 'b'], [], ['c']]
    """
    left: Iterator[T] = iter(items)
    return [list(islice(left, count)) for count in counts]
