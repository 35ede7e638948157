"""The look back: the question about an image on which the outline of a mask is drawn (:mod:`sam4mllm.outline`).

One turn, answered by the dialect's yes or no::

    user       <image> Is what the magenta line surrounds this: the left cup? Answer Yes or No.
    assistant  Yes
"""

from __future__ import annotations

from sam4mllm.prompts.dialects import DEMO, Dialect

QUESTION = "Is what the magenta line surrounds this: {phrase}? Answer {yes} or {no}."
DEMO_QUESTION = "is this {phrase}"
"""The question for the demo model, in the few words that this model knows."""


def look_back_question(dialect: Dialect, phrase: str) -> str:
    """Return the question. It is not part of a dialect, so that changing it leaves versions without a look back the same."""
    template = DEMO_QUESTION if dialect.name == DEMO.name else QUESTION
    return template.replace("{yes}", dialect.yes).replace("{no}", dialect.no).replace("{phrase}", phrase)
