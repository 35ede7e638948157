"""From an image's examples to one packed row: what is said about it, and which tokens are answers to learn.

The row is built by the grounder that serves, from the same pieces of text and with the same mask, so training and serving see the same
thing. Of an image with the phrases A and B, where A has a target and is asked about the points p and q::

    prefix │ A: question, boxes │ head of A's box │ p, Yes │ q, No │ B: question, "none"
                       learned                       learned  learned            learned

An example with a thought is asked for its boxes in a second way, with the thought before the answer, which is learned with it.

Each segment sees the prefix, those above it in its conversation, and itself; no phrase and no point sees another.

Where the dialect asks about points in close-ups, the row of the whole image asks only about boxes that are too large for one; the points of
another box have a row of their own, with the close-up before it, in which the phrase and its box are said but not learned. So has a look
back, with the outlined image before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sam4mllm.closeup import window_around
from sam4mllm.data.conversations import Turn
from sam4mllm.data.examples import Example
from sam4mllm.geometry import order_box
from sam4mllm.grounding.frames import Framed
from sam4mllm.grounding.marks import as_boxes
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.packing import ROOT, PackedRow, Segment, pack
from sam4mllm.masks import lies_on
from sam4mllm.points import PATTERN_SIZE, deepest, spread
from sam4mllm.prompts.conversation import SpokenInstance, prompt_answer
from sam4mllm.training.asking import Asking
from sam4mllm.training.disks import draw_disks
from sam4mllm.training.looks import OutlinedImage, draw_look, mask_of
from sam4mllm.training.targets import NO_TARGETS, Targets

__all__ = ["UNLEARNED", "Asking", "CloseUp", "Collator", "TrainingRow", "draw_points", "shake_box"]

UNLEARNED = -100
"""The target of tokens that are not learned; torch's cross-entropy passes over it."""


@dataclass(frozen=True, eq=False)
class CloseUp:
    """A box of an image seen closer: ``image`` (S, S, 3) uint8, and in its pixels ``box_px`` (4,) and ``points_px`` (K, 2), of which those
    of ``inside`` (K,) lie on what the phrase means there.
    """

    image: NDArray[np.uint8]
    phrase: str
    box_px: NDArray[np.float32]
    points_px: NDArray[np.float32]
    inside: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TrainingRow:
    """``row`` as packed, ``targets`` (T,) int64: the token that each position should say next, UNLEARNED where it is not asked."""

    row: PackedRow
    targets: NDArray[np.int64]


