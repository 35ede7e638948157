"""Compute logits from a model's last hidden states as the model's own forward does, with soft-capping where a model has it."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Return the logits (..., vocabulary) float32 of last hidden states (..., width). They are soft-capped where the configuration says so:
    ``cap * tanh(logits / cap)`` (Gemma 2, arXiv 2408.00118, section 2).
    """
    logits: Tensor = model.lm_head(hidden).float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * (logits / cap).tanh()
