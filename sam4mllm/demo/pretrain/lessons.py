"""Turns a scene into one packed row of conversations, with the targets of each position: the token to answer, and where its attention
should fall.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from sam4mllm.demo.pretrain.dense import CELL, COVERED, pictures, shares_of_cells
from sam4mllm.demo.pretrain.look_back import verdict
from sam4mllm.demo.scenes import DemoScene
from sam4mllm.demo.tokenizer import AFTER_IMAGE, BEFORE_IMAGE, COORDINATES, END, THOUGHT, THOUGHT_END, Speller, vocabulary
from sam4mllm.demo.wording import Expression, plural
from sam4mllm.geometry import to_milli
from sam4mllm.grounding.packing import ROOT, Segment
from sam4mllm.masks import lies_on
from sam4mllm.options import PATTERN_SIZE
from sam4mllm.points import spread
from sam4mllm.prompts.conversation import ChatMarkup, SpokenInstance, points_answer, points_body, points_head, prompt_answer, read_markup
from sam4mllm.prompts.dialects import DEMO
from sam4mllm.prompts.look_back import DEMO_QUESTION
from sam4mllm.prompts.thinking import reason_question
from sam4mllm.training.looks import balanced

THOUGHT_QUESTION = reason_question(DEMO, "{phrase}")
"""The question of the strategy ``reason``. The opening tag of the thought is already there before the answer begins."""
THOUGHT_SHARE = 0.4
"""How often a phrase that has steps (it is found by way of other things) is also asked about with a thought."""
POINTS_PER_BOX, POINTS_PAIR, POINTS_CLOSE, POINTS_BOTH = 8, 12, 24, 16
"""Numbers of points that are asked about: in the whole image for the box of a thing, or of one of a pair; in a close-up for its only thing,
or for each of a pair.
"""
RIVAL_SHARE, TARGET_SHARE = 0.46, 0.42
"""Of the points about one of a pair, the shares that are drawn on the other thing (the rival) and on the thing itself; the rest lie
anywhere in its box. With half of them on the rival and a third on the thing, the model still said no to nearly half of the points on the
thing after 17,000 images.
"""
JOINT_SHARE, PROMPT_SHARE = 0.1, 0.3
MAX_JOINT = 15
PROMPT_INSIDE, PROMPT_OUTSIDE = 3, 2
"""Number of points on the thing and off it in a PPG answer: the first ones of the point pattern that lie so. The paper samples groups of
points instead and keeps the group with which SAM draws best.
"""
BOX_SHAKE = 0.04


@dataclass
class Lesson:
    """The row of one image and its targets. A target belongs to a position of the row, and a position predicts the token after it.

    ``coordinates``: (position, value in thousandths of a side). ``choices``: (position, token, whether the token is a decision: a box, none
    or the end). ``verdicts``: (position, token of yes or no).

    ``spots``: (position of a verdict, index of the visual token under its point, the point's place in that token from -1 to 1, the point in
    thousandths of the image's sides, and (FINE²,) which shares of the token's small squares the thing asked about covers).

    ``looks``: (kind, position, columns that the attention should fall on), where kind is one of
    :data:`~sam4mllm.demo.pretrain.language.LOOKS` and columns count from the start of the whole row, prefix included.
    """

    visual_tokens: int
    segments: list[Segment] = field(default_factory=list)
    coordinates: list[tuple[int, float]] = field(default_factory=list)
    choices: list[tuple[int, int, bool]] = field(default_factory=list)
    verdicts: list[tuple[int, int]] = field(default_factory=list)
    spots: list[tuple[int, int, tuple[float, float], tuple[float, float], NDArray[np.float32]]] = field(default_factory=list)
    looks: list[tuple[str, int, NDArray[np.int64]]] = field(default_factory=list)
    length: int = 0

    def add(self, ids: list[int], parent: int) -> tuple[int, int]:
        """Append a segment that continues the segment with the index ``parent``, or the prefix if that is ROOT.

        Return the new segment's index and the position in the row at which it starts.
        """
        start = self.length
        self.segments.append(Segment(tuple(ids), parent))
        self.length += len(ids)
        return len(self.segments) - 1, start

    def look_at(self, kind: str, position: int, region: NDArray[np.bool_]) -> None:
        """Make the visual tokens of ``region`` (T,) the target of the attention at ``position``. If it is empty, the target is the tokens
        before the image's: attention that finds nothing needs a place to rest.
        """
        columns = np.flatnonzero(region) + len(BEFORE_IMAGE) if region.any() else np.arange(len(BEFORE_IMAGE))
        self.looks.append((kind, position, columns))

    def look_back(self, kind: str, position: int, other: int) -> None:
        """Make the row's position ``other`` the target of the attention at ``position``."""
        self.looks.append((kind, position, np.array([len(BEFORE_IMAGE) + self.visual_tokens + len(AFTER_IMAGE) + other])))


