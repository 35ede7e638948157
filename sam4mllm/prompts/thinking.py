"""A thought before the answer (strategy ``reason``): the words that ask for it, and the tags around it.

This turn is for a model that was not trained to think. For a model that was, its chat template opens the thought in the same way::

    user       <image> Where is this: what the dog may drink from. First think step by step about which object is meant, then answer.
    assistant  <think>
               A dog drinks water, which is in the bowl on the floor.
               </think>

               [281,251,863,999]

The opening tag is part of the prompt, so a thought always begins. The model writes the closing tag itself. Where a thought reaches its
budget of tokens, or the model ends within it, the closing tag is put in ("budget forcing": s1, arXiv 2501.19393, section 3.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sam4mllm.prompts.answer_text import ends_inside_thought, fold, thoughts_of
from sam4mllm.prompts.conversation import box_question
from sam4mllm.prompts.dialects import Dialect

ASK = " First think step by step about which object is meant, then answer."
BEGIN = "<think>\n"
END = "\n</think>\n\n"
"""BEGIN and END are what the chat templates of Qwen3-VL-Thinking and Qwen3.5 write before and after a thought."""
WORDS = (ASK, BEGIN, END)
"""The words that affect only the strategy ``reason``. They are not part of a dialect, so that changing them leaves the versions of other
strategies the same."""
_NO_THOUGHT = re.compile(r"(?:<think>\s*</think>|<\|channel>thought\s*<channel\|>)\s*\Z")


def reason_question(dialect: Dialect, phrase: str) -> str:
    """Return the question for boxes, followed by the words that ask for a thought before the answer."""
    return box_question(dialect, phrase) + ASK


def open_thought(to_answer: str) -> str:
    """Return the text between the question and the thought, made from ``ChatMarkup.to_answer``.

    Some templates write an empty thought to ask for an answer without one; it is removed. An opening tag is added, unless the template
    has already opened a thought.
    """
    bare = _NO_THOUGHT.sub("", to_answer)
    return bare if ends_inside_thought(fold(bare)) else bare + BEGIN


def can_think(encode: Callable[[str], list[int]], decode: Callable[[Sequence[int]], str]) -> bool:
    """Whether a tokenizer can spell the tags; one that is made of whole words may lack them."""
    return all(tag.strip() in decode(encode(tag)) for tag in (BEGIN, END))


def read_thought(text: str) -> str:
    """Return what a thought says. ``text`` is what the model wrote: it follows the opening tag, and may go on after the closing one."""
    return thoughts_of(BEGIN + text)
