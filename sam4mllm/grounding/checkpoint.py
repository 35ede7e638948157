"""A loaded multi-modal language model with what belongs to it, and an image as it takes one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from sam4mllm.identity import digest_of
from sam4mllm.options import AUTO, Precision
from sam4mllm.prompts.conversation import ChatMarkup
from sam4mllm.prompts.dialects import Dialect


@dataclass(frozen=True)
class Encoded:
    """A prefix with its image, ready for the model: ``inputs`` by the model's own names, ``positions`` (rows, 1, L) int64.

    Models that count time, height and width apart have three rows, others one.
    """

    inputs: dict[str, Tensor]
    positions: Tensor
    resized: tuple[int, int]
    """(width, height) of the image as the processor resized it."""
    mutual: Tensor | None = None
    """(L,) bool, the tokens that see those after them, too, in Gemma 4 in layers with a window alone; None where none does."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with what belongs to it."""

    model: Any
    tokenizer: Any
    image_processor: Any
    """Or the whole processor, where the family's counts the tokens of tiles."""
    dialect: Dialect
    markup: ChatMarkup
    """What its chat template writes around the turns."""
    encode: Callable[[Checkpoint, str, Any], Encoded]
    """``encode(checkpoint, opening, image)``: tokens, pixels and positions of the text that opens a conversation."""
    lora_targets: str
    source: str
    fingerprint: str
    """Hash of the folder's files, weights and all; of a hub model, its name and commit."""
    window: int | None = None
    """How many tokens back the model was made to see; None for all of them."""
    precision: Precision = AUTO

    @property
    def base_sha256(self) -> str:
        """The hash of the base model."""
        return hashlib.sha256(self.fingerprint.encode()).hexdigest()

    @property
    def template_sha256(self) -> str:
        """The hash of what is said to it."""
        return digest_of({"dialect": asdict(self.dialect), "markup": asdict(self.markup)})

    def speaking(self, dialect: Dialect) -> Checkpoint:
        """The same model, spoken to in another dialect."""
        return self if dialect == self.dialect else replace(self, dialect=dialect)
