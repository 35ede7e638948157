"""A thought before the answer (strategy ``reason``): the words that ask for it, and the tags around it.

One turn, as a model without thoughts of its own is asked; the template of a model with them opens the thought in the same way::

    user       <image> Where is this: what the dog may drink from. First think step by step about which object is meant, then answer.
    assistant  <think>
               A dog drinks water, which is in the bowl on the floor.
               </think>

               [281,251,863,999]

The opening tag is part of the question, so a thought always begins. The closing tag is the model's own, or put in its place where a thought
reaches its budget or breaks off ("budget forcing": s1, arXiv 2501.19393, section 3.1).
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
"""As the chat templates of Qwen3-VL-Thinking and Qwen3.5 write them around a thought."""
WORDS = (ASK, BEGIN, END)
"""All that shapes answers by ``reason`` alone: no part of a dialect, so other strategies' versions do not hang on it."""
_NO_THOUGHT = re.compile(r"(?:<think>\s*</think>|<\|channel>thought\s*<channel\|>)\s*\Z")


def reason_question(dialect: Dialect, phrase: str) -> str:
    """The question for boxes, with the words that ask for a thought before them."""
    return box_question(dialect, phrase) + ASK


def open_thought(to_answer: str) -> str:
    """What stands between the question and the thought, made of ChatMarkup's ``to_answer``.

    An empty thought, by which a template asks for an answer without one, is taken away; a thought that it opens stays as it is.
    """
    bare = _NO_THOUGHT.sub("", to_answer)
    return bare if ends_inside_thought(fold(bare)) else bare + BEGIN


def can_think(encode: Callable[[str], list[int]], decode: Callable[[Sequence[int]], str]) -> bool:
    """Whether a tokenizer can spell the tags; one that is made of whole words may lack them."""
    return all(tag.strip() in decode(encode(tag)) for tag in (BEGIN, END))


def read_thought(text: str) -> str:
    """What a thought says, of the text after its opening tag."""
    return thoughts_of(BEGIN + text)
