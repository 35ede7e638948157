"""The loss: the text cross-entropy of the answers alone, as in the paper (section 3.3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam4mllm.grounding.checkpoint import Encoded
from sam4mllm.grounding.encoders import position_ids
from sam4mllm.grounding.packing import additive
from sam4mllm.training.collate import UNLEARNED, TrainingRow


def row_loss(model: Any, encoded: Encoded, row: TrainingRow) -> Tensor:
    """Mean cross-entropy of a row's answers. ``encoded`` is the image with the text before it, on the model's device."""
    device = encoded.positions.device
    prefix, length = encoded.positions.shape[-1], len(row.row.ids)
    visible = torch.ones(prefix + length, prefix + length, dtype=torch.bool).tril()
    visible[prefix:, prefix:] = torch.from_numpy(row.row.mask)
    following = int(encoded.positions.max()) + 1
    positions = (torch.from_numpy(row.row.offsets) + following).to(device).expand(*encoded.positions.shape[:2], -1)
    ids = torch.from_numpy(row.row.ids)[None].to(device)
    inputs = {**encoded.inputs, "input_ids": torch.cat([encoded.inputs["input_ids"], ids], 1)}
    if "mm_token_type_ids" in inputs:  # 0 is text; not every family has it
        inputs["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, length))
    hidden = model.model(
        **inputs,
        position_ids=position_ids(torch.cat([encoded.positions, positions], 2)),
        attention_mask=additive(visible[None, None].to(device), model.dtype),
        use_cache=False,
        return_dict=True,
    ).last_hidden_state[0, prefix:]
    targets = torch.from_numpy(row.targets).to(device)
    learned = targets != UNLEARNED
    return F.cross_entropy(model.lm_head(hidden[learned]).float(), targets[learned])
