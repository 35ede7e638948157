"""The loss: the text cross-entropy of the answers alone, as in the paper (section 3.3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam4mllm.grounding.checkpoint import Encoded
from sam4mllm.grounding.encoders import with_text
from sam4mllm.grounding.head import logits_of
from sam4mllm.grounding.windows import masks
from sam4mllm.training.collate import UNLEARNED, TrainingRow


def row_loss(model: Any, encoded: Encoded, row: TrainingRow) -> Tensor:
    """Return the mean cross-entropy of a row's answer tokens.

    ``encoded`` is the prefix of the row, on the model's device: the image and the text before it.
    """
    device = encoded.positions.device
    prefix, length = encoded.positions.shape[-1], len(row.row.ids)
    visible = torch.ones(prefix + length, prefix + length, dtype=torch.bool).tril()
    visible[prefix:, prefix:] = torch.from_numpy(row.row.mask)
    hidden = model.model(
        **with_text(encoded, torch.from_numpy(row.row.ids).to(device), torch.from_numpy(row.row.offsets).to(device)),
        attention_mask=masks(model, visible.to(device), encoded.mutual),
        use_cache=False,
        return_dict=True,
    ).last_hidden_state[0, prefix:]
    targets = torch.from_numpy(row.targets).to(device)
    learned = targets != UNLEARNED
    return F.cross_entropy(logits_of(model, hidden[learned]), targets[learned])
