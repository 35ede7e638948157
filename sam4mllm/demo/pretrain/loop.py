"""The loop that the stages of the demo's recipe share: warm-up and cosine decay, clipping, bf16 where it pays, training states, a log."""

from __future__ import annotations

import json
import math
import signal
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import torch
from torch import Tensor, nn

from sam4mllm.demo.pretrain.muon import Muon
from sam4mllm.errors import TrainingError, first_line
from sam4mllm.precision import default_dtype
from sam4mllm.training.state import load_state, read_state, save_state

Stepper = Literal["adamw", "muon"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class PretrainPlan:
    """Settings of a run: ``steps`` of ``batch`` images each; states and the log are in ``folder``.

    ``rate`` is the peak learning rate, ``warmup`` the number of steps that it takes to reach it, and ``floor`` the share of it that is left
    at the end.
    """

    folder: Path
    steps: int
    batch: int
    rate: float
    warmup: int = 300
    floor: float = 0.03
    weight_decay: float = 0.02
    threads: int = 1
    seconds_between_saves: float = 240.0
    seed: int = 1
    minutes: float | None = None
    """A budget of training time, all resumed runs together. If it is set, the learning rate falls with the time used, and the run ends when
    it is used up, if that is before ``steps``.
    """
    source: str = "random"
    """What the first weights were, in words, such as "random"; part of ``recipe``."""
    optimizer: Stepper = "adamw"
    device: torch.device = CPU

    @property
    def recipe(self) -> dict[str, float | int | str]:
        """Settings that a resumed run must share with the run that it continues; the length of the run is not among them."""
        return {"batch": self.batch, "rate": self.rate, "seed": self.seed, "weights": self.source, "optimizer": self.optimizer}

    def used_up(self, seconds: float) -> bool:
        """Whether so many seconds of training use up the budget."""
        return self.minutes is not None and seconds >= 60 * self.minutes

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of the run that is done, up to 1: of the budget's seconds if there is one, else of the steps after the warm-up.

        During the warm-up, a run without a budget has a share below 0.
        """
        if self.minutes is not None:
            return min(1.0, seconds / (60 * self.minutes))
        return min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))


def learning_rate(plan: PretrainPlan, step: int, seconds: float = 0.0) -> float:
    """Return the rate of a step: a linear warm-up, then a cosine from ``rate`` down to ``floor`` times ``rate``. ``seconds`` of training
    only count if the plan has a budget of minutes.
    """
    if step < plan.warmup:
        return plan.rate * (step + 1) / plan.warmup
    return plan.rate * (plan.floor + (1 - plan.floor) * 0.5 * (1 + math.cos(math.pi * plan.progress(step, seconds))))


def bfloat16_pays(device: torch.device = CPU) -> bool:
    """Whether this device multiplies matrices faster in bfloat16. A CPU with a unit for bfloat16 is much faster in it, one without many
    times slower.

    A CPU is timed; the fastest of five tries counts, so that other work on the machine does not decide in which precision a run continues.
    For any other device the answer is whether bfloat16 is its default dtype (:func:`~sam4mllm.precision.default_dtype`).
    """
    if device != CPU:
        return default_dtype(device) == torch.bfloat16

    def fastest(matrix: Tensor) -> float:
        return min(timeit.repeat(lambda: matrix @ matrix, number=2, repeat=5))

    return fastest(torch.ones(512, 512, dtype=torch.bfloat16)) < fastest(torch.ones(512, 512))


def run(plan: PretrainPlan, model: nn.Module, losses: Callable[[int], dict[str, Tensor]]) -> None:
    """Train ``model`` to the end of the plan, from the newest saved state on. On SIGTERM, save the state and return. ``done`` in the saved
    state says whether the end was reached.

    ``losses(step)`` makes the batch of that step and returns weighted loss terms, whose sum is minimised; a term whose name begins with an
    underscore is only logged. Tensors that it creates with torch lie on the plan's device by default, except those of ``torch.from_numpy``.
    Everything random in it must follow from the step, so that a resumed run sees what an uninterrupted one would have seen.

    Raises TrainingError if the saved state was begun with another recipe or is damaged, or if a GPU fails, and ModelError if the state is
    another model's. If the plan's device is a CPU, errors of training itself pass unchanged.
    """
    check_recipe(plan)
    torch.set_num_threads(plan.threads)
    cv2.setNumThreads(1)
    optimizer = _optimizer(plan, model.to(plan.device))
    state = load_state(plan.folder, model, optimizer)
    start = state["step"] if state else 0
    earlier = float(state.get("seconds", 0.0)) if state else 0.0
    sums: dict[str, list[float]] = defaultdict(list)
    halves = bfloat16_pays(plan.device)
    began = saved = time.monotonic()
    if state and plan.used_up(earlier):
        return
    with _noting_sigterm() as asked_to_stop, telling_of_failure(plan):
        for step in range(start, plan.steps):
            torch.manual_seed(plan.seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(plan, step, earlier + time.monotonic() - began)
            with plan.device, torch.autocast(plan.device.type, torch.bfloat16, enabled=halves):
                terms = losses(step)
            total = torch.stack([term for name, term in terms.items() if not name.startswith("_")]).sum()
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            for name, term in terms.items():
                sums[name].append(float(term.detach()))
            done = step + 1
            if done % 50 == 0 or done == plan.steps:
                means = {name: round(sum(values) / len(values), 4) for name, values in sums.items()}
                rate = (done - start) * plan.batch / (time.monotonic() - began)
                _log(plan.folder, {"step": done, "images": done * plan.batch, "images_per_second": round(rate, 1), **means})
                sums.clear()
            seconds = earlier + time.monotonic() - began
            complete = done == plan.steps or plan.used_up(seconds)
            ends = complete or bool(asked_to_stop)
            if ends or time.monotonic() - saved > plan.seconds_between_saves:
                save_state(plan.folder, done, model, optimizer, {"seconds": seconds, "done": complete, "recipe": plan.recipe})
                saved = time.monotonic()
            if ends:
                break


@contextmanager
def _noting_sigterm() -> Iterator[list[int]]:
    """Yield a list that gets an entry for each SIGTERM within the block. Outside of it SIGTERM ends the process as usual, which loses
    nothing: the state is saved by then.
    """
    noted: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def telling_of_failure(plan: PretrainPlan) -> Iterator[None]:
    """Turn a RuntimeError in a block that runs on a GPU, such as a lack of memory, into a TrainingError of one line; the last saved state
    is kept. If the plan's device is a CPU, errors pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        if plan.device == CPU:
            raise
        line = f"{plan.device} failed ({first_line(error)}); the same command goes on from the newest state in {plan.folder}"
        raise TrainingError(line) from error


def _optimizer(plan: PretrainPlan, model: nn.Module) -> torch.optim.Optimizer:
    if plan.optimizer == "muon":
        return Muon(model, plan.rate, plan.weight_decay)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98))