class Teacher:
    """Writes lessons in the demo's dialect."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        ids = {token: index for index, token in enumerate(vocabulary())}
        self._tokenizer = tokenizer
        self._speller = Speller(tokenizer)
        self.markup: ChatMarkup = read_markup(tokenizer)
        self.first_coordinate = ids[COORDINATES[0]]
        self.end, self.yes, self.no, self.none, self.open = ids[END], ids[DEMO.yes], ids[DEMO.no], ids[DEMO.no_target], ids["["]

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def lesson(self, scene: DemoScene, rng: np.random.Generator, with_points: bool) -> Lesson:
        """Return a lesson that asks for the boxes of each phrase of a scene, all in one row.

        With ``with_points`` it also asks about points in one box of each phrase that has any, and, some of the time, for an answer with a
        thought or for a PPG answer (boxes with points on and off each thing).
        """
        lesson, regions = _begin(scene)
        for expression in scene.expressions:
            order = sorted(expression.targets, key=lambda index: float(scene.boxes_px[index, 0]))
            asked = self._ask_boxes(lesson, scene, expression, order, regions, rng)
            if with_points and order:
                index = order[rng.integers(len(order))]
                self._ask_points(lesson, scene, asked, index, rng, POINTS_PAIR if index in (scene.pair or ()) else POINTS_PER_BOX)
            if with_points and expression.steps and rng.random() < THOUGHT_SHARE:
                self._ask_thought(lesson, scene, expression, order, regions, rng)
        if with_points and rng.random() < PROMPT_SHARE:
            self._ask_prompt(lesson, scene, scene.expressions[rng.integers(len(scene.expressions))], regions, rng)
        return lesson

    def close_up(self, scene: DemoScene, rng: np.random.Generator) -> Lesson:
        """Return a lesson about points alone. The phrase and the box are in the row as they are when serving asks, but are no targets:
        serving has the box from the whole image.
        """
        lesson, _ = _begin(scene)
        for expression in scene.expressions:
            [index] = expression.targets
            question, _ = self._question(DEMO.box_question, expression, rng)
            asked, _ = lesson.add([*question, *self.encode(prompt_answer(DEMO, [SpokenInstance(_box(scene, index))])), self.end], ROOT)
            self._ask_points(lesson, scene, asked, index, rng, POINTS_CLOSE if len(scene.expressions) == 1 else POINTS_BOTH)
        return lesson

    def look_back(self, scene: DemoScene, mask: NDArray[np.bool_], rng: np.random.Generator) -> Lesson:
        """Return a lesson that asks whether the outlined mask is what a phrase means. All phrases with the answer yes are asked, and at
        most one more than that with the answer no.
        """
        lesson, regions = _begin(scene)
        answers = [(expression, verdict(scene, mask, expression.targets)) for expression in scene.expressions]
        [shown] = shares_of_cells(mask[None])
        for expression, right in balanced(rng, answers):
            question, ends = self._question(DEMO_QUESTION, expression, rng)
            _, start = lesson.add(question, ROOT)
            last = lesson.length - 1
            self._look_at_nouns(lesson, scene, expression, ends, start, regions)
            lesson.look_at("answer", last, _region(shown))
            lesson.verdicts.append((last, self.yes if right else self.no))
        return lesson

    def _question(self, template: str, expression: Expression, rng: np.random.Generator) -> tuple[list[int], dict[str, int]]:
        before, after = template.split("{phrase}")
        ids, ends = self._speller.encode(expression.phrase, rng)
        head = self.encode(before)
        return head + ids + self.encode(after + self.markup.to_answer), {word: len(head) + end for word, end in ends.items()}

    def _look_at_nouns(
        self, lesson: Lesson, scene: DemoScene, expression: Expression, ends: dict[str, int], start: int, regions: list[NDArray[np.bool_]]
    ) -> None:
        for noun in expression.nouns:
            places = [regions[index] for index, thing in enumerate(scene.things) if thing.noun == noun]
            end = ends.get(noun, ends.get(plural(noun)))
            if end is not None:
                lesson.look_at("noun", start + end, np.any([np.zeros_like(regions[0]), *places], axis=0))

    def _ask_boxes(
        self,
        lesson: Lesson,
        scene: DemoScene,
        expression: Expression,
        order: list[int],
        regions: list[NDArray[np.bool_]],
        rng: np.random.Generator,
    ) -> int:
        asked = self._question(DEMO.box_question, expression, rng)
        spoken = prompt_answer(DEMO, [SpokenInstance(_box(scene, index)) for index in order])
        return self._add_turn(lesson, scene, expression, asked, spoken, order, regions)

    def _ask_thought(
        self,
        lesson: Lesson,
        scene: DemoScene,
        expression: Expression,
        order: list[int],
        regions: list[NDArray[np.bool_]],
        rng: np.random.Generator,
    ) -> None:
        """Add a question whose answer is a thought, the phrase's steps with a box each, and then the boxes of the phrase."""
        question, ends = self._question(THOUGHT_QUESTION, expression, rng)
        steps = [f"{phrase} {prompt_answer(DEMO, [SpokenInstance(_box(scene, index))])}" for phrase, index in expression.steps]
        spoken = prompt_answer(DEMO, [SpokenInstance(_box(scene, index)) for index in order])
        answer = f"{' '.join(steps)} {THOUGHT_END} {spoken}"
        named = [*(index for _, index in expression.steps), *order]
        self._add_turn(lesson, scene, expression, ([*question, *self.encode(THOUGHT)], ends), answer, named, regions)

    def _add_turn(
        self,
        lesson: Lesson,
        scene: DemoScene,
        expression: Expression,
        asked: tuple[list[int], dict[str, int]],
        spoken: str,
        named: list[int],
        regions: list[NDArray[np.bool_]],
    ) -> int:
        """Add a question and its answer as one segment, and return the segment's index. ``asked`` is what ``_question`` returns; ``named``
        are the things whose boxes the answer says, in order.
        """
        question, ends = asked
        answer = [*self.encode(spoken), self.end]
        segment, start = lesson.add(question + answer, ROOT)
        self._look_at_nouns(lesson, scene, expression, ends, start, regions)
        self._answer(lesson, answer, start + len(question), scene, named, regions)
        return segment

    def _answer(
        self,
        lesson: Lesson,
        answer: list[int],
        start: int,
        scene: DemoScene,
        named: list[int],
        regions: list[NDArray[np.bool_]],
    ) -> None:
        """Add the targets of an answer whose first token is at ``start``. The target of a box's number is its exact value; that of a
        point's number is the number as spelled.
        """
        height, width = scene.image.shape[:2]
        instance, within = -1, 0
        nothing = np.zeros(lesson.visual_tokens, bool)
        for offset, token in enumerate(answer):
            position = start + offset - 1
            if token == self.open:
                instance, within = instance + 1, 0
                lesson.look_at("answer", position, regions[named[instance]])
            if self.first_coordinate <= token < self.first_coordinate + len(COORDINATES):
                value = float(token - self.first_coordinate) + 0.5
                if within < 4:
                    value = float(scene.boxes_px[named[instance]][within]) / (width, height)[within % 2] * 1000
                lesson.look_at("answer", position, regions[named[instance]])
                lesson.coordinates.append((position, value))
                within += 1
            else:
                if token in (self.none, self.end):
                    lesson.look_at("answer", position, nothing)
                lesson.choices.append((position, token, token in (self.open, self.none, self.end)))

    def _ask_points(self, lesson: Lesson, scene: DemoScene, asked: int, index: int, rng: np.random.Generator, count: int) -> None:
        height, width = scene.image.shape[:2]
        x1, y1, x2, y2 = scene.boxes_px[index]
        sides = np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
        shaken = scene.boxes_px[index] + rng.normal(0, BOX_SHAKE * (rng.random() < 0.6), 4) * sides
        numbers = tuple(to_milli(shaken, width, height).tolist())
        rest = self.encode(self.markup.to_question)[1:]
        head, _ = lesson.add(rest + self.encode(points_head(DEMO, numbers)), asked)
        own = pictures(scene.masks[index])
        if rng.random() < JOINT_SHARE:
            points, inside = _draw_points(scene, index, shaken, int(np.clip(rng.normal(10, 4), 1, MAX_JOINT)), rng)
            question = self.encode(points_body(DEMO, _numbers(points, width, height)) + self.markup.to_answer)
            answer = self.encode(points_answer(DEMO, inside))
            _, start = lesson.add(question + answer, head)
            for offset, (token, point) in enumerate(zip(answer, points, strict=True)):
                position = start + len(question) + offset - 1
                lesson.verdicts.append((position, token))
                self._look_at_point(lesson, position, self._spelled(question, start, offset), point, scene, own)
        points, inside = _draw_points(scene, index, shaken, count, rng)
        for point, flag in zip(points, inside, strict=True):
            question = self.encode(points_body(DEMO, _numbers([point], width, height)) + self.markup.to_answer)
            _, start = lesson.add(question, head)
            last = lesson.length - 1
            lesson.verdicts.append((last, self.yes if flag else self.no))
            self._look_at_point(lesson, last, self._spelled(question, start, 0), point, scene, own)

    def _spelled(self, question: list[int], start: int, index: int) -> tuple[int, int]:
        """Return the two positions in the row at which the numbers of the question's point with this index stand."""
        numbers = [at for at, token in enumerate(question) if self.first_coordinate <= token < self.first_coordinate + len(COORDINATES)]
        return start + numbers[2 * index], start + numbers[2 * index + 1]

    @staticmethod
    def _look_at_point(
        lesson: Lesson,
        position: int,
        spelled: tuple[int, int],
        point: NDArray[np.float32],
        scene: DemoScene,
        own: NDArray[np.float32],
    ) -> None:
        cell, offset = _spot(point, scene)
        across, down = (point / scene.image.shape[1::-1] * 1000).tolist()
        lesson.look_back("across", position, spelled[0])
        lesson.look_back("down", position, spelled[1])
        lesson.look_at("point", position, np.arange(lesson.visual_tokens) == cell)
        lesson.spots.append((position, cell, offset, (across, down), own[cell]))

    def _ask_prompt(
        self, lesson: Lesson, scene: DemoScene, expression: Expression, regions: list[NDArray[np.bool_]], rng: np.random.Generator
    ) -> None:
        asked = self._question(DEMO.prompt_question, expression, rng)
        height, width = scene.image.shape[:2]
        order = sorted(expression.targets, key=lambda index: float(scene.boxes_px[index, 0]))
        instances = []
        for index in order:
            points = spread(scene.boxes_px[index], PATTERN_SIZE)
            inside = lies_on(scene.masks[index], points)
            instances.append(
                SpokenInstance(
                    _box(scene, index),
                    _numbers(points[inside][:PROMPT_INSIDE], width, height),
                    _numbers(points[~inside][:PROMPT_OUTSIDE], width, height),
                )
            )
        self._add_turn(lesson, scene, expression, asked, prompt_answer(DEMO, instances), order, regions)


