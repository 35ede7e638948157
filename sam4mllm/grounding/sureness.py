"""How sure a model was of what it wrote."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from sam4mllm.grounding.decoding import Written
from sam4mllm.grounding.reading import ReadInstance
from sam4mllm.prompts.answer_text import fold


def box_probability(answer: Written, instance: ReadInstance, spelled: int, decode: Callable[[Sequence[int]], str]) -> float:
    """Return the geometric mean probability of the tokens that wrote a box.

    These are the last ``spelled`` tokens up to the box's end, where ``spelled`` is the number of tokens with which the dialect spells the
    box. Of an instance without numbers in the dialect's frame, all tokens from its start to its end count.
    """
    end = _tokens_of(answer, instance.end, decode)
    start = end - spelled if instance.numbers is not None else _tokens_of(answer, instance.start + 1, decode) - 1
    return float(np.exp(np.mean(answer.log_probabilities[max(0, min(start, end - 1)) : max(1, end)])))


def _tokens_of(answer: Written, length: int, decode: Callable[[Sequence[int]], str]) -> int:
    """How many tokens have written the first ``length`` characters of the folded text."""

    def written(count: int) -> int:
        return len(fold(decode(list(answer.ids[:count]))))

    return bisect.bisect_left(range(len(answer.ids)), length, key=written)
