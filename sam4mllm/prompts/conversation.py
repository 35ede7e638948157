"""The turns of the strategies ``box``, ``pqpp`` and ``ppg`` as text. Training and serving both render their prompts here.

The strategy ``box`` has one turn, with which ``pqpp`` begins as well::

    user       <image> Where is this: the left cup
    assistant  [281,251,863,999]

``pqpp`` goes on with one turn for each box, which asks about all its points at once, or with one copy of that turn for each point::

    user       For each point, say Yes if it lies on the object in [281,251,863,999]: (300,400) (500,600)
    assistant  YesNo

``ppg`` has one turn, in which the model itself writes the segmenter's prompt::

    user       <image> Mark this: the left cup
    assistant  [281,251,863,999] inside (300,400) (420,500) outside (290,260)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError as TemplateFault

from sam4mllm.errors import TemplateError
from sam4mllm.prompts.dialects import Dialect
from sam4mllm.prompts.pointing import pointed_answer

BoxNumbers = tuple[int, int, int, int]
PointNumbers = tuple[int, int]


@dataclass(frozen=True)
class SpokenInstance:
    """One instance in a PPG answer: its box, and points inside and outside of it, in the dialect's numbers."""

    box: BoxNumbers
    inside: tuple[PointNumbers, ...] = ()
    outside: tuple[PointNumbers, ...] = ()


def box_question(dialect: Dialect, phrase: str) -> str:
    return dialect.box_question.replace("{phrase}", phrase)


def box_answer(dialect: Dialect, phrase: str, boxes: Sequence[BoxNumbers]) -> str:
    """Return the answer with all boxes of a phrase, or the no-target words if there are none. For a model that answers with points each
    box is replaced by its middle.
    """
    if dialect.answers_with_points:
        return pointed_answer(dialect, phrase, [((x1 + x2) // 2, (y1 + y2) // 2) for x1, y1, x2, y2 in boxes])
    joined = dialect.box_separator.join(map(dialect.spell_box, boxes))
    return dialect.spell_answer(phrase, joined) if boxes else dialect.no_target


def points_head(dialect: Dialect, box: BoxNumbers) -> str:
    """What comes before the points of a question about a box; the packed way shares it between all points."""
    return dialect.points_head.replace("{box}", dialect.spell_box(box))


def points_body(dialect: Dialect, points: Sequence[PointNumbers]) -> str:
    return dialect.point_separator.join(map(dialect.spell_point, points))


def points_answer(dialect: Dialect, inside: Sequence[bool]) -> str:
    return dialect.answer_separator.join(dialect.yes if flag else dialect.no for flag in inside)


def prompt_question(dialect: Dialect, phrase: str) -> str:
    return dialect.prompt_question.replace("{phrase}", phrase)


def prompt_answer(dialect: Dialect, instances: Sequence[SpokenInstance]) -> str:
    """Box and points of every instance, or the no-target words."""
    spoken = []
    for instance in instances:
        parts = [dialect.spell_box(instance.box)]
        for word, points in ((dialect.inside, instance.inside), (dialect.outside, instance.outside)):
            if points:
                parts.append(f"{word} {points_body(dialect, points)}")
        spoken.append(" ".join(parts))
    return dialect.box_separator.join(spoken) or dialect.no_target


@dataclass(frozen=True)
class ChatMarkup:
    """What a chat template writes around the turns.

    ``opening`` comes before the first question and holds the image's placeholder; ``to_answer`` stands between a question and its answer,
    ``to_question`` between an answer and the next question (its beginning ends the answer).
    """

    opening: str
    to_answer: str
    to_question: str


class ChatTemplate(Protocol):
    """What renders a conversation to text: a processor or tokenizer of transformers, or a
    :class:`~sam4mllm.prompts.chat_template.BoundedTemplate`.
    """

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any: ...


_FIRST, _SECOND, _THIRD = "qqFIRSTqq", "qqSECONDqq", "qqTHIRDqq"
_THOUGHT_ENDS = ("</think>", "<channel|>")
"""What closes a thought in the templates of Qwen3.5 and GLM-V, and of Gemma 4; where no thought is wanted, they write an empty one."""


def read_markup(template: ChatTemplate) -> ChatMarkup:
    """Find what a chat template writes around the turns, by rendering a conversation of marker words. Raises TemplateError if the template
    cannot be rendered, if the rendered text does not hold each marker once, in order, or if the template cannot take an image.
    """
    conversation = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _FIRST}]},
        {"role": "assistant", "content": [{"type": "text", "text": _SECOND}]},
        {"role": "user", "content": [{"type": "text", "text": _THIRD}]},
    ]
    try:
        rendered = str(template.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
        opening, rest = rendered.split(_FIRST)
        to_answer, rest = rest.split(_SECOND)
        to_question, after = rest.split(_THIRD)
    except (ValueError, TypeError, TemplateFault) as error:
        raise TemplateError(
            "the chat template does not render an image, a question, an answer and a second question in that order"
        ) from error
    if "'type'" in opening:
        raise TemplateError("the chat template prints a description of the image, not its placeholder; use a multi-modal template")
    if after.split() == to_answer.split():  # only white space differs: take the generation prompt, for a stored answer may add a space
        to_answer = after
    if after.startswith(to_answer) and after.rstrip().endswith(_THOUGHT_ENDS):  # the generation prompt alone has an empty thought
        to_answer = after
    return ChatMarkup(opening, to_answer, to_question)
