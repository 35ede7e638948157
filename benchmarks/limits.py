"""The least time that a model's work could take on a device, from the device's measured limits and the counted work.

The limits are measured by multiplying large matrices and by copying a large tensor. The counted work is two operations for each weight of
the layers and each token (of the vision tower: each patch), and, for the language model, one reading of each weight a pass. Its head counts
for one token a pass. Attention between tokens is not counted, nor are the embeddings, which are only looked up.
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
    """The limits of a device: floating-point ``operations`` and ``bytes`` of memory traffic, both a second.

    A multiplication and an addition are two operations.
    """

    name: str
    operations: float
    bytes: float

    def seconds(self, operations: float, moved: float) -> float:
        """Return the least seconds for work with so many operations and bytes moved: the slower of the two decides (roofline model)."""
        return max(operations / self.operations, moved / self.bytes)


class Work:
    """A context manager that counts, while it is entered, what passes through a model.

    ``tokens`` has the number of tokens of each pass of its language model; ``patches`` is the number of patches of its images.
    """

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
        """Return the least seconds that the counted work could take within the limits.

        ``passes`` is what each counted pass of the language model costs in forward passes: more than 1 in training, which also has a
        backward pass. The vision tower counts once.
        """
        moved = (self._layers + self._head) * self._bytes_each
        language = sum(passes * limits.seconds(2 * (self._layers * tokens + self._head), moved) for tokens in self.tokens)
        return language + limits.seconds(2 * self._seer * self.patches, 0)

    def _read(self, _: Any, __: tuple[Any, ...], given: dict[str, Any]) -> None:
        rows, length, _ = given["inputs_embeds"].shape
        self.tokens.append(rows * length)

    def _see(self, _: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        self.patches += (args[0] if args else given["hidden_states"]).shape[0]


def weights_of(module: nn.Module) -> int:
    """Return the number of a module's weights, without those of LoRA."""
    return sum(weight.numel() for name, weight in module.named_parameters() if "lora_" not in name)


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure a device's limits with numbers of this type; each limit is the best of REPEATS tries."""
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
    """Return the seconds until the device has finished ``work``."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
