"""What the collator's tests share: a toy image, its training row, and the row taken apart into conversations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import Example
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.packing import ROOT, Segment, pack
from sam4mllm.grounding.scene import MllmScene
from sam4mllm.training.asking import Asking
from sam4mllm.training.collate import UNLEARNED, Collator, TrainingRow


@dataclass(frozen=True)
class Toy:
    """An image with three phrases: one target, two, none."""

    image: NDArray[np.uint8]
    examples: list[Example]


@dataclass(frozen=True)
class Turn:
    """A segment with all that comes before it in its conversation: ``ids``, and the target of each, UNLEARNED before the segment."""

    segment: Segment
    ids: list[int]
    targets: list[int]

    @property
    def answer(self) -> list[int]:
        return [target for target in self.targets if target != UNLEARNED]


def turns(row: TrainingRow, segments: list[Segment]) -> list[Turn]:
    """The conversations of a row, one a segment."""
    expected = pack(segments)
    np.testing.assert_array_equal(row.row.ids, expected.ids)
    np.testing.assert_array_equal(row.row.mask, expected.mask)
    found: list[Turn] = []
    for segment, start in zip(segments, expected.starts, strict=True):
        before = [] if segment.parent == ROOT else found[segment.parent].ids
        own = row.targets[start : start + len(segment.ids)].tolist()
        found.append(Turn(segment, [*before, *segment.ids], [UNLEARNED] * len(before) + own))
    return found


def make_row(grounder: MllmGrounder, scene: MllmScene, examples: list[Example], asking: Asking, seed: int = 0) -> TrainingRow:
    row = Collator(grounder, asking).row(scene, examples, np.random.default_rng(seed))
    assert row.targets.shape == row.row.ids.shape
    assert row.targets.dtype == np.int64
    return row


def text(grounder: MllmGrounder, ids: list[int]) -> str:
    return str(grounder.checkpoint.tokenizer.decode(ids))
