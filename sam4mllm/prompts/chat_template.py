"""A checkpoint's chat template, which is a program from outside: rendered once when the model is loaded, in a process with limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sam4mllm import bounded
from sam4mllm.errors import TemplateError

MAX_CHARACTERS = 1 << 20
"""The longest template that is accepted; published ones have up to 20,000 characters."""


@dataclass(frozen=True)
class BoundedTemplate:
    """Implements :class:`~sam4mllm.prompts.conversation.ChatTemplate` for a template in Jinja.

    ``special_tokens`` are the tokenizer's by their names (``bos_token``, ``eos_token`` …), which templates write.
    """

    text: str
    special_tokens: Mapping[str, str]

    @classmethod
    def of(cls, tokenizer: Any) -> BoundedTemplate:
        """Take the template of a transformers tokenizer; the one named ``default`` if it has several. Raises TemplateError if there is
        none, or it is too long.
        """
        text = tokenizer.chat_template
        if isinstance(text, dict):
            text = text.get("default")
        if not isinstance(text, str) or not text:
            raise TemplateError(
                "it has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); use an instruct model"
            )
        if len(text) > MAX_CHARACTERS:
            raise TemplateError(f"its chat template has {len(text):,} characters, over {MAX_CHARACTERS:,}; use the model's own")
        return cls(text, {name: str(token) for name, token in tokenizer.special_tokens_map.items()})

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        """Render the conversation as text, with thinking switched off where the template has a switch for it. ``tokenize`` must be false.
        Raises TemplateError if the template has an error, does not end within the limits, or writes too much.
        """
        assert not tokenize
        variables = {**self.special_tokens, "messages": conversation, "tools": None, "documents": None, "enable_thinking": False}
        try:
            return bounded.render(self.text, {**variables, "add_generation_prompt": add_generation_prompt})
        except bounded.OverLimitError as error:
            raise TemplateError(f"its chat template was stopped: {error}; use the model's own") from error
        except ValueError as error:
            raise TemplateError(f"its chat template cannot be rendered ({error}); use the model's own") from error
