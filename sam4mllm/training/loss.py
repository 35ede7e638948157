"""The loss: the text cross-entropy of the answers alone, as in the paper (section 3.3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam4mllm.grounding.checkpoint import Encoded
from sam4mllm.grounding.encoders import with_text
from sam4mllm.grounding.packing import additive
from sam4mllm.training.collate import UNLEARNED, TrainingRow


def row_loss(model: Any, encoded: Encoded, row: TrainingRow) -> Tensor:
    """Mean cross-entropy of a row's answers. ``encoded`` is the image with the text before it, on the model's device."""
    device = encoded.positions.device
    prefix, length = encoded.positions.shape[-1], len(row.row.ids)
    visible = torch.ones(prefix + length, prefix + length, dtype=torch.bool).tril()
    visible[prefix:, prefix:] = torch.from_numpy(row.row.mask)
    hidden = model.model(
        **with_text(encoded, torch.from_numpy(row.row.ids).to(device), torch.from_numpy(row.row.offsets).to(device)),
        attention_mask=additive(visible[None, None].to(device), model.dtype),
        use_cache=False,
        return_dict=True,
    ).last_hidden_state[0, prefix:]
    targets = torch.from_numpy(row.targets).to(device)
    learned = targets != UNLEARNED
    return F.cross_entropy(model.lm_head(hidden[learned]).float(), targets[learned])
