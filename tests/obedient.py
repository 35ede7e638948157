"""Doubles for a model that never learned about points: a segmenter that obeys every point, and a grounder whose answers are replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sam4mllm.grounding.protocol import Grounder, Inquiry, Question, Replies, Scene
from sam4mllm.segmentation.protocol import Embedding, Segmenter
from sam4mllm.values import Grounding, Masks, Prompt

REACH = 0.12
"""How far a point reaches, as a share of the square root of its box's area."""

Say = Callable[[Inquiry], NDArray[np.float64]]


class ObedientSegmenter:
    """Another segmenter's mask of the box, but around each point it is what the nearest point says: it holds the positive ones, and none of
    the negative ones.
    """

    identity = "obedient"

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter

    @property
    def nbytes(self) -> int:
        return self._segmenter.nbytes

    def to(self, device: torch.device) -> None:
        self._segmenter.to(device)

    def encode(self, image: NDArray[np.uint8]) -> Embedding:
        return self._segmenter.encode(image)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        bare = [Prompt(prompt.box_px, np.zeros((0, 2), np.float32), np.zeros(0, np.int64)) for prompt in prompts]
        return [_obey(masks, prompt) for masks, prompt in zip(self._segmenter.decode(embedding, bare), prompts, strict=True)]


def _obey(masks: Masks, prompt: Prompt) -> Masks:
    mask = masks.mask(masks.best).copy()
    if len(prompt.labels) and prompt.box_px is not None:
        reach = REACH * np.sqrt(np.prod(prompt.box_px[2:] - prompt.box_px[:2]))
        left, top = np.maximum(prompt.points_px.min(0) - reach, 0).astype(int)
        right, bottom = (prompt.points_px.max(0) + reach + 1).astype(int)
        part = mask[top:bottom, left:right]
        rows, columns = np.indices(part.shape) + 0.5
        far = np.hypot(columns + left - prompt.points_px[:, 0, None, None], rows + top - prompt.points_px[:, 1, None, None])
        reached = far.min(0) < reach
        part[reached] = (prompt.labels == 1)[far.argmin(0)][reached]
    return Masks(mask[None], np.array([0.9]), np.array([0.9]))


class SayingGrounder:
    """Another grounder's boxes, but of points it is said what ``say`` says."""

    def __init__(self, grounder: Grounder, say: Say) -> None:
        self._grounder = grounder
        self._say = say
        self.asked = 0

    @property
    def identity(self) -> str:
        return self._grounder.identity

    def open(self, image: NDArray[np.uint8]) -> Scene:
        return self._grounder.open(image)

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        return self._grounder.ground(scene, phrases, question)

    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        return self._grounder.ground_after(scene, phrases, thoughts)

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        return self._grounder.confirm(scene, phrases)

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        return self._grounder.name(scene, phrases)

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        del scene, joint
        self.asked += len(inquiries)
        return [Replies(self._say(inquiry), np.ones(len(inquiry.points_px))) for inquiry in inquiries]


def says(yes: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(K,) sure answers."""
    return np.where(yes, 0.99, 0.01)


def all_yes(inquiry: Inquiry) -> NDArray[np.float64]:
    return says(np.ones(len(inquiry.points_px), np.bool_))


def all_no(inquiry: Inquiry) -> NDArray[np.float64]:
    return says(np.zeros(len(inquiry.points_px), np.bool_))


def all_but_one(inquiry: Inquiry) -> NDArray[np.float64]:
    return says(np.arange(len(inquiry.points_px)) != 7)


def noise(inquiry: Inquiry) -> NDArray[np.float64]:
    """The same for the same points."""
    return np.random.default_rng(int(abs(inquiry.points_px).sum())).uniform(0, 1, len(inquiry.points_px))


def right_at(share: float, is_on: Callable[[Inquiry], NDArray[np.bool_]]) -> Say:
    """The truth of ``is_on``, turned round for the rest of the points."""

    def say(inquiry: Inquiry) -> NDArray[np.float64]:
        wrong = np.random.default_rng(int(abs(inquiry.points_px).sum())).uniform(size=len(inquiry.points_px)) >= share
        return says(is_on(inquiry) ^ wrong)

    return say
