"""Training states on disk, from which an interrupted run goes on.

A state is a folder ``step-<n>`` with ``model.safetensors`` (the trained weights), ``optimizer.safetensors`` and ``state.json``. It survives
a kill at any moment: a new state is written under a temporary name beside the older one, synced, and then renamed. A folder that still has
its temporary name was never finished and is ignored.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sam4mllm.durable import sync_path, sync_tree
from sam4mllm.errors import ModelError, TrainingError, first_line

_KEEP = 2


def save_state(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, extra: Mapping[str, Any]) -> Path:
    """Write ``folder/step-<step>`` atomically, and remove all states but the newest two. Return the new state's folder.

    The step has eight digits. If the folder holds a state of this step already, the new one has one more ``+`` at the end of its name, and
    counts as newer. ``folder`` is made if it is missing. Raises OSError if a file cannot be written.

    ``extra`` goes into ``state.json`` beside the step, and must be representable in JSON.
    """
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.partial"
    while final.exists():  # a step that is saved again gets a longer name; the first one is removed later, as an old state
        final = final.with_name(final.name + "+")
    for unfinished in folder.glob(".step-*.partial"):
        shutil.rmtree(unfinished)
    temporary.mkdir(parents=True)
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _untied(model.state_dict()).items()}
    save_file(weights, temporary / "model.safetensors")
    save_file(_flatten(optimizer), temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": step, **extra}))
    sync_tree(temporary)
    os.replace(temporary, final)
    sync_path(folder)
    for old in _finished(folder)[:-_KEEP]:
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Load the newest finished state of ``folder`` into ``model`` and ``optimizer``, and return what its ``state.json`` holds.

    If there is no state, return None and change nothing. Raises TrainingError if the newest state is damaged or cannot be read, even if an
    older one could be; ModelError if it is another model's.
    """
    finished = _finished(folder)
    if not finished:
        return None
    newest = finished[-1]
    with _telling(newest):
        load_weights(newest / "model.safetensors", model)
        _unflatten(optimizer, load_file(newest / "optimizer.safetensors"))
    return read_state(folder)


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return what the newest finished state's ``state.json`` holds, or None if there is no state.

    Raises TrainingError if that file is damaged or cannot be read.
    """
    finished = _finished(folder)
    if not finished:
        return None
    with _telling(finished[-1]):
        state: dict[str, Any] = json.loads((finished[-1] / "state.json").read_text())
        if not isinstance(state, dict):
            raise ValueError("state.json holds no object")
    return state


def newest_state(folder: Path) -> Path | None:
    """The folder of the newest finished state, or None if there is none."""
    return next(reversed(_finished(folder)), None)


def has_state(folder: Path) -> bool:
    """Whether there is a finished state to go on from."""
    return bool(_finished(folder))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights in a safetensors file, which holds each set of tied tensors only once, into ``model``.

    Raises ModelError if they are another model's, SafetensorError or OSError if the file cannot be read.
    """
    own = {name: tensor.shape for name, tensor in _untied(model.state_dict()).items()}
    loaded = load_file(path)
    different = sorted(name for name in own.keys() | loaded.keys() if name not in loaded or own.get(name) != loaded[name].shape)
    if different:
        raise ModelError(f"{path} holds the weights of another model: {', '.join(different[:3])} differ ({len(different)} in all)")
    model.load_state_dict(loaded, strict=False)  # what is missing is tied to what is there


@contextmanager
def _telling(state: Path) -> Iterator[None]:
    """Turn errors of reading a state into a TrainingError of one line, which says what to delete and from which state the run would go on.

    A state may have been cut short, for example by a full disk; that is why an older state is kept.
    """
    try:
        yield
    except PermissionError as error:
        raise TrainingError(f"{state} cannot be read: {first_line(error)}") from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        older = [one.name for one in _finished(state.parent) if one != state]
        rest = f"the run goes on from {older[-1]}" if older else "the run begins anew"
        raise TrainingError(f"{state} is damaged ({first_line(error)}): delete that folder, and {rest}") from error


def _finished(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One of each set of tied tensors: safetensors refuses tensors that share memory."""
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if place not in seen or tensor.numel() == 0:
            seen.add(place)
            own[name] = tensor
    return own


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[tuple[int, nn.Parameter]]:
    return enumerate(parameter for group in optimizer.param_groups for parameter in group["params"])


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().clone()
        for index, parameter in _parameters(optimizer)
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(_parameters(optimizer))
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device, parameter.dtype)
