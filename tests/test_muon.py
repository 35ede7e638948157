"""Muon of the demo's recipe: torch's own is the reference, and what is no linear layer's matrix is AdamW's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sam4mllm.demo.pretrain.muon import Muon, matrices_of, orthogonal
from sam4mllm.training.state import load_state, save_state


class Small(nn.Module):
    """A tied embedding, two linear layers and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(20, 24)
        self.wide = nn.Linear(24, 40)
        self.tall = nn.Linear(40, 24, bias=False)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.norm(self.tall(torch.relu(self.wide(self.embed(ids))))))
        return found


def learn(model: Small, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        ids = torch.randint(20, (32,), generator=torch.Generator().manual_seed(step))
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(ids), ids.roll(1)).backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()


def test_only_linear_layers_that_are_no_embedding_are_matrices() -> None:
    model = Small()
    assert [id(weight) for weight in matrices_of(model)] == [id(model.wide.weight), id(model.tall.weight)]


def test_every_weight_is_in_one_group() -> None:
    model = Small()
    grouped = [id(weight) for group in Muon(model, 0.01, 0.1).param_groups for weight in group["params"]]
    assert sorted(grouped) == sorted(id(weight) for weight in model.parameters())


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_singular_values_are_brought_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.01
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert torch.linalg.svdvals(matrix).max() < 0.2  # as they were not


def test_steps_are_those_of_torchs_muon_and_adamw() -> None:
    ours, theirs = Small(), Small()
    before = [weight.detach().clone() for weight in matrices_of(theirs)]
    learn(ours, [Muon(ours, 0.01, 0.1)], range(4))
    matrices = matrices_of(theirs)
    others = [weight for weight in theirs.parameters() if all(weight is not one for one in matrices)]
    adam = torch.optim.AdamW(
        [
            {"params": [one for one in others if one.ndim >= 2], "weight_decay": 0.1},
            {"params": [one for one in others if one.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.98),
    )
    learn(theirs, [torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), adam], range(4))
    for mine, other, first in zip(matrices_of(ours), matrices, before, strict=True):
        moved = (other - first).norm()
        assert (mine - other).norm() < 0.1 * moved  # bfloat16 rounds what hardly counts to 0.06 of the step
    assert torch.allclose(ours.norm.weight, theirs.norm.weight, atol=1e-3)


def test_a_run_that_goes_on_is_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole = Small()
    learn(whole, [Muon(whole, 0.01, 0.1)], range(4))
    first = Small()
    optimizer: torch.optim.Optimizer = Muon(first, 0.01, 0.1)
    learn(first, [optimizer], range(2))
    save_state(tmp_path, 2, first, optimizer, {})
    later = Small()
    optimizer = Muon(later, 0.01, 0.1)
    assert load_state(tmp_path, later, optimizer) == {"step": 2}
    learn(later, [optimizer], range(2, 4))
    for mine, other in zip(later.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)
