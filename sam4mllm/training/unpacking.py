"""A packed row as the conversations that it is made of, for models that cannot take it as one: see :mod:`sam4mllm.grounding.copying`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sam4mllm.grounding.copying import chains_of, keeps_states
from sam4mllm.grounding.packing import PackedRow
from sam4mllm.training.collate import UNLEARNED, TrainingRow

Shares = Iterator[tuple[TrainingRow, float]]
"""Rows, each with its share of the answers' tokens: the loss of all is the mean of theirs by these weights."""


def shares_of(model: Any, row: TrainingRow) -> Shares:
    """What a model learns a row by: the row itself, or, where its layers keep states, each of its conversations with a pass of its own."""
    return _unpack(row) if keeps_states(model.config) else iter([(row, 1.0)])


def _unpack(row: TrainingRow) -> Shares:
    """What several conversations begin with is said in each and learned in the first."""
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
