"""Numbers of a config.json that others wrote, and the generation_config.json of what is written from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from sam4mllm.errors import ModelError

MOST = 1 << 24
"""Of a size; vocabularies of a million are the largest there are."""
MOST_LAYERS = 1_000
"""Of a model; the largest published ones have up to 130."""


class Fields:
    """The fields of a JSON object; whatever is wrong is a ModelError that names the field.

    Args:
        values: the object; anything else is an error.
        source: what the user calls the model.
        before: stands before the names of its fields in errors.
    """

    def __init__(self, values: object, source: str, before: str = "") -> None:
        if not isinstance(values, Mapping):
            raise ModelError(f"{source}: {before.rstrip('.')} in config.json is no object; fetch that file again")
        self._values: Mapping[str, Any] = values
        self._source, self._before = source, before

    def size(self, name: str, default: int | None = None, most: int = MOST) -> int:
        """A number of things, one at least."""
        value = self._values.get(name, default)
        self.require(name, isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most, f"a number from 1 to {most:,}")
        assert isinstance(value, int)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number above zero."""
        value = self._values.get(name, default)
        self.require(name, isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MOST, "a number above 0")
        assert isinstance(value, int | float)
        return float(value)

    def require(self, name: str, holds: bool, wanted: str) -> None:
        """Raise unless it holds."""
        if not holds:
            value = self._values.get(name)
            raise ModelError(f"{self._source}: {self._before}{name} in config.json must be {wanted}, not {value!r:.80}")


def write_generation(folder: Path, ends: list[int], pad: int | None) -> None:
    """Greedy decoding, whatever the published folder says, up to one of the end tokens."""
    config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=pad)  # type: ignore[no-untyped-call]
    config.save_pretrained(folder)
