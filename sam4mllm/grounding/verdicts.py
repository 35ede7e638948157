"""The token ids of yes and no, and replies about points from a model's logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam4mllm.errors import TemplateError
from sam4mllm.grounding.protocol import Replies
from sam4mllm.prompts.dialects import Dialect


@dataclass(frozen=True)
class Verdicts:
    """Token ids that mean yes and no. The first of each is the dialect's own word; the others are that word in other cases or after a
    space. ``spoken`` are the ids of (yes, no) after an earlier answer of a joint answer, where the dialect's separator may change the
    token.
    """

    yes: tuple[int, ...]
    no: tuple[int, ...]
    spoken: tuple[int, int]

    @classmethod
    def look_up(cls, encode: Callable[[str], list[int]], dialect: Dialect) -> Verdicts:
        """Find the ids with the model's own tokenizer. Raises TemplateError if a word is not one token, alone or together with the
        dialect's separator before it, or if a token is among the spellings of both words.
        """
        yes, no = _single(encode, dialect.yes), _single(encode, dialect.no)
        later_yes, later_no = (
            _single(encode, dialect.answer_separator + dialect.yes),
            _single(encode, dialect.answer_separator + dialect.no),
        )
        if not yes or not no or not later_yes or not later_no:
            word = dialect.no if yes and later_yes else dialect.yes
            raise TemplateError(f"dialect {dialect.name!r}: {word!r} is not a single token of this model; choose another word for it")
        every_yes = tuple(dict.fromkeys([yes[0], *_spellings(encode, dialect.yes)]))
        every_no = tuple(dict.fromkeys([no[0], *_spellings(encode, dialect.no)]))
        if set(every_yes) & set(every_no):
            raise TemplateError(f"dialect {dialect.name!r}: {dialect.yes!r} and {dialect.no!r} are the same token of this model")
        return cls(every_yes, every_no, (later_yes[0], later_no[0]))

    def inside(self, logits: Tensor) -> Replies:
        """What (K, vocabulary) logits of the next token say of K points."""
        anything = torch.logsumexp(logits, -1).cpu().double()
        return _weigh(logits[:, list(self.yes)].cpu().double(), logits[:, list(self.no)].cpu().double(), anything)

    def weigh(self, chances: Sequence[Mapping[int, float]]) -> Replies:
        """Return the replies about K points from K mappings of token ids to the log-probabilities of the next token.

        Each mapping must have all ids of ``yes`` and ``no``.
        """
        yes, no = (torch.tensor([[one[token] for token in words] for one in chances]).double() for words in (self.yes, self.no))
        return _weigh(yes, no, torch.zeros(len(chances), dtype=torch.float64))

    def spell(self, inside: Sequence[bool] | NDArray[np.bool_]) -> list[int]:
        """Return the token ids of a joint answer that gives these verdicts, True for yes."""
        first = (self.yes[0], self.no[0])
        return [(first if index == 0 else self.spoken)[0 if flag else 1] for index, flag in enumerate(inside)]


def _weigh(yes: Tensor, no: Tensor, anything: Tensor) -> Replies:
    """Return the replies from the logits (K, spellings) of yes and no; ``anything`` (K,) is the log-sum-exp over the vocabulary."""
    yes, no = torch.logsumexp(yes, -1), torch.logsumexp(no, -1)
    return Replies(torch.sigmoid(yes - no).numpy(), torch.exp(torch.logaddexp(yes, no) - anything).clamp(max=1).numpy())


def _single(encode: Callable[[str], list[int]], word: str) -> list[int]:
    ids = encode(word)
    return ids if len(ids) == 1 else []


def _spellings(encode: Callable[[str], list[int]], word: str) -> list[int]:
    """Return the ids of single tokens that spell the word in lower case, capitalised or in upper case, each also after a space."""
    return [
        ids[0] for form in (word.lower(), word.capitalize(), word.upper()) for text in (form, f" {form}") if len(ids := encode(text)) == 1
    ]
