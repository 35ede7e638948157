"""Greedy decoding of several answers at once, about one scene or several.

Each step is one forward pass over a packed row, which holds for each answer its newest token and a draft of the next ones.
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
"""In how many of a thought's last tokens its closing tag is looked for. The longest tag has 13 characters, so it is at most 13 tokens."""
GAP_TOKENS = 4
"""Most tokens of white space that are skipped between a thought and its answer. Further ones count as the answer, so that a model that
writes white space without end is stopped by the limit on answers."""

REFUSED = -1
"""Marks, in place of the index of its line, a drafted token that the model did not say. It stays in the cache, but no token sees it."""


@dataclass(frozen=True)
class Thinking:
    """How a thought is decoded before an answer. The question ends with the opening tag; after ``budget`` tokens, or where the model ends
    within the thought, the tokens ``close`` are fed in place of what the model says.
    """

    budget: int
    close: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Written:
    """A decoded answer: its text, its token ids and their log-probabilities. If the answer is ``finished``, the log-probability of its end
    token follows those of ``ids``, which do not include that token.

    ``beginnings`` (vocabulary,) are the log-probabilities of all tokens at the answer's first place; ``finished`` says whether the model
    ended the answer itself. A thought before the answer is not part of these fields: ``thought`` is its text, and ``cut_at`` the number of
    tokens after which it was cut off, 0 if it was not.
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
    """Answer each question greedily until one of the tokens ``ends``. No question sees another; each step is one forward pass for all.

    ``max_new_tokens`` (at least 1) bounds the answer without its thought. With ``thinking`` each answer comes after a thought, and none
    waits for the thoughts of the others. ``spellings`` holds for each question how its answer is probably spelled, from which drafts are
    made; drafts change the number of passes, never an answer. ``of`` holds for each question the index of its scene in a bundle; None means
    that all are about the first.
    """
    decode = model.checkpoint.tokenizer.decode
    lines = [
        _Line(_Answer(decode, ends, max_new_tokens, thinking), question, spelling)
        for question, spelling in zip(questions, spellings or [None] * len(questions), strict=True)
    ]
    owner = np.zeros(0, np.int64)
    """Which line each token of the cache after the prefix belongs to; REFUSED for a refused one."""
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
    """Decode one answer as ``write`` does, from a model that runs in another process.

    ``say`` takes token ids and yields the model's greedy continuation, as many tokens as it likes: each token, its log-probability, and a
    function that returns the log-probabilities (vocabulary,) of all tokens at that place. Where another token is put in place of the one
    that the model said, ``say`` is called again from there.
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
    """A question and its answer while they are decoded.

    ``fed`` are the tokens that go into the next pass: the newest token of the answer (at first the whole question) and after it ``draft``;
    it is empty once the answer has ended. ``told`` is how many tokens of this line are in the cache, refused drafts not counted.
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
        """The index in ``fed`` of the last token before the draft, the first one after which the model's next token is read."""
        return len(self.fed) - len(self.draft) - 1

    def take(self, said: Sequence[int], chances: Sequence[float], logits: Tensor) -> int:
        """Take what the model said after the last token before the draft and after each token of the draft, up to the first token that
        differs from the draft. Return how many of the fed tokens are valid; the rest of the draft is refused.

        ``said``, ``chances`` and ``logits`` hold the token, its log-probability and the logits (vocabulary,) at each of these places.
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
        """Set what is fed next: ``tokens``, and a new draft.

        ``heard`` is what the model said after each token of the refused draft, whose first token was wrong.
        """
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
        """Take the ``token`` that the model said, with its log-probability ``chance``, and return the token to feed next; None at the end.

        The returned token is another one where a thought is closed by force. ``beginnings`` returns the log-probabilities (vocabulary,) of
        all tokens at this place.
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
        # some tokenizers have a token that holds the tag's last character and the answer's first; it then begins the answer
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
