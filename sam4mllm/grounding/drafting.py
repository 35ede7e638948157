"""What a model is likely to write next in an answer of boxes, guessed so that one forward pass can check several tokens.

Greedy decoding takes a pass for each token. A pass over several tokens costs hardly more, and says after each of them what the model would
have written. So a draft is fed along, and what is exactly that is kept of it: the answer is that of plain greedy decoding, whatever was
drafted (speculative decoding: Leviathan et al., arXiv 2211.17192). Two things are drafted:

- What the dialect's spelling leaves no choice in: of ``{"bbox_2d": [12, 40, 88, 95]}`` all but the digits.
- Where every number is one token, the numbers themselves: what the last pass said after the wrong draft is the next draft (Jacobi decoding:
  Santilli et al., arXiv 2305.10427). Coordinates are read from the image more than from each other, so this is mostly right at once::

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
"""Of a box; if it is spelled with as many tokens of digits, each of them is a number."""


@dataclass(frozen=True)
class BoxSpelling:
    """The tokens of an answer of boxes around its numbers.

    Args:
        before: the literal tokens before each number of a box; the answer's beginning is before the first.
        between: those from the last number of a box to the first of the next.
        after: those from the last number of all to the answer's end.
        numbers: a guess of a box's numbers; empty where a number is several tokens, of which nobody knows how many.
        is_number: tells a token of digits.
    """

    before: tuple[Tokens, ...]
    between: Tokens
    after: Tokens
    numbers: Tokens
    is_number: Callable[[int], bool]

    @classmethod
    def read(cls, one: Sequence[int], two: Sequence[int], is_number: Callable[[int], bool]) -> BoxSpelling | None:
        """From the tokens of an answer of one box and of an answer of that box twice; None if they are spelled in no such way."""
        single = sum(map(is_number, one)) == COORDINATES
        literals, numbers = _part(one, is_number, single)
        twice, _ = _part(two, is_number, single)
        count = len(numbers)
        if not count or len(twice) != 2 * count + 1 or twice[:count] != literals[:count] or twice[-1] != literals[-1]:
            return None
        return cls(tuple(literals[:count]), twice[count], literals[-1], tuple(numbers) if single else (), is_number)

    def draft(self, said: Sequence[int], heard: Sequence[int] = ()) -> list[int]:
        """Tokens that may follow ``said``, the answer so far. A number among them is what was ``heard`` at its place, if that is one."""
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
        """The rest of a box from its number ``index`` on, the answer's end, and where that is also how a further box begins, that box;
        nothing where numbers cannot be guessed.
        """
        if not self.numbers:
            return []
        further = self.between[: len(self.after)] == self.after
        return [*self._box(index), *self.after, *(self.between[len(self.after) :] if further else ()), *(self._box(0) if further else ())]

    def _box(self, index: int) -> list[int]:
        later = range(index + 1, len(self.numbers))
        return [self.numbers[index], *(token for place in later for token in (*self.before[place], self.numbers[place]))]


def spell(dialect: Dialect, phrase: str, encode: Callable[[str], Sequence[int]], is_number: Callable[[int], bool]) -> BoxSpelling | None:
    """How a dialect spells the answer to a phrase, read off a sample; None of a model that answers with points."""
    if dialect.answers_with_points:
        return None
    low, high = (33, 66) if dialect.decimals == 2 else (333, 666)
    one, two = (encode(box_answer(dialect, phrase, [(low, low, high, high)] * count)) for count in (1, 2))
    return BoxSpelling.read(one, two, is_number)


def _part(tokens: Sequence[int], is_number: Callable[[int], bool], single: bool) -> tuple[list[Tokens], list[int]]:
    """The literal tokens before, between and after the numbers, and each number's first token. ``single``: each digit token is a number."""
    literals, numbers, in_number = [list[int]()], list[int](), False
    for token in tokens:
        if not is_number(token):
            literals[-1].append(token)
        elif single or not in_number:
            literals.append([])
            numbers.append(token)
        in_number = is_number(token)
    return [tuple(literal) for literal in literals], numbers
