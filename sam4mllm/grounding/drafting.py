"""Drafts for speculative decoding: guesses of the next tokens of an answer of boxes, several of which one forward pass can check.

Greedy decoding takes a forward pass for each token. A pass over several tokens costs hardly more, and gives the model's next token after
each of them. So a draft is fed along with the newest token, and its tokens are kept as long as they equal what the model says. The answer
is therefore that of plain greedy decoding, whatever was drafted (speculative decoding: Leviathan et al., arXiv 2211.17192). Two things
are drafted:

- The tokens that the dialect's spelling fixes: of ``{"bbox_2d": [12, 40, 88, 95]}`` all but the digits.
- Where every number is one token, the numbers themselves: the next draft is what the last pass said after each token of the wrong draft
  (Jacobi decoding: Santilli et al., arXiv 2305.10427). A coordinate depends on the image more than on the other coordinates, so this draft
  is mostly right at once::

      draft                [ 333 333 666 666 ]
      said after each      [ 281 251 861 999 ]        281 replaces 333; what was said after it is the next draft
      draft                      251 861 999 ]
      said after each            251 863 999 ] end    863 replaces 861
      draft                              999 ]
      said after each                    999 ] end

:func:`~sam4mllm.grounding.decoding.write` without drafts is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sam4mllm.prompts.conversation import box_answer
from sam4mllm.prompts.dialects import Dialect

Tokens = tuple[int, ...]
COORDINATES = 4
"""How many coordinates a box has. If a box is spelled with exactly that many tokens of digits, each such token is one number."""


@dataclass(frozen=True)
class BoxSpelling:
    """How an answer of boxes is spelled: the literal tokens around its numbers.

    Args:
        before: the literal tokens before each number of a box; those before the first number begin the answer.
        between: the literal tokens from the last number of a box to the first number of the next box.
        after: the literal tokens from the last number of the last box to the end of the answer.
        numbers: a first guess of a box's four number tokens; empty where a number may take several tokens, for their count is unknown.
        is_number: whether a token consists of digits.
    """

    before: tuple[Tokens, ...]
    between: Tokens
    after: Tokens
    numbers: Tokens
    is_number: Callable[[int], bool]

    @classmethod
    def read(cls, one: Sequence[int], two: Sequence[int], is_number: Callable[[int], bool]) -> BoxSpelling | None:
        """Derive the spelling from two samples: the tokens of an answer of one box (``one``) and of that box twice (``two``).

        None if literal tokens and numbers do not alternate in the same way in both.
        """
        single = sum(map(is_number, one)) == COORDINATES
        literals, numbers = _part(one, is_number, single)
        twice, _ = _part(two, is_number, single)
        count = len(numbers)
        if not count or len(twice) != 2 * count + 1 or twice[:count] != literals[:count] or twice[-1] != literals[-1]:
            return None
        return cls(tuple(literals[:count]), twice[count], literals[-1], tuple(numbers) if single else (), is_number)

    def draft(self, said: Sequence[int], heard: Sequence[int] = ()) -> list[int]:
        """Return the tokens that are likely to follow ``said``, the answer so far.

        ``heard`` are the tokens that the last pass said at these places; where both tokens are numbers, the heard one replaces the guess.
        """
        expected = self._expected(said)
        both = zip(expected, [*heard, *expected[len(heard) :]], strict=False)
        return [other if self.is_number(token) and self.is_number(other) else token for token, other in both]

    def _expected(self, said: Sequence[int]) -> list[int]:
        count, since, in_number = 0, list[int](), False
        for token in said:
            if self.is_number(token):
                count += bool(self.numbers) or not in_number
                since, in_number = [], True
            else:
                since.append(token)
                in_number = False
        index = count % len(self.before)
        for literal in (self.before[index],) if index or not count else (self.after, self.between):
            if list(literal[: len(since)]) == since:
                rest = literal[len(since) :]
                return list(rest) if literal is self.after else [*rest, *self._from_number(index)]
        return []

    def _from_number(self, index: int) -> list[int]:
        """Return the rest of a box from its number ``index`` on and the end of the answer; nothing where numbers cannot be guessed.

        Where the tokens of the end also begin the transition to a further box, the rest of that transition and a further box follow.
        """
        if not self.numbers:
            return []
        further = self.between[: len(self.after)] == self.after
        return [*self._box(index), *self.after, *(self.between[len(self.after) :] if further else ()), *(self._box(0) if further else ())]

    def _box(self, index: int) -> list[int]:
        later = range(index + 1, len(self.numbers))
        return [self.numbers[index], *(token for place in later for token in (*self.before[place], self.numbers[place]))]


def spell(dialect: Dialect, phrase: str, encode: Callable[[str], Sequence[int]], is_number: Callable[[int], bool]) -> BoxSpelling | None:
    """Return how a dialect spells the answer to a phrase, derived from sample answers.

    None if the model answers with points, or if :meth:`BoxSpelling.read` finds no spelling.
    """
    if dialect.answers_with_points:
        return None
    low, high = (33, 66) if dialect.decimals == 2 else (333, 666)
    one, two = (encode(box_answer(dialect, phrase, [(low, low, high, high)] * count)) for count in (1, 2))
    return BoxSpelling.read(one, two, is_number)


def _part(tokens: Sequence[int], is_number: Callable[[int], bool], single: bool) -> tuple[list[Tokens], list[int]]:
    """Split tokens into the literal runs before, between and after the numbers, and the first token of each number.

    ``single``: each token of digits is a number of its own; otherwise adjacent ones belong to one number.
    """
    literals, numbers, in_number = [list[int]()], list[int](), False
    for token in tokens:
        if not is_number(token):
            literals[-1].append(token)
        elif single or not in_number:
            literals.append([])
            numbers.append(token)
        in_number = is_number(token)
    return [tuple(literal) for literal in literals], numbers