class Collator:
    """Writes the rows of one model in its dialect."""

    def __init__(self, grounder: MllmGrounder, asking: Asking | None = None, targets: Targets | None = None) -> None:
        self._grounder = grounder
        self._asking = asking or Asking()
        self._targets = targets or NO_TARGETS
        self._next_turn = grounder.encode(grounder.markup.to_question)[1:]  # its first token ends the answer
        self._points = grounder.dialect.answers_with_points
        self._closer = grounder.dialect.points_view == "close-up"

    def row(self, frame: Framed, examples: Sequence[Example], rng: np.random.Generator) -> TrainingRow:
        """All examples of an image; ``frame`` has its sides. Several objects are spoken of in the order that is asked for."""
        builder = _Builder()
        for example in examples:
            order = self._order(example)
            first = self._ask_boxes(builder, frame, example, order)
            if example.thought and self._grounder.thinks:
                self._ask_thought(builder, frame, example, order)
            for index in self._asked(order, rng):
                box_px = shake_box(example.boxes_px[index], frame.width, frame.height, self._asking.shake, rng)
                if not self._closer or window_around(box_px, frame.width, frame.height) is None:
                    points = self._draw(box_px, self._asking.count(rng), rng)
                    self._ask_points(builder, frame, box_px, points, lies_on(mask_of(example, index), points), first, rng)
            if rng.random() < self._asking.prompt_share and not self._points:  # whose answer is a prompt already
                self._ask_prompt(builder, frame, example, order, rng)
        return TrainingRow(pack(builder.segments), np.array(builder.targets, np.int64))

    def close_up(self, image: NDArray[np.uint8], examples: Sequence[Example], rng: np.random.Generator) -> CloseUp | None:
        """One of an image's boxes seen closer; None where the dialect has no close-ups, none is due, or the box drawn is too large."""
        found = [(example, index) for example in examples for index in range(len(example.instances))]
        if not self._closer or not found or rng.random() >= self._asking.close_share:
            return None
        example, index = found[rng.integers(len(found))]
        height, width = image.shape[:2]
        box_px = shake_box(example.boxes_px[index], width, height, self._asking.shake, rng)
        window = window_around(box_px, width, height)
        if window is None:
            return None
        points = self._draw(box_px, self._asking.close_points, rng)
        inside = lies_on(mask_of(example, index), points)
        return CloseUp(window.cut(image), example.phrase, window.inner(box_px), window.inner(points), inside)

    def close_row(self, frame: Framed, seen: CloseUp, rng: np.random.Generator) -> TrainingRow:
        """The points of a close-up; ``frame`` has its sides."""
        builder = _Builder()
        phrase = _tidy(seen.phrase)
        said = [*self._grounder.question(phrase), *self._grounder.box_answer(frame, phrase, seen.box_px[None])]
        first = builder.add(said, (), ROOT, goes_on=True)
        self._ask_points(builder, frame, seen.box_px, seen.points_px, seen.inside, first, rng)
        return TrainingRow(pack(builder.segments), np.array(builder.targets, np.int64))

    def look(self, image: NDArray[np.uint8], examples: Sequence[Example], rng: np.random.Generator) -> OutlinedImage | None:
        """A look back at a mask of an image; None where none is due."""
        if not self._asking.look_share or rng.random() >= self._asking.look_share:
            return None
        return draw_look(image, examples, rng)

    def look_row(self, look: OutlinedImage) -> TrainingRow:
        """Whether what is outlined is what each phrase means."""
        builder = _Builder()
        for phrase, right in look.asked:
            builder.add(self._grounder.look_back_question(_tidy(phrase)), self._grounder.verdicts.spell([right]), ROOT)
        return TrainingRow(pack(builder.segments), np.array(builder.targets, np.int64))

    def talk_row(self, turns: Sequence[Turn]) -> TrainingRow:
        """A conversation about something else, each question after the answer before it; the answers are learned."""
        builder, place, before = _Builder(), ROOT, list[int]()
        for number, turn in enumerate(turns, 1):
            said = [*before, *self._grounder.encode(turn.question + self._grounder.markup.to_answer)]
            answer = [*self._grounder.encode(turn.answer), self._grounder.end]
            place = builder.add(said, answer, place, goes_on=number < len(turns))
            before = self._next_turn
        return TrainingRow(pack(builder.segments), np.array(builder.targets, np.int64))

    def _order(self, example: Example) -> NDArray[np.int64]:
        """Indices of an example's objects in the order of its answer."""
        lefts = example.boxes_px[:, 0]
        return np.argsort(lefts, kind="stable") if self._asking.order == "left" else np.arange(len(lefts))

    def _answered(self, example: Example, order: NDArray[np.int64]) -> NDArray[np.float32]:
        """The boxes (N, 4) that an answer spells; of a model that points, a point deep in each object."""
        if not self._points:
            return example.boxes_px[order]
        return as_boxes(np.array([deepest(mask_of(example, int(index))) for index in order], np.float32))

    def _asked(self, order: NDArray[np.int64], rng: np.random.Generator) -> list[int]:
        """Of which objects points are asked this time, and in what order."""
        if self._asking.every_box:
            return [int(index) for index in rng.permutation(order)]
        return [int(rng.choice(order))] if len(order) else []

    def _draw(self, box_px: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        return (draw_points if self._asking.spread == "serving" else draw_disks)(box_px, count, rng)

    def _ask_boxes(self, builder: _Builder, frame: Framed, example: Example, order: NDArray[np.int64]) -> int:
        phrase = _tidy(example.phrase)
        answer = self._grounder.box_answer(frame, phrase, self._answered(example, order))
        return builder.add(self._grounder.question(phrase), answer, ROOT, goes_on=True)

    def _ask_thought(self, builder: _Builder, frame: Framed, example: Example, order: NDArray[np.int64]) -> None:
        phrase = _tidy(example.phrase)
        answer = self._grounder.box_answer(frame, phrase, self._answered(example, order))
        builder.add(self._grounder.question(phrase, "reason"), [*self._grounder.thought(example.thought), *answer], ROOT)

    def _ask_points(
        self,
        builder: _Builder,
        frame: Framed,
        box_px: NDArray[np.float32],
        points_px: NDArray[np.float32],
        inside: NDArray[np.bool_],
        first: int,
        rng: np.random.Generator,
    ) -> None:
        grounder = self._grounder
        head = builder.add(grounder.points_head(frame, box_px), (), first, goes_on=True)
        numbers = grounder.point_numbers(frame, points_px)
        if rng.random() < self._asking.joint_share:
            builder.add(grounder.joint_question(numbers), grounder.verdicts.spell(inside), head)
        else:
            for number, flag in zip(numbers, inside, strict=True):
                builder.add(grounder.joint_question([number]), grounder.verdicts.spell([flag]), head)

    def _ask_prompt(self, builder: _Builder, frame: Framed, example: Example, order: NDArray[np.int64], rng: np.random.Generator) -> None:
        spoken = []
        for index, box in zip(order, self._grounder.box_numbers(frame, example.boxes_px[order]), strict=True):
            inside, outside = self._targets.draw(example, int(index), rng) or self._of_pattern(example, int(index))
            yes, no = (self._grounder.point_numbers(frame, points) for points in (inside, outside))
            spoken.append(SpokenInstance(box, tuple(yes), tuple(no)))
        answer = self._grounder.encode(prompt_answer(self._grounder.dialect, spoken))
        builder.add(self._grounder.question(_tidy(example.phrase), "prompt"), [*answer, self._grounder.end], ROOT)

    def _of_pattern(self, example: Example, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Where no segmenter has chosen points on and off an object: the first of the pattern that lie so."""
        points = spread(example.boxes_px[index], PATTERN_SIZE)
        inside = lies_on(mask_of(example, index), points)
        return points[inside][: self._asking.prompt_inside], points[~inside][: self._asking.prompt_outside]


def draw_points(box_px: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """``count`` points (K, 2) of a box (4,), half of them from the pattern that serving asks about, the others anywhere in it."""
    pattern = rng.permutation(spread(box_px, PATTERN_SIZE))[: count // 2]
    anywhere = rng.uniform(box_px[:2], box_px[2:], (count - len(pattern), 2))
    return np.concatenate([pattern, anywhere]).astype(np.float32)


def shake_box(box_px: NDArray[np.float32], width: int, height: int, share: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A box (4,) that is off as a model's is: its sides moved by normal shares of its size, and inside the image."""
    sides = np.tile(box_px[2:] - box_px[:2], 2)
    return order_box((box_px + rng.normal(0, share, 4) * sides).astype(np.float32), width, height)


def _tidy(phrase: str) -> str:
    """White space as serving has it."""
    return " ".join(phrase.split())


@dataclass
class _Builder:
    segments: list[Segment] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    def add(self, said: Sequence[int], answer: Sequence[int], parent: int, goes_on: bool = False) -> int:
        """A segment that says something and learns its answer, whose last token is left out where nothing follows it."""
        spoken = answer if goes_on else answer[:-1]
        self.segments.append(Segment((*said, *spoken), parent))
        learned = [UNLEARNED] * (len(said) - 1) + [*answer, UNLEARNED]
        self.targets += learned[: len(said) + len(spoken)]
        return len(self.segments) - 1
