"""A loaded multi-modal language model with its tokenizer, image processor and dialect; and an image that is encoded for the model."""

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
    """A prefix of L tokens with its image, encoded for the model: ``inputs`` are tensors by the names of the model's arguments, and
    ``positions`` (rows, 1, L) int64 the position ids.

    Models that count time, height and width apart have three rows of positions, others one.
    """

    inputs: dict[str, Tensor]
    positions: Tensor
    resized: tuple[int, int]
    """(width, height) of the image as the processor resized it."""
    mutual: Tensor | None = None
    """(L,) bool, True for the image tokens that see each other in both directions (in Gemma 4 only in sliding-window layers); None where no
    tokens do."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with what belongs to it."""

    model: Any
    tokenizer: Any
    image_processor: Any
    """The image processor; or the whole processor, in families whose processor counts the tokens of tiles."""
    dialect: Dialect
    markup: ChatMarkup
    """What its chat template writes around the turns."""
    encode: Callable[[Checkpoint, str, Any], Encoded]
    """``encode(checkpoint, opening, image)`` returns tokens, pixels and positions of an image and the text that opens a conversation."""
    lora_targets: str
    source: str
    fingerprint: str
    """A hash of the folder's weights, JSON files and templates; for a hub model, its name and commit instead."""
    window: int | None = None
    """How many tokens wide the model's sliding window was before loading lifted it; None if the model had none, or keeps it."""
    precision: Precision = AUTO

    @property
    def base_sha256(self) -> str:
        """The hash of the base model."""
        return hashlib.sha256(self.fingerprint.encode()).hexdigest()

    @property
    def template_sha256(self) -> str:
        """The hash of what shapes the prompts: the dialect and the chat markup."""
        return digest_of({"dialect": asdict(self.dialect), "markup": asdict(self.markup)})

    def speaking(self, dialect: Dialect) -> Checkpoint:
        """The same model, spoken to in another dialect."""
        return self if dialect == self.dialect else replace(self, dialect=dialect)
