"""Packed training rows: all that is said about an image, and which of its tokens are answers to learn.

A row is built by the grounder that also serves, from the same pieces of text and with the same attention mask, so that training and serving
see the same input. In this example A and B are phrases; A has an object and the points p and q are asked about its box; B has no object::

    prefix │ A: question, boxes │ head of A's box │ p, Yes │ q, No │ B: question, "none"
                       learned                       learned  learned            learned

An example with a thought is asked for its boxes a second time, with the thought before the boxes; both are learned.

A segment attends to the prefix, to the segments before it in its own conversation, and to itself; no phrase attends to another phrase, and
no point to another point.

Where the dialect asks about points in close-ups, the row of the whole image asks about points only in boxes that are too large for a
close-up. ``Asking.close_share`` of the images come with a close-up of one box, drawn at random. The close-up has a row of its own, which
states the phrase and the box, but only the answers about the points are learned. A look back has a row of its own too, after the outlined
image.
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
from sam4mllm.options import PATTERN_SIZE
from sam4mllm.points import deepest, spread
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
    """A close-up of one box: ``image`` (S, S, 3) uint8, and in its pixels ``box_px`` (4,) and ``points_px`` (K, 2).

    ``inside`` (K,) tells which points lie on the object that ``phrase`` means.
    """

    image: NDArray[np.uint8]
    phrase: str
    box_px: NDArray[np.float32]
    points_px: NDArray[np.float32]
    inside: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TrainingRow:
    """A packed ``row``, and for each of its tokens in ``targets`` (T,) int64 the token to predict next, UNLEARNED where none is learned."""

    row: PackedRow
    targets: NDArray[np.int64]


class Collator:
    """Writes the rows of one model in its dialect."""

    def __init__(self, grounder: MllmGrounder, asking: Asking | None = None, targets: Targets | None = None) -> None:
        self._grounder = grounder
        self._asking = asking or Asking()
        self._targets = targets or NO_TARGETS
        self._points = grounder.dialect.answers_with_points
        self._closer = grounder.dialect.points_view == "close-up"

    def row(self, frame: Framed, examples: Sequence[Example], rng: np.random.Generator) -> TrainingRow:
        """Return the row that asks about all examples of an image; ``frame`` has the image's sides. ``Asking.order`` orders the objects."""
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
            if rng.random() < self._asking.prompt_share and not self._points:  # a model that answers with points gives a prompt already
                self._ask_prompt(builder, frame, example, order, rng)
        return TrainingRow(pack(builder.segments), np.array(builder.targets, np.int64))

    def close_up(self, image: NDArray[np.uint8], examples: Sequence[Example], rng: np.random.Generator) -> CloseUp | None:
        """Draw one of an image's boxes and return its close-up.

        None where the dialect has no close-ups, the image has no box, no close-up is drawn (``close_share``), or the box is too large.
        """
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
        """Return the row that asks about the points of a close-up; ``frame`` has the sides of the close-up."""
        builder = _Builder()
        phrase = _tidy(seen.phrase)
        said = [*self._grounder.question(phrase), *self._grounder.box_answer(frame, phrase, seen.box_px[None])]
        first = builder.add(said, (), ROOT, goes_on=True)
        self._ask_points(builder, frame, seen.box_px, seen.points_px, seen.inside, first, rng)
        return TrainingRow(pack(builder.segments), np.array(builder.targets, np.int64))

    def look(self, image: NDArray[np.uint8], examples: Sequence[Example], rng: np.random.Generator) -> OutlinedImage | None:
        """Draw a look back at a mask of an image; None where none is drawn (``look_share``), or where nothing can be asked."""
        if not self._asking.look_share or rng.random() >= self._asking.look_share:
            return None
        return draw_look(image, examples, rng)

    def look_row(self, look: OutlinedImage) -> TrainingRow:
        """Return the row of a look back, which asks of each phrase whether the outlined object is what it means."""
        builder = _Builder()
        for phrase, right in look.asked:
            builder.add(self._grounder.look_back_question(_tidy(phrase)), self._grounder.verdicts.spell([right]), ROOT)
        return TrainingRow(pack(builder.segments), np.array(builder.targets, np.int64))

    def talk_row(self, turns: Sequence[Turn]) -> TrainingRow:
        """Return the row of a conversation on anything but segmentation, turn after turn; its answers are learned."""
        builder, place, before = _Builder(), ROOT, list[int]()
        for number, turn in enumerate(turns, 1):
            said = [*before, *self._grounder.encode(turn.question + self._grounder.markup.to_answer)]
            answer = [*self._grounder.encode(turn.answer), self._grounder.end]
            place = builder.add(said, answer, place, goes_on=number < len(turns))
            before = self._grounder.next_turn
        return TrainingRow(pack(builder.segments), np.array(builder.targets, np.int64))

    def _order(self, example: Example) -> NDArray[np.int64]:
        """Indices of an example's objects in the order of its answer."""
        lefts = example.boxes_px[:, 0]
        return np.argsort(lefts, kind="stable") if self._asking.order == "left" else np.arange(len(lefts))

    def _answered(self, example: Example, order: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the boxes (N, 4) that an answer spells. For a model that answers with points, each is a point deep inside an object."""
        if not self._points:
            return example.boxes_px[order]
        return as_boxes(np.array([deepest(mask_of(example, int(index))) for index in order], np.float32))

    def _asked(self, order: NDArray[np.int64], rng: np.random.Generator) -> list[int]:
        """Return the indices of the objects about which points are asked this time, in the order of asking."""
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
        """Return points on an object (p, 2) and off it (n, 2), taken from serving's pattern because no segmenter has chosen any.

        They are the first such points of the pattern, at most ``prompt_inside`` and ``prompt_outside``.
        """
        points = spread(example.boxes_px[index], PATTERN_SIZE)
        inside = lies_on(mask_of(example, index), points)
        return points[inside][: self._asking.prompt_inside], points[~inside][: self._asking.prompt_outside]


def draw_points(box_px: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw ``count`` points (K, 2) in a box (4,): half of them from the pattern that serving asks about, as far as it has so many, and the
    others anywhere in the box.
    """
    pattern = rng.permutation(spread(box_px, PATTERN_SIZE))[: count // 2]
    anywhere = rng.uniform(box_px[:2], box_px[2:], (count - len(pattern), 2))
    return np.concatenate([pattern, anywhere]).astype(np.float32)


def shake_box(box_px: NDArray[np.float32], width: int, height: int, share: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a box (4,) with an error like a model's: each side is moved by normal noise and kept inside the image.

    ``share`` is the noise's standard deviation, as a share of the box's width or height.
    """
    sides = np.tile(box_px[2:] - box_px[:2], 2)
    return order_box((box_px + rng.normal(0, share, 4) * sides).astype(np.float32), width, height)


def _tidy(phrase: str) -> str:
    """Return the phrase with its white space as serving normalises it."""
    return " ".join(phrase.split())


@dataclass
class _Builder:
    segments: list[Segment] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    def add(self, said: Sequence[int], answer: Sequence[int], parent: int, goes_on: bool = False) -> int:
        """Append a segment of the tokens ``said`` and their ``answer``, which is learned, and return the segment's index.

        Where nothing follows the answer (not ``goes_on``), its last token is only a target: no later token needs it as input.
        """
        spoken = answer if goes_on else answer[:-1]
        self.segments.append(Segment((*said, *spoken), parent))
        learned = [UNLEARNED] * (len(said) - 1) + [*answer, UNLEARNED]
        self.targets += learned[: len(said) + len(spoken)]
        return len(self.segments) - 1
