"""Qwen-VL-Chat, the paper's 7B backbone (section 4.1), whose code comes with its weights.

No code that comes with weights is run, and that code was written for transformers 4. So the family has a dialect
(:data:`~sam4mllm.prompts.dialects.QWEN_VL_CHAT`), for which another model can be trained, and a refusal that says why.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from sam4mllm.errors import ModelError

INSTEAD = "use Qwen/Qwen2-VL-7B-Instruct, its successor, instead"


def is_qwen_vl_chat(config: dict[str, Any]) -> bool:
    """Of a config.json. The text models of the same series have the same type and no ``visual``."""
    return config.get("model_type") == "qwen" and "visual" in config


def refusal(source: str) -> ModelError:
    """Why it cannot be loaded, in one line."""
    return ModelError(
        f"{source}: Qwen-VL-Chat comes with code of its own, which is never run here and needs transformers 4 "
        f"({importlib.metadata.version('transformers')} is installed); {INSTEAD}"
    )
