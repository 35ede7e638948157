"""Greedy decoding of several answers at once, all below one scene: each step is one packed row with one token a phrase."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.copying import Past
from sam4mllm.grounding.packing import Segment, pack
from sam4mllm.grounding.scene import MllmScene
from sam4mllm.prompts.answer_text import end_of_thought
from sam4mllm.prompts.thinking import read_thought

TAG_TOKENS = 16
"""The last tokens of a thought, among which its closing tag is looked for; the longest tag has 13 characters."""
GAP_TOKENS = 4
"""Tokens of white space between a thought and its answer; what goes on beyond them is a model in a loop, and counts as its answer."""


@dataclass(frozen=True)
class Thinking:
    """Questions that end in an opened thought: ``budget`` tokens of it at most, then the tokens ``close`` are put in its place."""

    budget: int
    close: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Written:
    """An answer: its text, its tokens, each token's log-probability, the logits (vocabulary,) of the first, and
    whether it came to its end.

    A thought before it is no part of these; ``thought`` is what it says, ``cut_at`` the tokens after which it was cut off, 0 if it was not.
    """

    text: str
    ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    first_logits: Tensor
    finished: bool
    thought: str = ""
    cut_at: int = 0


class Continuing(Protocol):
    """What decoding asks of a model: :meth:`MllmGrounder.forward <sam4mllm.grounding.mllm.MllmGrounder.forward>` and its tokenizer."""

    checkpoint: Checkpoint

    def forward(
        self,
        scene: MllmScene,
        ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        mask: NDArray[np.bool_],
        keep: NDArray[np.int64],
        cache: Past | None = None,
    ) -> tuple[Tensor, Past]: ...


def write(
    model: Continuing,
    scene: MllmScene,
    questions: Sequence[Sequence[int]],
    ends: frozenset[int],
    max_new_tokens: int,
    thinking: Thinking | None = None,
) -> list[Written]:
    """Answer each question greedily until one of the end tokens. No question sees another; one forward pass a step serves them all.

    ``max_new_tokens`` (at least 1) are of an answer. With ``thinking`` each has a thought before it, however long the others' are.
    """
    if not questions:
        return []
    row = pack([Segment(tuple(question)) for question in questions])
    logits, cache = model.forward(scene, row.ids, row.offsets, row.mask, row.lasts)
    owner = np.repeat(np.arange(len(questions)), row.lengths)
    offsets = row.lengths.copy()
    answers = [_Answer(model.checkpoint.tokenizer.decode, ends, max_new_tokens, thinking) for _ in questions]
    active = np.arange(len(questions))
    while True:
        best = torch.log_softmax(logits, -1).max(-1)
        said = zip(active, best.indices.tolist(), best.values.tolist(), logits, strict=True)
        fed = [answers[which].take(token, chance, place) for which, token, chance, place in said]
        active = active[[token is not None for token in fed]]
        if not len(active):
            break
        owner = np.concatenate([owner, active])
        mask = owner[None] == active[:, None]
        next_ids = np.array([token for token in fed if token is not None], np.int64)
        logits, cache = model.forward(scene, next_ids, offsets[active], mask, np.arange(len(active)), cache)
        offsets[active] += 1
    return [answer.written() for answer in answers]


class _Answer:
    """One answer, token by token: perhaps a thought, then the answer proper."""

    def __init__(self, decode: Callable[[Sequence[int]], str], ends: frozenset[int], limit: int, thinking: Thinking | None) -> None:
        self._decode = decode
        self._ends = ends
        self._limit = limit
        self._thinking = thinking
        self._in_thought = thinking is not None
        self._gap = 0 if thinking is None else GAP_TOKENS
        self._thought: list[int] = []
        self._forced: deque[int] = deque()
        self._cut_at = 0
        self._ids: list[int] = []
        self._logs: list[float] = []
        self._first: Tensor | None = None
        self._finished = False

    def take(self, token: int, chance: float, logits: Tensor) -> int | None:
        """What comes after the model has said ``token``, with the log-probability ``chance``: the token to go on with, None at the end."""
        if self._forced:
            return self._forced.popleft()
        if self._in_thought and self._thinking is not None:
            return self._think(token, chance, logits, self._thinking)
        if not self._ids and self._gap and token not in self._ends and self._decode([token]).isspace():
            self._gap -= 1
            return token
        return self._say(token, chance, logits)

    def _think(self, token: int, chance: float, logits: Tensor, thinking: Thinking) -> int | None:
        if token in self._ends or len(self._thought) == thinking.budget:
            self._cut_at = 0 if token in self._ends else thinking.budget
            self._in_thought = False
            self._forced.extend(thinking.close)
            return self._forced.popleft()
        self._thought.append(token)
        tail = self._decode(self._thought[-TAG_TOKENS:])
        end = end_of_thought(tail)
        if end is None:
            return token
        self._in_thought = False
        # of some tokenizers the tag's last sign and the answer's first are one token
        return self._say(token, chance, logits) if tail[end:].strip() else token

    def _say(self, token: int, chance: float, logits: Tensor) -> int | None:
        if self._first is None:
            self._first = logits.cpu()
        self._logs.append(chance)
        self._finished = token in self._ends
        if self._finished:
            return None
        self._ids.append(token)
        return None if len(self._ids) == self._limit else token

    def written(self) -> Written:
        assert self._first is not None
        thought = read_thought(self._decode(self._thought)) if self._thought else ""
        return Written(self._decode(self._ids), tuple(self._ids), tuple(self._logs), self._first, self._finished, thought, self._cut_at)
