"""Reading the numbers in a foreign config.json, and writing the generation_config.json of the converted model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from sam4mllm.errors import ModelError

MOST = 1 << 24
"""The largest size that is accepted; the largest sizes in use are vocabularies of a million."""
MOST_LAYERS = 1_000
"""The most layers that are accepted; the largest published models have up to 130."""


class Fields:
    """The fields of a JSON object in config.json. Every wrong value raises a ModelError that names its field.

    Args:
        values: the object; anything else raises ModelError.
        source: the name by which the user gave the model.
        before: what stands before the names of the object's fields in errors, such as ``visual.``.
    """

    def __init__(self, values: object, source: str, before: str = "") -> None:
        if not isinstance(values, Mapping):
            raise ModelError(f"{source}: {before.rstrip('.')} in config.json is no object; fetch that file again")
        self._values: Mapping[str, Any] = values
        self._source, self._before = source, before

    def size(self, name: str, default: int | None = None, most: int = MOST) -> int:
        """Return a field that must be a whole number from 1 to ``most``, or ``default`` if it is missing. With ``default``
        None a missing field raises, too.
        """
        value = self._values.get(name, default)
        self.require(name, isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most, f"a number from 1 to {most:,}")
        assert isinstance(value, int)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a field that must be a number above zero and below MOST, or ``default`` if it is missing. With ``default``
        None a missing field raises, too.
        """
        value = self._values.get(name, default)
        self.require(name, isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MOST, "a number above 0")
        assert isinstance(value, int | float)
        return float(value)

    def require(self, name: str, holds: bool, wanted: str) -> None:
        """Raise ModelError unless ``holds`` is true; ``wanted`` says what the field ``name`` must be."""
        if not holds:
            value = self._values.get(name)
            raise ModelError(f"{self._source}: {self._before}{name} in config.json must be {wanted}, not {value!r:.80}")


def write_generation(folder: Path, ends: list[int], pad: int | None) -> None:
    """Write a generation_config.json for greedy decoding up to one of the end tokens, whatever the published one says."""
    config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=pad)  # type: ignore[no-untyped-call]
    config.save_pretrained(folder)
