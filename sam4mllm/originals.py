"""Which published folders come with code of their own and are converted before they are used. No code that comes with weights is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam4mllm.errors import ModelError


def original_name(config: Mapping[str, Any]) -> str | None:
    """What a config.json is of, if the folder is to be converted first. Qwen's first text models have the type of Qwen-VL-Chat, and no
    ``visual``.
    """
    kind = config.get("model_type")
    if kind == "qwen" and "visual" in config:
        return "Qwen-VL-Chat"
    return "InternVL" if kind == "internvl_chat" else None


def refuse_original(config: Mapping[str, Any], source: str) -> None:
    """Raises ModelError with the command that converts the folder."""
    name = original_name(config)
    if name is not None:
        how = f"sam4mllm models convert {source} OUT" if Path(source).is_dir() else "fetch it, then sam4mllm models convert FOLDER OUT"
        raise ModelError(f"{source} is {name} as first published, with code of its own, which is never run here; convert it once: {how}")