def check_recipe(plan: PretrainPlan) -> None:
    """Raise TrainingError if the plan's folder holds a run that was begun with another recipe, or if its ``state.json`` is damaged. States
    from before recipes were saved are accepted; a saved recipe without an optimizer stands for AdamW.
    """
    began = {"optimizer": "adamw", **(read_state(plan.folder) or {}).get("recipe", plan.recipe)}
    other = [f"{name} {began.get(name)}, not {value}" for name, value in plan.recipe.items() if began.get(name) != value]
    if other:
        raise TrainingError(f"{plan.folder} was begun with another recipe ({'; '.join(other)}): give its options, or take another folder")


def _log(folder: Path, record: dict[str, float]) -> None:
    """Append a record to the run's log, and print it as a line of a table (:func:`as_row`)."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")
    print(as_row(folder.name, record), flush=True)


def as_row(stage: str, record: Mapping[str, float]) -> str:
    """Return a line of the table: stage, step, images, images a second, and the figures that are only logged (those named ``_…``)."""
    figures = [f"{name.removeprefix('_')} {value:.3f}" for name, value in record.items() if name.startswith("_")]
    head = f"{stage:16} {record['step']:7,.0f} {record['images']:9,.0f} {record['images_per_second']:6.1f}/s"
    return " ".join([head, " · ".join(figures)]).rstrip()
