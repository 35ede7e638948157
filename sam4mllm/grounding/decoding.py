"""Greedy decoding of several answers at once, all below one scene: each step is one packed row with one token a phrase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.copying import Past
from sam4mllm.grounding.packing import Segment, pack
from sam4mllm.grounding.scene import MllmScene


@dataclass(frozen=True, eq=False)
class Written:
    """An answer: its text, its tokens, each token's log-probability, the logits (vocabulary,) of the first, and
    whether it came to its end.
    """

    text: str
    ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    first_logits: Tensor
    finished: bool


class Continuing(Protocol):
    """What decoding asks of a model: :meth:`MllmGrounder.forward <sam4mllm.grounding.mllm.MllmGrounder.forward>` and its tokenizer."""

    checkpoint: Checkpoint

    def forward(
        self,
        scene: MllmScene,
        ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        mask: NDArray[np.bool_],
        keep: NDArray[np.int64],
        cache: Past | None = None,
    ) -> tuple[Tensor, Past]: ...


def write(
    model: Continuing, scene: MllmScene, questions: Sequence[Sequence[int]], ends: frozenset[int], max_new_tokens: int
) -> list[Written]:
    """Answer each question greedily until one of the end tokens. No question sees another; one forward pass a step serves them all."""
    if not questions:
        return []
    row = pack([Segment(tuple(question)) for question in questions])
    logits, cache = model.forward(scene, row.ids, row.offsets, row.mask, row.lasts)
    first = logits.cpu()
    owner = np.repeat(np.arange(len(questions)), row.lengths)
    offsets = row.lengths.copy()
    ids: list[list[int]] = [[] for _ in questions]
    logs: list[list[float]] = [[] for _ in questions]
    active = np.arange(len(questions))
    for _ in range(max_new_tokens):
        best = torch.log_softmax(logits, -1).max(-1)
        tokens, chances = best.indices.tolist(), best.values.tolist()
        for which, token, chance in zip(active, tokens, chances, strict=True):
            logs[which].append(chance)
            if token not in ends:
                ids[which].append(token)
        going = np.array([token not in ends for token in tokens])
        active, next_ids = active[going], np.array(tokens, np.int64)[going]
        if not len(active):
            break
        owner = np.concatenate([owner, active])
        mask = owner[None] == active[:, None]
        logits, cache = model.forward(scene, next_ids, offsets[active], mask, np.arange(len(active)), cache)
        offsets[active] += 1
    decode = model.checkpoint.tokenizer.decode
    return [
        Written(decode(out), tuple(out), tuple(log), first[index], index not in active)
        for index, (out, log) in enumerate(zip(ids, logs, strict=True))
    ]
