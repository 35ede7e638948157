"""Which plan fits a GPU: how the MLLM is quantised, and whether a training run goes on beside serving or while serving pauses.

All of it is arithmetic on bytes that :mod:`sam4mllm.memory` counts; no model is needed, and no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sam4mllm.options import QuantizeName

Mode = Literal["beside", "pause", "none"]
"""How a training run shares the GPU with serving: ``beside`` the serving models, while serving makes a ``pause``, or not at all, for lack
of room (``none``)."""
QUANTISATIONS: tuple[QuantizeName, ...] = get_args(QuantizeName)
"""The ways to quantise a model, the most exact first."""
PROCESS_BYTES = 1.5e9
"""Bytes that a process takes on a GPU beside those that are counted: CUDA's context and libraries, half a gigabyte and more; the logits of
a row's answers over a vocabulary of 150,000 tokens, half a gigabyte in training; and fragments that the allocator keeps. This is an
allowance, not a measurement."""
IDLE_BYTES = 0.5e9
"""Bytes that a server still takes on the GPU while serving pauses and its models are in main memory: CUDA's context."""


@dataclass(frozen=True)
class Demand:
    """The bytes on the GPU that models take if the MLLM is quantised as ``quantize`` says.

    ``serving`` is what serving takes; ``run`` is what training a LoRA of ``rank`` takes, in a process of its own. Neither includes
    PROCESS_BYTES.
    """

    quantize: QuantizeName
    rank: int
    serving: float
    run: float

    def peak(self, mode: Mode) -> float:
        """Return the most bytes that are taken on the GPU at a time in this mode, by all processes together."""
        match mode:
            case "beside":
                return self.serving + self.run + 2 * PROCESS_BYTES
            case "pause":
                return max(self.serving, self.run + IDLE_BYTES) + PROCESS_BYTES
            case "none":
                return self.serving + PROCESS_BYTES


@dataclass(frozen=True)
class Fit:
    """A demand that a GPU meets, and how a run goes on there."""

    demand: Demand
    mode: Mode

    @property
    def peak(self) -> float:
        """The most bytes that are taken on the GPU at a time."""
        return self.demand.peak(self.mode)


def choose_fit(demands: Sequence[Demand], free: float, modes: Sequence[Mode] = ("beside", "pause")) -> Fit | None:
    """Return the best demand and mode that fit into ``free`` bytes; None if nothing does.

    ``demands`` are sorted from the most exact one on, and ``modes`` by preference.

    Exact weights matter most, because every answer depends on them while a pause lasts only minutes. So the most exact demand that leaves
    room for training in any of the modes is taken, in the first mode that fits. Only if none leaves room is a model served without
    training.
    """
    serve_only: Sequence[Mode] = ("none",)
    for some in (modes, serve_only):
        for demand in demands:
            for mode in some:
                if demand.peak(mode) <= free:
                    return Fit(demand, mode)
    return None


def describe_fit(name: str, fit: Fit | None, demands: Sequence[Demand], free: float, dtype: str, pause_seconds: float) -> str:
    """Return one line: the plan for the model ``name``, or, if ``fit`` is None, how many bytes it needs at least to serve.

    ``pause_seconds`` is the longest that a run trains; ``dtype`` names the model's number type, such as ``bf16``.
    """
    if fit is None:
        least = min(demand.peak("none") for demand in demands)
        smallest = _held(demands[-1].quantize, dtype)
        return f"{name} does not fit into {_gb(free)}: {smallest} takes {_gb(least)} to serve; use a smaller model, or a GPU with that"
    held = f"{name} in {_held(fit.demand.quantize, dtype)}"
    used = f"about {_gb(fit.peak)} of {_gb(free)}"
    if fit.mode == "none":
        return f"{held} serves with {used}; there is no room to train it, even while serving pauses"
    train = f"LoRA of rank {fit.demand.rank}"
    if fit.mode == "beside":
        return f"{held} serves and trains beside it ({train}) with {used}"
    return f"{held} serves, and pauses for at most {pause_seconds / 60:.0f} minutes and a comparison while it trains ({train}), with {used}"


def _held(quantize: QuantizeName, dtype: str) -> str:
    return dtype if quantize == "none" else f"{quantize} ({dtype})"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
