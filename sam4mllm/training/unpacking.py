"""Splitting a packed row into its conversations, for models that cannot take it as one row (:mod:`sam4mllm.grounding.copying`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sam4mllm.grounding.copying import chains_of, keeps_states
from sam4mllm.grounding.packing import PackedRow
from sam4mllm.training.collate import UNLEARNED, TrainingRow

Shares = Iterator[tuple[TrainingRow, float]]
"""Rows, each with its share of the learned tokens; the loss of them all is the sum of their losses, weighted by these shares."""


def shares_of(model: Any, row: TrainingRow) -> Shares:
    """Return the rows by which a model learns a row: the row itself, or each of its conversations if layers of the model keep states."""
    return _unpack(row) if keeps_states(model.config) else iter([(row, 1.0)])


def _unpack(row: TrainingRow) -> Shares:
    """Yield each conversation as a row. A beginning that several share is repeated in each, and learned only in the first."""
    left = row.targets.copy()
    count = np.count_nonzero(left != UNLEARNED)
    for chain in map(list, chains_of(row.row.mask)):
        targets = left[chain]
        left[chain] = UNLEARNED
        learned = np.count_nonzero(targets != UNLEARNED)
        if learned:
            length = len(chain)
            causal = np.tril(np.ones((length, length), np.bool_))
            alone = PackedRow(row.row.ids[chain], row.row.offsets[chain], causal, np.zeros(1, np.int64), np.array([length]))
            yield TrainingRow(alone, targets), learned / count
