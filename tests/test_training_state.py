"""A training run may be killed at any moment; what it wrote before must still be there, and going on from it must change nothing."""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam4mllm.durable import sync_path, sync_tree
from sam4mllm.training import state as module
from sam4mllm.training.state import load_state, save_state

torch.set_num_threads(1)


class Tied(nn.Module):
    """A small network with what real ones have: tied weights, a frozen part, a buffer."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(7, 6)
        self.inner = nn.Linear(6, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight
        self.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh(self.inner(self.embed(ids))))
        return self.head(self.frozen(hidden))


def build(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tied, torch.optim.AdamW]:
    model = Tied(seed, dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained[:1]}, {"params": trained[1:], "weight_decay": 0.3}]
    return model, torch.optim.AdamW(groups, lr=0.05, weight_decay=0.1)


def train(model: Tied, optimizer: torch.optim.AdamW, steps: range) -> list[float]:
    losses = []
    for step in steps:
        ids = torch.randint(7, (16,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(ids), ids.roll(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model: Tied) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: Tied, kept: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_going_on_from_a_saved_state_is_as_never_having_stopped(dtype: torch.dtype, tmp_path: Path) -> None:
    model, optimizer = build(dtype=dtype)
    train(model, optimizer, range(5))
    save_state(tmp_path, 5, model, optimizer, {"seen": 80})
    unbroken = train(model, optimizer, range(5, 12))

    resumed, resumed_optimizer = build(seed=1, dtype=dtype)
    assert load_state(tmp_path, resumed, resumed_optimizer) == {"step": 5, "seen": 80}
    assert resumed.head.weight is resumed.embed.weight
    assert train(resumed, resumed_optimizer, range(5, 12)) == pytest.approx(unbroken, abs=1e-6)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=1e-6, rtol=0)


def test_state_of_an_untrained_optimizer(tmp_path: Path) -> None:
    model, optimizer = build()
    save_state(tmp_path, 0, model, optimizer, {})
    resumed, resumed_optimizer = build(seed=1)
    assert load_state(tmp_path, resumed, resumed_optimizer) == {"step": 0}
    assert same(resumed, weights(model))
    assert train(resumed, resumed_optimizer, range(3)) == pytest.approx(train(model, optimizer, range(3)), abs=1e-6)


def test_what_a_saved_state_holds(tmp_path: Path) -> None:
    final = save_state(tmp_path / "new" / "folder", 12, *build(), {"seen": 3})
    assert final == tmp_path / "new" / "folder" / "step-00000012"
    assert [path.name for path in final.parent.iterdir()] == [final.name]
    assert sorted(path.name for path in final.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert json.loads((final / "state.json").read_text()) == {"step": 12, "seen": 3}


@pytest.mark.parametrize("folder", ["missing", "."])
def test_no_state(folder: str, tmp_path: Path) -> None:
    model, optimizer = build()
    before = weights(model)
    assert load_state(tmp_path / folder, model, optimizer) is None
    assert same(model, before)
    assert not optimizer.state


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    model, optimizer = build()
    for step in (1, 2, 10, 9_999, 10_000):
        train(model, optimizer, range(step, step + 1))
        save_state(tmp_path, step, model, optimizer, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00009999", "step-00010000"]
    resumed = build(seed=1)
    assert load_state(tmp_path, *resumed) == {"step": 10_000}
    assert same(resumed[0], weights(model))


def test_leftover_of_a_killed_save_is_ignored_and_written_over(tmp_path: Path) -> None:
    model, optimizer = build()
    save_state(tmp_path, 1, model, optimizer, {})
    kept = weights(model)
    leftover = tmp_path / ".step-00000002.partial"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half of")
    (leftover / "junk").mkdir()
    resumed = build(seed=1)
    assert load_state(tmp_path, *resumed) == {"step": 1}
    assert same(resumed[0], kept)
    save_state(tmp_path, 2, *resumed, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert len(list((tmp_path / "step-00000002").iterdir())) == 3


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    model, optimizer = build()
    save_state(tmp_path, 3, model, optimizer, {"try": 1})
    train(model, optimizer, range(1))
    save_state(tmp_path, 3, model, optimizer, {"try": 2})
    resumed = build(seed=1)
    assert load_state(tmp_path, *resumed) == {"step": 3, "try": 2}
    assert same(resumed[0], weights(model))


def test_state_that_is_not_json_leaves_the_last_state(tmp_path: Path) -> None:
    model, optimizer = build()
    save_state(tmp_path, 1, model, optimizer, {})
    with pytest.raises(TypeError):
        save_state(tmp_path, 2, model, optimizer, {"rng": object()})
    assert load_state(tmp_path, model, optimizer) == {"step": 1}


class Killed(BaseException):
    """Like a kill, it is no Exception: nothing may catch it."""


STEPS: tuple[tuple[object, str], ...] = (
    (os, "mkdir"),
    (module, "save_file"),
    (Path, "write_text"),
    (os, "fsync"),
    (os, "rename"),
    (os, "replace"),
    (os, "unlink"),
    (os, "rmdir"),
)
"""Everything through which a save changes the disk; the last two are what rmtree is made of, so it is killed half way as well."""


class Clock:
    """Counts the steps of a save and dies at one of them: before it, or right after."""

    def __init__(self, patch: pytest.MonkeyPatch, kill_at: int = -1, after: bool = False) -> None:
        self.names: list[str] = []
        self._kill_at, self._after = kill_at, after
        for owner, name in STEPS:
            patch.setattr(owner, name, self._wrap(getattr(owner, name), name))

    def _wrap(self, step: Callable[..., object], name: str) -> Callable[..., object]:
        @functools.wraps(step)
        def wrapped(*args: Any, **kwargs: Any) -> object:
            self.names.append(name)
            now = len(self.names) - 1 == self._kill_at
            if now and not self._after:
                raise Killed(name)
            result = step(*args, **kwargs)
            if now:
                raise Killed(name)
            return result

        return wrapped


def test_a_save_syncs_before_it_renames_and_deletes_last(tmp_path: Path) -> None:
    model, optimizer = build()
    for step in (1, 2):
        save_state(tmp_path, step, model, optimizer, {})
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        save_state(tmp_path, 3, model, optimizer, {})
    written = ["mkdir", "save_file", "save_file", "write_text"]
    synced = ["fsync"] * 4  # three files and their folder
    assert clock.names == [*written, *synced, "replace", "fsync", *["unlink"] * 3, "rmdir"]


Weights = dict[int, dict[str, Tensor]]


def killed_saves(folder: Path, before: tuple[int, ...], step: int) -> Iterator[tuple[str, Path, Weights]]:
    """For each moment of saving ``step``, a folder in which that save was killed just then, and the weights at every step."""
    model, optimizer = build()
    kept: Weights = {}
    for earlier in before:
        train(model, optimizer, range(earlier, earlier + 1))
        save_state(folder / "before", earlier, model, optimizer, {})
        kept[earlier] = weights(model)
    (folder / "before").mkdir(exist_ok=True)
    train(model, optimizer, range(step, step + 1))
    kept[step] = weights(model)
    for kill_at in itertools.count():
        for after in (False, True):
            here = Path(shutil.copytree(folder / "before", folder / f"{kill_at}-{after}"))
            with pytest.MonkeyPatch.context() as patch:
                clock = Clock(patch, kill_at, after)
                try:
                    save_state(here, step, model, optimizer, {})
                except Killed:
                    yield f"{'after' if after else 'before'} {clock.names[-1]} ({kill_at})", here, kept
                else:
                    return


@pytest.mark.parametrize("before", [pytest.param((1,), id="one before"), pytest.param((1, 2), id="two before")])
def test_a_kill_at_any_moment_leaves_a_whole_state(before: tuple[int, ...], tmp_path: Path) -> None:
    found = []
    for moment, folder, kept in killed_saves(tmp_path, before, 3):
        model, optimizer = build(seed=1)
        state = load_state(folder, model, optimizer)
        assert state is not None, moment
        assert state["step"] in (before[-1], 3), moment
        assert same(model, kept[state["step"]]), moment
        found.append(state["step"])
        save_state(folder, 4, model, optimizer, {})  # and training can go on
        assert load_state(folder, model, optimizer) == {"step": 4}, moment
    assert len(found) >= 20
    assert found == sorted(found), "once the new one is there it stays"
    assert set(found) == {before[-1], 3}


def test_a_kill_during_the_first_save_leaves_it_whole_or_not_at_all(tmp_path: Path) -> None:
    found = []
    for moment, folder, kept in killed_saves(tmp_path, (), 3):
        model, optimizer = build(seed=1)
        state = load_state(folder, model, optimizer)
        assert state in (None, {"step": 3}), moment
        assert state is None or same(model, kept[3]), moment
        found.append(state is not None)
    assert found == sorted(found)
    assert set(found) == {False, True}


def test_a_kill_while_a_step_is_saved_again_leaves_a_whole_state(tmp_path: Path) -> None:
    """As when the last step of a run is also one at which it saves anyway."""
    for moment, folder, _ in killed_saves(tmp_path, (3,), 3):
        model, optimizer = build(seed=1)
        assert load_state(folder, model, optimizer) == {"step": 3}, moment


def test_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("x")
    names: dict[int, str] = {}
    synced: list[str] = []
    real_open, real_sync = os.open, os.fsync

    def opened(path: Path, flags: int) -> int:
        descriptor = real_open(path, flags)
        names[descriptor] = Path(path).name
        return descriptor

    def sync(descriptor: int) -> None:
        synced.append(names[descriptor])
        real_sync(descriptor)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", sync)
    sync_tree(tmp_path)
    assert synced == ["inner", "file", tmp_path.name]
    with pytest.raises(FileNotFoundError):
        sync_path(tmp_path / "missing")
