"""The frozen tower's features: with them a run is bit for bit the run without, and its tower sees an image once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sam4mllm.training import features
from sam4mllm.training.features import VisionMemory
from sam4mllm.training.recipe import Trainer
from tests.conftest import make_checkpoint
from tests.test_recipe import PLAN, losses, make_trainer, weights

torch.set_num_threads(1)


def count_calls(trainer: Trainer) -> list[int]:
    """How often the tower's first block does its work."""
    seen: list[int] = []
    trainer._checkpoint.model.model.visual.blocks[0].norm1.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_run_with_them_is_the_run_without(recompute: bool, tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """With the close-ups that the demo's dialect asks for, which are never the same twice and are not kept."""
    found = []
    for megabytes in (0, 16):
        plan = replace(PLAN, feature_megabytes=megabytes, recompute=recompute)
        trainer = make_trainer(tiny_checkpoint, data, tmp_path / str(megabytes), plan)
        seen = count_calls(trainer)
        found.append((losses(trainer), weights(trainer), len(seen)))
    assert found[1][0] == found[0][0]
    assert all(torch.equal(one, other) for one, other in zip(found[1][1], found[0][1], strict=True))
    assert found[1][2] < found[0][2]


def test_the_tower_sees_an_image_once(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_checkpoint("qwen3_vl", tmp_path / "model"), data, tmp_path / "run")
    seen = count_calls(trainer)
    shown = trainer._pool.draw(np.random.default_rng(0), 1, 0.0)[0]
    assert [trainer._gradients.learn_whole(shown, np.random.default_rng(0)) is not None for _ in range(3)] == [True] * 3
    assert len(seen) == 1
    other = replace(shown, image=shown.image[::-1].copy())
    trainer._gradients.learn_whole(other, np.random.default_rng(0))
    assert len(seen) == 2


def test_memory_is_bounded(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(make_checkpoint("qwen2_vl", tmp_path / "model"), data, tmp_path / "run")
    shown = trainer._pool.draw(np.random.default_rng(0), 1, 0.0)[0]
    images = [np.roll(shown.image, shift, 0) for shift in range(4)]
    memory = trainer._gradients._features
    trainer._gradients.learn_whole(shown, np.random.default_rng(0))
    one = memory._bytes
    assert one > 0
    memory._most_bytes = 2 * one
    for image in images:
        trainer._gradients.learn_whole(replace(shown, image=image), np.random.default_rng(0))
        assert memory._bytes == sum(map(features._nbytes, memory._kept.values())) <= 2 * one
    assert len(memory._kept) == 2
    memory._most_bytes = one - 1
    trainer._gradients.learn_whole(replace(shown, image=np.roll(shown.image, 9, 0)), np.random.default_rng(0))
    assert len(memory._kept) == 2  # one that would not fit drives out no other


def test_half_of_an_image_s_features_is_not_kept(data: Path, tmp_path: Path) -> None:
    """Memory may run out on the way through the tower."""
    trainer = make_trainer(make_checkpoint("qwen3_vl", tmp_path / "model"), data, tmp_path / "run")
    blocks = trainer._checkpoint.model.model.visual.blocks
    with trainer._gradients._features.of(np.zeros((2, 2, 3), np.uint8)):
        trainer._gradients._features._new = {0: torch.zeros(1)}
    assert not trainer._gradients._features._kept
    assert trainer._gradients._features._read == {0, 1, len(blocks) - 1}


class Tower(torch.nn.Module):
    def __init__(self, dropout: float, learns: bool, blocks: bool = True) -> None:
        super().__init__()
        layers = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(dropout))])
        self.blocks = layers if blocks else layers[0]
        self.requires_grad_(learns)


@pytest.mark.parametrize(
    ("tower", "kept"),
    [
        pytest.param(Tower(0.0, False), True, id="frozen"),
        pytest.param(Tower(0.1, False), False, id="dropout"),
        pytest.param(Tower(0.0, True), False, id="learns"),
        pytest.param(Tower(0.0, False, blocks=False), False, id="no list of blocks"),
        pytest.param(None, False, id="no tower known"),
    ],
)
def test_a_tower_that_is_not_the_same_each_time_is_left_alone(tower: torch.nn.Module | None, kept: bool) -> None:
    model = torch.nn.Module()
    model.model = torch.nn.Module()
    model.model.visual = tower  # type: ignore[assignment]  # a module may have none
    memory = VisionMemory(model, 1000)
    inputs = torch.ones(1, 2)
    if tower is not None:
        block = tower.blocks[0] if isinstance(tower.blocks, torch.nn.ModuleList) and len(tower.blocks) else tower.blocks
        with memory.of(np.zeros((1, 1, 3), np.uint8)):
            block(inputs)
    assert bool(memory._kept) is kept
