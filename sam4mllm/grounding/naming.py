"""Ask the MLLM to name, in a word or two, the kind of thing that a phrase means: for phrases whose head noun no rule finds."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sam4mllm.grounding.decoding import Continuing, write
from sam4mllm.grounding.scene import MllmScene

NAME_QUESTION = (
    'What kind of thing is meant by "{phrase}"? Answer with its name alone, in one or two words, without saying where it is or which one.'
)
"""The question for the name. It is not part of a dialect, because no adapter is trained on it; it affects only the strategy ``choose``."""
NAME_TOKENS = 12
"""Most tokens of an answer: room for two words and a few others around them. A longer answer is not taken for a name."""
MOST_WORDS = 3
"""Most words of a name without its article, as in ``an old office chair``; a longer answer is taken for a sentence."""
_ARTICLES = frozenset({"a", "an", "the", "some"})
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")


def write_names(model: Continuing, scene: MllmScene, questions: Sequence[Sequence[int]], ends: frozenset[int]) -> list[str]:
    """Return the name in the answer to each question, or an empty text where the answer is not a name.

    ``questions`` are lists of token ids, answered together in one packed row after the scene. ``ends``: the tokens that end an answer.
    """
    return [read_name(answer.text) if answer.finished else "" for answer in write(model, scene, questions, ends, NAME_TOKENS)]


def read_name(text: str) -> str:
    """Return the name in an answer: one to three words in lower case, without an article. It is empty if the text is anything else, or
    denies that there is a thing ("none", for example).

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
