"""Which published folders come with code of their own and are converted before they are used. No code that comes with weights is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam4mllm.errors import ModelError


def original_name(config: Mapping[str, Any]) -> str | None:
    """Return the name of the model that a config.json describes if its folder has to be converted first, else None.

    Qwen's first text models have the same ``model_type`` as Qwen-VL-Chat, but no ``visual``.
    """
    kind = config.get("model_type")
    if kind == "qwen" and "visual" in config:
        return "Qwen-VL-Chat"
    return "InternVL" if kind == "internvl_chat" else None


def refuse_original(config: Mapping[str, Any], source: str) -> None:
    """Raise ModelError, with the command that converts the folder, if the folder has to be converted first."""
    name = original_name(config)
    if name is not None:
        how = f"sam4mllm models convert {source} OUT" if Path(source).is_dir() else "fetch it, then sam4mllm models convert FOLDER OUT"
        raise ModelError(f"{source} is {name} as first published, with code of its own, which is never run here; convert it once: {how}")
