"""Greedy decoding of several answers at once, below one scene or several: each step is one packed row, of each answer its newest token and
a draft of what comes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam4mllm.grounding.bundle import Bundle
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.copying import Past
from sam4mllm.grounding.drafting import BoxSpelling
from sam4mllm.grounding.scene import MllmScene
from sam4mllm.prompts.answer_text import end_of_thought
from sam4mllm.prompts.thinking import read_thought

TAG_TOKENS = 16
"""The last tokens of a thought, among which its closing tag is looked for; the longest tag has 13 characters."""
GAP_TOKENS = 4
"""Tokens of white space between a thought and its answer; what goes on beyond them is a model in a loop, and counts as its answer."""

REFUSED = -1
"""Owner of a drafted token that was not what the model said: it stays in the cache, where nothing sees it."""


@dataclass(frozen=True)
class Thinking:
    """Questions that end in an opened thought: ``budget`` tokens of it at most, then the tokens ``close`` are put in its place."""

    budget: int
    close: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Written:
    """An answer: its text, its tokens, each token's log-probability, those (vocabulary,) of all that it might have begun with, and whether
    it came to its end.

    A thought before it is no part of these; ``thought`` is what it says, ``cut_at`` the tokens after which it was cut off, 0 if it was not.
    """

    text: str
    ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    beginnings: Tensor
    finished: bool
    thought: str = ""
    cut_at: int = 0


class Continuing(Protocol):
    """What decoding asks of a model: :meth:`MllmGrounder.forward <sam4mllm.grounding.mllm.MllmGrounder.forward>` and its tokenizer."""

    checkpoint: Checkpoint

    def forward(
        self,
        scene: MllmScene | Bundle,
        ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        mask: NDArray[np.bool_],
        keep: NDArray[np.int64],
        cache: Past | None = None,
        of: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, Past]: ...


def write(
    model: Continuing,
    scene: MllmScene | Bundle,
    questions: Sequence[Sequence[int]],
    ends: frozenset[int],
    max_new_tokens: int,
    thinking: Thinking | None = None,
    spellings: Sequence[BoxSpelling | None] | None = None,
    of: Sequence[int] | None = None,
) -> list[Written]:
    """Answer each question greedily until one of the end tokens. No question sees another; one forward pass a step serves them all.

    ``max_new_tokens`` (at least 1) are of an answer. With ``thinking`` each has a thought before it, however long the others' are.
    ``spellings``: by question, how its answer is probably spelled, to draft it by; drafts change the number of passes, never an answer.
    ``of``: by question, which scene of a bundle it is about.
    """
    decode = model.checkpoint.tokenizer.decode
    lines = [
        _Line(_Answer(decode, ends, max_new_tokens, thinking), question, spelling)
        for question, spelling in zip(questions, spellings or [None] * len(questions), strict=True)
    ]
    owner = np.zeros(0, np.int64)
    """Which line each token of the cache belongs to."""
    cache: Past | None = None
    below = np.zeros(len(lines), np.int64) if of is None else np.array(of, np.int64)
    while active := [index for index, line in enumerate(lines) if line.fed]:
        fed = [lines[index].fed for index in active]
        lengths = [len(tokens) for tokens in fed]
        owner_now = np.repeat(active, lengths)
        within = np.concatenate([np.arange(length) for length in lengths])
        told = np.repeat([lines[index].told for index in active], lengths)
        asked = np.repeat([lines[index].asked for index in active], lengths)
        mask = np.concatenate([owner, owner_now]) == owner_now[:, None]
        mask[:, len(owner) :] &= np.tri(len(owner_now), dtype=np.bool_)
        keep = np.flatnonzero(within >= asked)
        logits, cache = model.forward(scene, np.concatenate(fed), told + within, mask, keep, cache, below[owner_now])
        best = logits.max(-1)
        tokens, chances, start = best.indices.tolist(), (best.values - logits.logsumexp(-1)).tolist(), 0
        for index in active:
            read = slice(start, start + 1 + len(lines[index].draft))
            kept = lines[index].take(tokens[read], chances[read], logits[read])
            owner_now[(owner_now == index) & (within >= kept)] = REFUSED
            start = read.stop
        owner = np.concatenate([owner, owner_now])
    return [line.answer.written() for line in lines]


def write_from(
    decode: Callable[[Sequence[int]], str],
    say: Callable[[Sequence[int]], Iterable[tuple[int, float, Callable[[], Tensor]]]],
    question: Sequence[int],
    ends: frozenset[int],
    max_new_tokens: int,
    thinking: Thinking | None = None,
) -> Written:
    """One answer as by ``write``, from a model elsewhere.

    ``say`` gives what the model says greedily after some tokens, for any stretch: each token, its log-probability, and those (vocabulary,)
    of all that it might have said. Where another token is put in the place of what was said, it is asked anew from there.
    """
    answer, told = _Answer(decode, ends, max_new_tokens, thinking), list(question)
    while True:
        for token, chance, beginnings in say(told):
            following = answer.take(token, chance, beginnings)
            if following is None:
                return answer.written()
            told.append(following)
            if following != token:
                break


class _Line:
    """A question and its answer on their way through the model.

    ``fed`` goes in next, nothing once the answer has ended: a token that was said, or at first the question, and after it ``draft``.
    ``told`` is the number of tokens that are in and count.
    """

    def __init__(self, answer: _Answer, question: Sequence[int], spelling: BoxSpelling | None) -> None:
        self.answer = answer
        self._spelling = spelling
        self.told = 0
        self.fed: list[int] = []
        self.draft: list[int] = []
        self._go_on(question, ())

    @property
    def asked(self) -> int:
        """Where in ``fed`` what is said next is read first."""
        return len(self.fed) - len(self.draft) - 1

    def take(self, said: Sequence[int], chances: Sequence[float], logits: Tensor) -> int:
        """Take what the model says after the last token before the draft, and after each token of the draft, for as long as that is what
        was drafted. How many of the tokens fed count.
        """
        kept = self.asked + 1
        for step, token in enumerate(said):
            following = self.answer.take(token, chances[step], lambda row=logits[step]: row.log_softmax(-1).cpu())  # type: ignore[misc]
            if following is None:
                self.fed = []
                break
            if step == len(self.draft) or following != self.draft[step]:
                self.told += kept
                self._go_on([following], said[step + 1 :])
                break
            kept += 1
        return kept

    def _go_on(self, tokens: Sequence[int], heard: Sequence[int]) -> None:
        """``heard``: what was said after each token of a draft that began with a wrong one."""
        self.draft = [] if self._spelling is None else self._spelling.draft(self.answer.ids, heard)
        self.fed = [*tokens, *self.draft]


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
        self.ids: list[int] = []
        self._logs: list[float] = []
        self._first: Tensor | None = None
        self._finished = False

    def take(self, token: int, chance: float, beginnings: Callable[[], Tensor]) -> int | None:
        """What comes after the model has said ``token``, with the log-probability ``chance``: the token to go on with, None at the end.

        ``beginnings`` gives the log-probabilities (vocabulary,) of all that it might have said.
        """
        if self._forced:
            return self._forced.popleft()
        if self._in_thought and self._thinking is not None:
            return self._think(token, chance, beginnings, self._thinking)
        if not self.ids and self._gap and token not in self._ends and self._decode([token]).isspace():
            self._gap -= 1
            return token
        return self._say(token, chance, beginnings)

    def _think(self, token: int, chance: float, beginnings: Callable[[], Tensor], thinking: Thinking) -> int | None:
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
        return self._say(token, chance, beginnings) if tail[end:].strip() else token

    def _say(self, token: int, chance: float, beginnings: Callable[[], Tensor]) -> int | None:
        if self._first is None:
            self._first = beginnings()
        self._logs.append(chance)
        self._finished = token in self._ends
        if self._finished:
            return None
        self.ids.append(token)
        return None if len(self.ids) == self._limit else token

    def written(self) -> Written:
        assert self._first is not None
        thought = read_thought(self._decode(self._thought)) if self._thought else ""
        return Written(self._decode(self.ids), tuple(self.ids), tuple(self._logs), self._first, self._finished, thought, self._cut_at)
