"""Models without weights: a grounder that knows what it is told, a segmenter that draws the box."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sam4mllm.grounding.protocol import Inquiry, Question, Replies, Scene
from sam4mllm.segmentation.concept import Candidates
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Grounding, Masks, Prompt, SpokenPoints


def grounding(phrase: str, boxes: Sequence[Sequence[float]], no_target: float = 0.1, points: tuple[SpokenPoints, ...] = ()) -> Grounding:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Grounding(phrase, array, np.full(len(array), 0.8), no_target, points)


def said(inside: NDArray[np.float64], mass: float = 1.0) -> Replies:
    """P(inside) of (K,) points, all with the same mass."""
    return Replies(inside, np.full(len(inside), mass))


@dataclass(frozen=True, eq=False)
class NotedScene(Scene):
    """A scene that adds "read" to ``notes`` when it is read before its first question."""

    notes: list[str] = field(default_factory=list)

    def read(self) -> None:
        self.notes.append("read")


@dataclass
class FakeGrounder:
    """Answers from ``known``; P(inside) of a point is 0.99 in the left half of its box and 0.01 in the right."""

    known: Mapping[str, Grounding]
    identity: str = "fake"
    looks: Mapping[str, float] = field(default_factory=dict)
    opened: int = 0
    asked: list[Inquiry] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, image: NDArray[np.uint8]) -> Scene:
        with self.lock:
            self.opened += 1
        return Scene(image.shape[1], image.shape[0], image.nbytes)

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        del scene, question
        return [self.known.get(phrase, grounding(phrase, [], 0.95)) for phrase in phrases]

    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        found = zip(self.ground(scene, phrases, "reason"), thoughts, strict=True)
        return [replace(one, thought=text) for one, text in found]

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        del scene
        return said(np.array([self.looks.get(phrase, 0.9) for phrase in phrases], np.float64))

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        del scene
        return ["" for _ in phrases]

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        del scene, joint
        with self.lock:
            self.asked.extend(inquiries)
        return [
            said(np.where(inquiry.points_px[:, 0] < inquiry.grounding.boxes_px[inquiry.index, ::2].mean(), 0.99, 0.01))
            for inquiry in inquiries
        ]


@dataclass
class FakeSegmenter:
    """Three candidates: nothing, the box, everything; the box is predicted best. Without a box, a square around the first point."""

    identity: str = "fake"
    prompts: list[Prompt] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    nbytes: int = 0
    devices: list[torch.device] = field(default_factory=list)

    def to(self, device: torch.device) -> None:
        self.devices.append(device)

    def encode(self, image: NDArray[np.uint8]) -> Embedding:
        return Embedding(image.shape[1], image.shape[0], image.nbytes)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Masks]:
        with self.lock:
            self.prompts.extend(prompts)
        return [self._draw(embedding, prompt) for prompt in prompts]

    def _draw(self, embedding: Embedding, prompt: Prompt) -> Masks:
        masks = np.zeros((3, embedding.height, embedding.width), np.bool_)
        box = prompt.box_px if prompt.box_px is not None else np.concatenate([prompt.points_px[0] - 5, prompt.points_px[0] + 5])
        x1, y1, x2, y2 = np.maximum(np.rint(box), 0).astype(int)
        masks[1, y1:y2, x1:x2] = True
        masks[2] = True
        return Masks(masks, np.array([0.1, 0.9, 0.3]), np.array([0.5, 0.95, 0.9]))


def candidates(boxes: Sequence[Sequence[float]], scores: Sequence[float] = (), presence: float = 0.9) -> Candidates:
    """Candidates in an image of 100 x 200 whose masks fill their boxes; all of score 0.8 if none are given."""
    masks = np.zeros((len(boxes), 100, 200), np.bool_)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    return Candidates(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores or [0.8] * len(boxes), np.float64), masks, presence)


@dataclass
class FakeConceptSegmenter(FakeSegmenter):
    """Finds what it is told, of each phrase what has the threshold; draws prompts as FakeSegmenter does."""

    known: Mapping[str, Candidates] = field(default_factory=dict)
    sought: list[tuple[str, ...]] = field(default_factory=list)
    encoded: int = 0

    def encode(self, image: NDArray[np.uint8]) -> Embedding:
        self.encoded += 1
        return super().encode(image)

    def find(self, embedding: Embedding, phrases: Sequence[str], threshold: float) -> list[Candidates]:
        self.sought.append(tuple(phrases))
        shape = (0, embedding.height, embedding.width)
        none = Candidates(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(shape, np.bool_), 0.05)
        found = [self.known.get(phrase, none) for phrase in phrases]
        assert all(one.masks.shape[1:] == (embedding.height, embedding.width) for one in found)
        keep = [one.scores >= threshold for one in found]
        return [
            Candidates(one.boxes_px[k], one.scores[k], one.masks[k], one.presence, one.note) for one, k in zip(found, keep, strict=True)
        ]
