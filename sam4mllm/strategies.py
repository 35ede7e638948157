"""Strategies of other packages: other ways to find the objects that a phrase means.

The pipeline draws the masks of what they find and scores them, as it does for its own strategies.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from sam4mllm.errors import ExtensionError, ModelError, Sam4mllmError, first_line
from sam4mllm.extensions import find
from sam4mllm.grounding.protocol import Inquiry, Question, Replies, Scene
from sam4mllm.lockstep import AskPoints, Locate, Walk, ask_points, locate
from sam4mllm.options import STRATEGIES, Options, brought_strategies
from sam4mllm.segmentation.protocol import Embedding, Segmenter
from sam4mllm.values import Grounding

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Given:
    """An image that both models have taken in, the ``phrases`` asked about it, and the caller's ``options``.

    ``ground`` and ``ask`` put questions to the MLLM. They have to be called with ``yield from``: between two questions the server lets
    annotators go first, and a bulk run puts the questions of several images into one pass. The seconds that each stage takes are added to
    ``seconds``, by the name of the stage.
    """

    scene: Scene
    embedding: Embedding
    segmenter: Segmenter
    phrases: Sequence[str]
    options: Options
    seconds: dict[str, float]

    def ground(self, question: Question = "box") -> Walk[list[Grounding]]:
        """Ask the MLLM for the boxes of each phrase, and return one grounding for each, in order.

        With the ``question`` "box" it writes boxes alone, with "prompt" points as well (PPG); with "reason" it writes a thought beforehand.
        """
        return locate(Locate(self.scene, self.phrases, question, self.seconds))

    def ask(self, inquiries: Sequence[Inquiry]) -> Walk[list[Replies]]:
        """Ask the MLLM whether the points of each inquiry lie on the object in that inquiry's box.

        Return one entry of replies for each inquiry, in order.
        """
        return ask_points(AskPoints(self.scene, inquiries, bool(self.options.joint), self.seconds))


@runtime_checkable
class OtherStrategy(Protocol):
    """A strategy that the entry point ``sam4mllm.strategies`` of another package names."""

    @property
    def identity(self) -> str:
        """A text that changes whenever the strategy's answers to the same questions change. It goes into the hash in a version's name."""
        ...

    def find(self, given: Given) -> Walk[list[Grounding]]:
        """Find what each phrase means, and return one grounding for each phrase, in order.

        A grounding has boxes, and for each of its boxes, or for none of them, the points that join the box in the segmenter's prompt. The
        method is a generator; see :class:`Given`.
        """
        ...


def find_by(other: OtherStrategy, given: Given) -> Walk[list[Grounding]]:
    """Return what a strategy finds. Any Sam4mllmError and torch's OutOfMemoryError that it raises pass through.

    Raises ModelError if the strategy raises any other exception, or if its groundings are not one for each phrase, in order, each with a
    probability for each box and points for all its boxes or for none.
    """
    name = given.options.strategy
    try:
        found = yield from other.find(given)
        _check_found(name, found, given.phrases)
    except (Sam4mllmError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever another package raises
        raise ModelError(f"the strategy {name} failed ({type(error).__name__}: {first_line(error)}); update its package") from error
    return found


def _check_found(name: str, found: list[Grounding], phrases: Sequence[str]) -> None:
    if [one.phrase for one in found] != list(phrases):
        raise ModelError(f"the strategy {name} must find one grounding for each of {len(phrases)} phrases, in their order")
    for one in found:
        count = len(one.boxes_px)
        if one.boxes_px.shape != (count, 4) or len(one.box_probabilities) != count or len(one.points) not in (0, count):
            raise ModelError(f"the strategy {name} found {count} boxes with other numbers of probabilities or points")


def identify(name: str) -> dict[str, str]:
    """Return what a strategy adds to the fields whose hash is in a version's name: the identity of another package's strategy.

    The dict is empty for one of our own strategies and for an unknown name. Raises ExtensionError if the strategy cannot be used.
    """
    other = find_strategy(name)
    return {} if other is None else {"strategy": other.identity}


def find_strategy(name: str) -> OtherStrategy | None:
    """Return the strategy of another package; None if the name is one of ours, or nobody's. Raises ExtensionError if it cannot be used."""
    if name in STRATEGIES or name in _FOUND:  # no search through all packages, because this is called for each answer
        return _FOUND.get(name)
    extension = find("strategies", name, STRATEGIES)
    if extension is None:
        return None
    strategy = extension.load()
    if isinstance(strategy, type) or not isinstance(strategy, OtherStrategy):
        raise extension.refused("is no object of the kind sam4mllm.strategies.OtherStrategy")
    return _FOUND.setdefault(name, strategy)


def usable_strategies() -> tuple[str, ...]:
    """Return the names of the other packages' strategies that can be used. Each call logs a warning for each that cannot be used."""
    usable = []
    for name in brought_strategies():
        try:
            find_strategy(name)
        except ExtensionError as error:
            log.warning("%s", error)
        else:
            usable.append(name)
    return tuple(usable)


_FOUND: dict[str, OtherStrategy] = {}
"""The other packages' strategies that were loaded so far, by name."""
