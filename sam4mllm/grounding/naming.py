"""What a phrase asks for in a word or two, said by the MLLM: for phrases whose head noun no rule finds."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sam4mllm.grounding.decoding import Continuing, write
from sam4mllm.grounding.scene import MllmScene

NAME_QUESTION = (
    'What kind of thing is meant by "{phrase}"? Answer with its name alone, in one or two words, without saying where it is or which one.'
)
"""No part of a dialect: nothing is trained on it, so that it shapes no adapter, only the answers of the strategy ``choose``."""
NAME_TOKENS = 12
"""The longest answer: two words and what is said around them. One that is longer is no name."""
MOST_WORDS = 3
"""``an office chair``; a longer answer is a sentence."""
_ARTICLES = frozenset({"a", "an", "the", "some"})
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")


def write_names(model: Continuing, scene: MllmScene, questions: Sequence[Sequence[int]], ends: frozenset[int]) -> list[str]:
    """The names in the answers to these questions, all packed into one row below the scene; empty where an answer is no name."""
    return [read_name(answer.text) if answer.finished else "" for answer in write(model, scene, questions, ends, NAME_TOKENS)]


def read_name(text: str) -> str:
    """One to three words in lower case, without an article; empty if the text is anything else.

    >>> read_name("A tennis racket.")
    'tennis racket'
    """
    lines = text.strip().splitlines()
    said = lines[0].strip(" .,:;!\"'“”`*").lower() if len(lines) == 1 else ""
    words = said.split()
    if words and words[0] in _ARTICLES:
        words = words[1:]
    named = 0 < len(words) <= MOST_WORDS and all(_WORD.fullmatch(word) for word in words)
    return " ".join(words) if named and words[0] not in ("none", "no", "nothing", "unknown") else ""
