"""From a model's hidden values to logits, as its own forward has them: some models bound theirs."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Logits (..., vocabulary) float32 of hidden values (..., width). Where the configuration says so, they are bent to lie between a bound
    and its negative (Gemma 2, arXiv 2408.00118, section 2: ``cap * tanh(logits / cap)``).
    """
    logits: Tensor = model.lm_head(hidden).float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * (logits / cap).tanh()
