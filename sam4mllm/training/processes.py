"""Processes that train one adapter together, as `accelerate launch` starts them; a single process is treated as a group of one.

Of n processes, each takes every n-th image of a step. Their gradients are added before the update, so that all hold the same weights at
every step. The collective operations here also let them agree, for example on when to stop or to save.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from sam4mllm.errors import TrainingError
from sam4mllm.loading import pick_device

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others: one may take hours to prompt the segmenter for its share of a large dataset."""


@dataclass(frozen=True)
class Processes:
    """This process's place in a group of ``count`` processes; ``rank`` counts from 0.

    The methods that exchange something (all but ``first`` and ``places``) must be called by all processes of the group.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    sharded: bool = False
    """Whether the base model is spread over them (FSDP2), so that all must pass through it at the same time."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def places(self, count: int) -> range:
        """Return the indices of those of ``count`` things that are this process's share: every n-th one in a group of n processes."""
        return range(self.rank, count, self.count)

    def add_up(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum of each number over all processes. A sum is exact where all processes but one give zero."""
        if self.count == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def of_first(self, number: float) -> float:
        """Return, in every process, the number that the first process gave."""
        return self.add_up([number if self.first else 0.0])[0]

    def share(self, weights: Sequence[Tensor]) -> None:
        """Give all processes the first one's weights."""
        if self.count > 1:
            for weight in weights:
                dist.broadcast(weight.detach(), 0)

    def add_gradients(self, weights: Sequence[Tensor]) -> None:
        """Replace each weight's gradient by its sum over all processes. A weight without a gradient in any process stays without one."""
        if self.count == 1:
            return
        there = self.add_up([float(weight.grad is not None) for weight in weights])
        for weight, number in zip(weights, there, strict=True):
            if number:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.contiguous()
                dist.all_reduce(weight.grad)

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.add_up([0.0])

    def leave(self) -> None:
        """Leave the group; no other method may be called afterwards."""
        if self.count > 1:
            dist.destroy_process_group()


def join_processes(device: str | None) -> Processes:
    """Join the group that a launcher started this process in, and return it; without a launcher, a group of one.

    Each process of a larger group gets a GPU of its own; it gets the CPU if ``device`` is "cpu" or there is no GPU. Raises TrainingError if
    ``device`` names one particular GPU for a larger group, if the group cannot be formed, or if FSDP is set to another version than 2;
    ModelError if there is no such device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(pick_device(device))
    from accelerate import PartialState  # noqa: PLC0415 – takes seconds

    place = pick_device(device)
    if device not in (None, "cuda", "cpu"):
        raise TrainingError(f"--device {device} is one device for several processes; leave it out, each takes a GPU of its own")
    try:
        state = PartialState(cpu=place.type == "cpu", timeout=PATIENCE)
    except (RuntimeError, ValueError, ImportError) as error:
        raise TrainingError(
            f"the processes cannot find each other ({' '.join(str(error).split())[:200]}); see accelerate config"
        ) from error
    return Processes(state.device, state.process_index, state.num_processes, _is_sharded())


def _is_sharded() -> bool:
    """Whether `accelerate config` or the launcher asked for FSDP, by the process's environment.

    Raises TrainingError if it is another version than 2.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise TrainingError("only version 2 of FSDP is supported; set fsdp_version to 2 with accelerate config, or --fsdp_version 2")
    return True
