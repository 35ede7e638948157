"""Ask about points in one image or several.

Points are asked either packed, each point by itself, or jointly, all points of a box in one question and answer.

For a phrase with two boxes, a packed row holds the phrase's first turn once; below it, for each box, the head of the question about it; and
below each head a short question for each point (:mod:`sam4mllm.grounding.packing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sam4mllm.grounding.bundle import TOKENS_AT_ONCE, bundle, can_bundle, stretches
from sam4mllm.grounding.decoding import Continuing
from sam4mllm.grounding.packing import ROOT, Segment, pack
from sam4mllm.grounding.protocol import Inquiry, Replies
from sam4mllm.grounding.scene import MllmScene
from sam4mllm.grounding.verdicts import Verdicts
from sam4mllm.prompts.conversation import PointNumbers
from sam4mllm.values import Grounding

MAX_ROW = 4096
"""Most tokens of a packed row, whose mask grows with their square. Further inquiries go into another pass, with the same result; an inquiry
that has more goes by itself. It also bounds the tokens of images of equal size that are prefilled in one pass."""
NOTHING_SAID = Replies(np.zeros(0), np.zeros(0))

Ids = tuple[int, ...]


class Answering(Continuing, Protocol):
    """What asking needs of a model: the tokens of its conversation, and the logits after them."""

    verdicts: Verdicts

    def first_turn(self, scene: MllmScene, grounding: Grounding) -> list[int]: ...
    def points_head(self, scene: MllmScene, box_px: NDArray[np.float32]) -> list[int]: ...
    def point_numbers(self, scene: MllmScene, points_px: NDArray[np.float32]) -> list[PointNumbers]: ...
    def joint_question(self, points: Sequence[PointNumbers]) -> list[int]: ...


@dataclass(frozen=True, eq=False)
class _Spelled:
    """An inquiry about a scene as token ids: the phrase's first turn, the head of the question about the box, a question for each point.

    Inquiries about boxes of the same phrase share one ``turn`` object, by whose id they are recognised.
    """

    scene: MllmScene
    turn: Ids
    head: Ids
    points: tuple[PointNumbers, ...]
    questions: tuple[Ids, ...]

    @property
    def tokens(self) -> int:
        return len(self.turn) + len(self.head) + sum(map(len, self.questions))


def ask(model: Answering, asked: Sequence[tuple[MllmScene, Inquiry]], joint: bool) -> list[Replies]:
    """What is said of each inquiry's points, in order. Inquiries about several scenes share a pass where there is room."""
    spelled = _spell(model, asked)
    answer = _ask_joint if joint else _ask_packed
    answers: list[Replies] = []
    for some in _passes(spelled):
        answers += answer(model, some)
    return answers


def _spell(model: Answering, asked: Sequence[tuple[MllmScene, Inquiry]]) -> list[_Spelled]:
    turns: dict[tuple[int, int], Ids] = {}
    spelled = []
    for scene, inquiry in asked:
        told = inquiry.grounding
        turn = turns.setdefault((id(scene), id(told)), ()) or tuple(model.first_turn(scene, told))
        turns[id(scene), id(told)] = turn
        points = tuple(model.point_numbers(scene, inquiry.points_px))
        questions = tuple(tuple(model.joint_question([point])) for point in points)
        spelled.append(_Spelled(scene, turn, tuple(model.points_head(scene, told.boxes_px[inquiry.index])), points, questions))
    return spelled


def _passes(spelled: Sequence[_Spelled]) -> Iterator[Sequence[_Spelled]]:
    """Divide inquiries, in order, into those that share a pass: as many about one scene as fit into a row, and those about several scenes
    where these can be bundled and have few tokens together.
    """
    by_scene = [list(group) for _, group in groupby(spelled, lambda one: id(one.scene))]
    totals = [sum(one.tokens for one in own) for own in by_scene]
    shared = all(can_bundle(own[0].scene) for own in by_scene)
    for some in stretches(totals, TOKENS_AT_ONCE if shared else 0):
        together = [one for own in by_scene[some] for one in own]
        for part in stretches([one.tokens for one in together], MAX_ROW):
            yield together[part]