def _begin(scene: DemoScene) -> tuple[Lesson, list[NDArray[np.bool_]]]:
    """Return an empty lesson, and for each thing of the scene its visual tokens (T,) bool."""
    cover = shares_of_cells(scene.masks)
    return Lesson(cover.shape[1]), [_region(share) for share in cover]


def _region(cover: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the visual tokens (T,) bool of a thing, from the share of each that it covers, ``cover`` (T,).

    They are those with a share of at least COVERED, or, if there are none, the one with the largest share.
    """
    region = cover >= COVERED
    return region if region.any() else np.arange(len(cover)) == cover.argmax()


def _spot(point: NDArray[np.float32], scene: DemoScene) -> tuple[int, tuple[float, float]]:
    """The visual token under a point of the image, and the point's place in it, -1 to 1."""
    columns = scene.image.shape[1] // CELL
    column, row = (int(side // CELL) for side in point)
    across, down = (float(side % CELL) / CELL * 2 - 1 for side in point)
    return row * columns + column, (across, down)


def _box(scene: DemoScene, index: int) -> tuple[int, int, int, int]:
    height, width = scene.image.shape[:2]
    x1, y1, x2, y2 = to_milli(scene.boxes_px[index], width, height).tolist()
    return x1, y1, x2, y2


def _numbers(points: NDArray[np.float32] | list[NDArray[np.float32]], width: int, height: int) -> tuple[tuple[int, int], ...]:
    return tuple((x, y) for x, y in to_milli(np.reshape(points, (-1, 2)), width, height).tolist())


def _draw_points(
    scene: DemoScene, index: int, box_px: NDArray[np.float32], count: int, rng: np.random.Generator
) -> tuple[list[NDArray[np.float32]], list[bool]]:
    height, width = scene.image.shape[:2]
    points = rng.uniform(np.minimum(box_px[:2], box_px[2:]), np.maximum(box_px[:2], box_px[2:]), (count, 2)).astype(np.float32)
    if scene.pair is not None and index in scene.pair:
        other = scene.masks[sum(scene.pair) - index] & ~scene.masks[index]
        lots = rng.random(count)
        on_rival, on_target = lots < RIVAL_SHARE, (lots >= RIVAL_SHARE) & (lots < RIVAL_SHARE + TARGET_SHARE)
        for region, drawn in ((other, on_rival), (scene.masks[index], on_target)):
            rows, columns = np.nonzero(region)
            chosen = np.flatnonzero(drawn)
            if len(rows):
                picks = rng.integers(len(rows), size=len(chosen))
                points[chosen] = np.stack([columns[picks], rows[picks]], 1) + rng.random((len(chosen), 2))
    points = np.clip(points, 0, np.array([width, height], np.float32) - 1)
    return list(points), lies_on(scene.masks[index], points).tolist()
