"""Where an answer of a model ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sam4mllm.errors import ModelError
from sam4mllm.grounding.checkpoint import Checkpoint


def read_ending(checkpoint: Checkpoint, encode: Callable[[str], list[int]]) -> tuple[int, list[int]]:
    """Return the token that ends an answer, and the ids that the chat template writes between that token and the next question.

    Raises ModelError if the chat template writes nothing between an answer and the next question.
    """
    tokenizer = checkpoint.tokenizer
    ids = encode(checkpoint.markup.to_question)
    if not ids:
        raise ModelError(f"{checkpoint.source}: the chat template writes nothing after an answer, so answers would not end")
    if ids[0] in {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} or tokenizer.eos_token_id is None:
        return ids[0], ids[1:]
    end = int(tokenizer.eos_token_id)  # the template's first token is an ordinary one, which may also occur within an answer
    return end, ids[ids.index(end) + 1 :] if end in ids else ids


def generation_ends(model: Any) -> list[int]:
    """The ids at which the model's own generation config stops."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