class _Row:
    """A packed row under construction: its segments, and for each the scene that it is about.

    It begins with the first turns and the heads of the inquiries; ``heads`` are the indices of the heads' segments.
    """

    def __init__(self, spelled: Sequence[_Spelled]) -> None:
        self.segments: list[Segment] = []
        self._of: list[int] = []
        self.heads: list[int] = []
        places: dict[int, int] = {}
        turns: dict[int, int] = {}
        for one in spelled:
            place = places.setdefault(id(one.scene), len(places))
            if id(one.turn) not in turns:
                turns[id(one.turn)] = self._add(one.turn, ROOT, place)
            self.heads.append(self._add(one.head, turns[id(one.turn)], place))
        self._bundle = bundle(list({id(one.scene): one.scene for one in spelled}.values()))

    def _add(self, ids: Ids, parent: int, of: int) -> int:
        self.segments.append(Segment(ids, parent))
        self._of.append(of)
        return len(self.segments) - 1

    def below(self, head: int, ids: Ids) -> int:
        """Add a segment below a head."""
        return self._add(ids, head, self._of[head])

    def read(self, model: Answering, spans: Sequence[tuple[int, int]]) -> Replies:
        """Run the row through the model and return the replies after the last tokens of some segments. Each span is a segment's index and
        how many of its last tokens are read.
        """
        row = pack(self.segments)
        keep = np.concatenate([row.lasts[segment] + 1 - count + np.arange(count) for segment, count in spans])
        of = np.repeat(np.array(self._of, np.int64), row.lengths)
        return model.verdicts.inside(model.forward(self._bundle, row.ids, row.offsets, row.mask, keep, None, of)[0])


def _ask_packed(model: Answering, spelled: Sequence[_Spelled]) -> list[Replies]:
    row = _Row(spelled)
    spans = [(row.below(head, ids), 1) for head, one in zip(row.heads, spelled, strict=True) for ids in one.questions]
    if not spans:
        return [NOTHING_SAID for _ in spelled]
    return _split(row.read(model, spans), [len(one.points) for one in spelled])


def _ask_joint(model: Answering, spelled: Sequence[_Spelled]) -> list[Replies]:
    """Ask about all points of a box in one question.

    The verdicts are first guessed by asking about each point alone. Then the whole guessed answer is fed, and the model's verdict read at
    every place in one pass. This is repeated with the new verdicts until they stay the same: they are then the answer of greedy decoding.
    Every pass settles at least one more verdict.
    """
    guesses = [said.inside > 0.5 for said in _ask_packed(model, spelled)]
    results = [NOTHING_SAID for _ in guesses]
    left = [index for index, guess in enumerate(guesses) if len(guess)]
    while left:
        read = _read_joint(model, [spelled[index] for index in left], [guesses[index] for index in left])
        still_left = []
        for index, said in zip(left, read, strict=True):
            results[index] = said
            if not np.array_equal(said.inside > 0.5, guesses[index]):
                guesses[index] = said.inside > 0.5
                still_left.append(index)
        left = still_left
    return results


def _read_joint(model: Answering, spelled: Sequence[_Spelled], guesses: Sequence[NDArray[np.bool_]]) -> list[Replies]:
    """Return the replies about each point after the guessed verdicts for the points before it, in one pass."""
    row = _Row(spelled)
    spans = []
    for head, one, guess in zip(row.heads, spelled, guesses, strict=True):
        question = (*model.joint_question(one.points), *model.verdicts.spell(guess[:-1]))
        spans.append((row.below(head, question), len(one.points)))
    return _split(row.read(model, spans), [len(one.points) for one in spelled])


def _split(said: Replies, counts: Sequence[int]) -> list[Replies]:
    """What was said of the points of several inquiries, by inquiry."""
    ends = np.cumsum(counts)[:-1]
    return [Replies(inside, mass) for inside, mass in zip(np.split(said.inside, ends), np.split(said.mass, ends), strict=True)]
