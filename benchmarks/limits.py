"""What a device can do at most, measured, and what a model asks of it, counted: the least time that a model's work could take.

The limits are multiplications of large matrices and copies of a large tensor. Of the model are counted two operations for each weight of
its layers and each token, and one reading of each weight a pass; not attention between tokens, nor the embeddings, which are looked up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

REPEATS = 10


@dataclass(frozen=True)
class Limits:
    """``operations`` (floating point, a multiplication and an addition being two) and ``bytes`` of memory traffic, each a second."""

    name: str
    operations: float
    bytes: float

    def seconds(self, operations: float, moved: float) -> float:
        """The least that work can take which needs both: whichever is the slower (a roofline)."""
        return max(operations / self.operations, moved / self.bytes)


class Work:
    """Counts what passes through a model while this is entered: the tokens of each pass of its language model, and its images' patches."""

    def __init__(self, model: Any) -> None:
        self.tokens: list[int] = []
        self.patches = 0
        self._language, self._vision = model.model.language_model, model.model.visual
        self._layers, self._head, self._seer = (weights_of(part) for part in (self._language.layers, model.lm_head, self._vision))
        self._bytes_each = model.dtype.itemsize

    def __enter__(self) -> Work:
        watched = ((self._language, self._read), (self._vision, self._see))
        self._hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module, note in watched]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def seconds(self, limits: Limits, passes: int = 1) -> float:
        """The least; ``passes`` are those of the layers for each that was counted: training goes back through them as well."""
        moved = (self._layers + self._head) * self._bytes_each
        language = sum(passes * limits.seconds(2 * (self._layers * tokens + self._head), moved) for tokens in self.tokens)
        return language + limits.seconds(2 * self._seer * self.patches, 0)

    def _read(self, _: Any, __: tuple[Any, ...], given: dict[str, Any]) -> None:
        rows, length, _ = given["inputs_embeds"].shape
        self.tokens.append(rows * length)

    def _see(self, _: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        self.patches += (args[0] if args else given["hidden_states"]).shape[0]


def weights_of(module: nn.Module) -> int:
    """How many a module has, those of LoRA left out."""
    return sum(weight.numel() for name, weight in module.named_parameters() if "lora_" not in name)


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """The best of some tries."""
    gpu = device.type == "cuda"
    side, copied = (8192, 1 << 30) if gpu else (1024, 1 << 26)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    name = torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} threads"
    multiplied = min(timed(lambda: left @ right, device) for _ in range(REPEATS))
    moved = min(timed(lambda: target.copy_(source), device) for _ in range(REPEATS))
    return Limits(name, 2 * side**3 / multiplied, 2 * copied / moved)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done it."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
