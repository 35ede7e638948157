"""The training loop for LoRA adapters: what is trained, on which images, and by which loss.

The base model and its vision tower are frozen. The adapter is either new or goes on from a stored one, whatever its rank. The loss is the
text cross-entropy of the answers alone, as in the paper (section 3.3). A step takes a few images, each with all of its phrases and their
points in one packed row.

A run follows from its plan and its data alone: the images of a step, their points and the dropout come from the seed and the step's number.
A run that is killed and resumed ends with the weights of an unbroken one. (Under a time budget, its length depends on the machine.)

Several processes share the images of a step and add up their gradients, so that all hold the same adapter. The number of processes changes
nothing but the order in which gradients are added.

On a GPU the adapter is in float32, and autocast does the arithmetic in the model's precision. An image that does not fit into memory is
tried again with half of its phrases each time, and left out if even a single phrase does not fit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sam4mllm.adapters.lora import attach, attach_stored, save_adapter
from sam4mllm.durable import remove
from sam4mllm.errors import TrainingError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.training.ahead import ImagesAhead
from sam4mllm.training.asking import Asking
from sam4mllm.training.collate import Collator
from sam4mllm.training.identity import identity_of_run
from sam4mllm.training.image_gradients import ImageGradients
from sam4mllm.training.plan import MEASURED, TrainingPlan, fit_steps, learning_rate
from sam4mllm.training.pool import Pool, TrainingImage
from sam4mllm.training.processes import Processes
from sam4mllm.training.sharding import shard
from sam4mllm.training.squash import check_squash
from sam4mllm.training.state import load_state, read_state, save_state
from sam4mllm.training.targets import NO_TARGETS, Targets
from sam4mllm.training.validation import ValidationCurve, Validator
from sam4mllm.training.variety import Variety

log = logging.getLogger(__name__)

LOSSES = 3
"""The most losses of one image: one for the whole image, one for a close-up and one for a look back."""
LATE = 1.25
"""How many times its time budget a run may take; after that it ends at whatever step it is."""


@dataclass(frozen=True)
class Progress:
    """What a run reports after each ``step``, which counts from 1.

    ``steps`` is the number of steps as known so far; a time budget or the validation loss may still lower it. ``loss`` is the mean of the
    losses of the step's images, in nats a token; ``rate`` is the learning rate. ``seconds`` is the time spent so far, with that before a
    resumption. ``validation`` is the validation loss after the step, None if it was not measured.
    """

    step: int
    steps: int
    loss: float
    rate: float
    seconds: float
    validation: float | None = None


class Trainer:
    """One training run. ``train`` goes on until the steps or the time budget are used up, until the validation loss no longer falls, or
    until ``stop`` is called.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        pool: Pool,
        plan: TrainingPlan,
        folder: Path,
        asking: Asking | None = None,
        targets: Targets = NO_TARGETS,
        processes: Processes | None = None,
        start: Path | None = None,
    ) -> None:
        """Attach the adapter and prepare the run; ``folder`` is where its training states are kept.

        ``start`` is the folder of an adapter to go on from; None begins with a new one. Raises TrainingError if the plan does not go with
        the pool, the number of processes, the dialect or the model; RegistryError if ``start`` is not safe to load; ModelError if the
        adapter cannot be attached.
        """
        plan = replace(plan, steps=pool.steps_of(plan))
        self.plan = plan
        self.folder = folder
        self._checkpoint = checkpoint
        self._grounder = MllmGrounder(checkpoint)
        asking = asking or Asking()
        self._pool = pool
        self._processes = processes or Processes(self._grounder.device)
        if plan.batch < self._processes.count:
            raise TrainingError(f"batch is {plan.batch}, fewer images than the {self._processes.count} processes; use a larger batch")
        check_squash(plan.squash, checkpoint.dialect)
        self._identity = identity_of_run(plan, asking, targets, checkpoint, pool, start)
        torch.manual_seed(plan.seed)
        if start is None:
            self.model = attach(checkpoint, plan.rank, plan.alpha, plan.dropout)
        else:
            self.model = attach_stored(checkpoint, start, plan.dropout)
        if plan.recompute if plan.recompute is not None else self._grounder.device.type == "cuda":
            _recompute(checkpoint.model)
        if self._processes.sharded:
            shard(checkpoint.model, checkpoint.source)
        self._trained = nn.ParameterList([weight for weight in self.model.parameters() if weight.requires_grad])
        self._start = None if start is None else [weight.detach().cpu().clone() for weight in self._trained]
        self._optimizer = torch.optim.AdamW(self._trained, lr=plan.rate, weight_decay=plan.weight_decay)
        half = checkpoint.model.dtype is torch.float16  # float16 holds no number below 6e-8, so small gradients would become zero
        self._scaler = torch.amp.GradScaler(self._grounder.device.type, enabled=half)
        self._places = self._processes.places(plan.batch)
        collator = Collator(self._grounder, asking, targets)
        varying = Variety(plan, pool)
        self._gradients = ImageGradients(self._grounder, collator, varying, self._trained, plan, self._scaler, self._processes)
        self._validator = Validator(pool.set_aside, self._measure, self._trained, folder, self._processes)
        self._stopped = False
        self.kept: int | None = None
        """The step whose weights a run that ended early has kept; None for any other run."""

    def stop(self) -> None:
        """End after the current step and save the training state. It may be called from a signal handler or another thread."""
        self._stopped = True

    def train(self, tell: Callable[[Progress], None] = lambda progress: None) -> bool:
        """Train, from the last saved state on if there is one, and call ``tell`` after each step, in the first process only.

        Return True if the run is complete, False if it was stopped. If the validation loss ended the run, the weights are those with which
        that loss was lowest. Raises TrainingError if the saved state is damaged or another run's, if the loss or the gradient is no finite
        number, if no image of a step can be used, or if memory runs out with FSDP; ModelError if the state is of another model;
        DatasetError if an image cannot be read; OSError if a state cannot be written.
        """
        step, steps, before = self._resume()
        self._images = ImagesAhead(self._shown)
        began = saved = time.monotonic()
        stopped, *_ = self._agree(0.0, False)
        self.model.train()
        try:
            while step < steps and not stopped:
                loss = self._step(step, steps)
                step += 1
                validation = self._validator.look(step, steps)
                if self._validator.curve.has_turned:
                    steps = step
                spent = before + time.monotonic() - began
                if self._processes.first:
                    tell(Progress(step, steps, loss, learning_rate(self.plan, step - 1, steps), spent, validation))
                stopped, spent, due = self._agree(spent, time.monotonic() - saved > self.plan.seconds_between_saves)
                late = spent > LATE * self.plan.budget_seconds  # the machine got slower; what was learned so far may still win
                if step == MEASURED:
                    steps = fit_steps(steps, step, spent, self.plan.budget_seconds)
                elif late:
                    steps = step
                if step in (MEASURED, steps) or due or stopped:
                    self._save(step, steps, spent)
                    saved = time.monotonic()
        finally:
            self._images.close()
            self.model.eval()
        if step >= steps and self._validator.curve.has_turned:
            self._validator.restore()
            self.kept = self._validator.curve.lowest[0]
            log.info("the run ended early, after %d steps, with the weights after step %d", step, self.kept)
        return step >= steps

    def _measure(self, place: int) -> float | None:
        """The loss of the picture at an index of those that are set aside."""
        self.model.eval()
        try:
            return self._gradients.measure(self._pool.validation_picture(place), _generator(self.plan.seed, place + 1))
        finally:
            self.model.train()

    def _agree(self, spent: float, due: bool) -> tuple[bool, float, bool]:
        """Return whether any process was stopped, the seconds that the first process has spent, and whether that one is due to save."""
        own = [spent, float(due)] if self._processes.first else [0.0, 0.0]
        stopped, spent, of_first = self._processes.add_up([float(self._stopped), *own])
        return stopped > 0, spent, of_first > 0

    def save_adapter(self, folder: Path, base: str) -> None:
        """Write the adapter as a plain PEFT folder that names the base model ``base``. Call it last: it may change the trained weights.

        ``plan.strength`` below 1 takes back a part of what was learned (Wortsman et al. 2022). A new adapter is scaled down, towards the
        base model; the weights of a continued one are interpolated with those that the run began with.
        """
        if self._start is None:
            save_adapter(self.model, folder, base, self.plan.strength)
            return
        for weight, start in zip(self._trained, self._start, strict=True):
            weight.data.lerp_(start.to(weight.device), 1 - self.plan.strength)
        save_adapter(self.model, folder, base)

    def _resume(self) -> tuple[int, int, float]:
        """Load the last saved state, if any; return the step to begin with, the number of steps, and the seconds spent so far."""
        self._drop_former()
        state = load_state(self.folder, self._trained, self._optimizer)
        self._check_alike(-1 if state is None else int(state["step"]))
        self._processes.share(list(self._trained))
        if state is None:
            return 0, self.plan.steps, 0.0
        if state["identity"] != self._identity:
            raise TrainingError(f"{self.folder} holds a run with other data or settings; go on with those, or remove it to begin anew")
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        self._validator.curve = ValidationCurve([(int(at), float(loss)) for at, loss in state.get("validation", [])])
        return int(state["step"]), int(state["steps"]), float(state["seconds"])

    def _drop_former(self) -> None:
        """Remove the states of an earlier release, which do not record the run's identity; that run begins anew."""
        if self._processes.first and (state := read_state(self.folder)) is not None and "identity" not in state:
            log.warning("%s holds a run of an earlier release; it is begun anew", self.folder)
            remove(self.folder)
        self._processes.wait()

    def _check_alike(self, step: int) -> None:
        if self._processes.add_up([float(step != self._processes.of_first(step))])[0]:
            raise TrainingError(f"the processes find different training states in {self.folder}; it must be one folder for all of them")

    def _save(self, step: int, steps: int, seconds: float) -> None:
        if not self._processes.first:
            return
        state = {"identity": self._identity, "steps": steps, "seconds": seconds, "scaler": self._scaler.state_dict()}
        state["validation"] = self._validator.curve.points
        save_state(self.folder, step, self._trained, self._optimizer, state)

    def _step(self, step: int, steps: int) -> float:
        self._optimizer.zero_grad(set_to_none=True)
        losses = {}
        for place, shown in zip(self._places, self._images.take(step), strict=True):
            losses[place] = self._gradients.learn(shown, _generator(self.plan.seed, step, place + 1))
        self._gradients.keep_pace()
        used = self._gather(losses)
        if not used:
            raise TrainingError(f"no image of step {step + 1} could be used; see the log, and free memory or use smaller images")
        if not math.isfinite(sum(used)):
            raise TrainingError(f"the loss is {sum(used)} at step {step + 1}; use a lower rate")
        self._processes.add_gradients(list(self._trained))
        self._update(step, steps)
        return sum(used) / len(used)

    def _shown(self, step: int) -> list[TrainingImage]:
        """This process's images of a step."""
        plan, places = self.plan, self._places
        if plan.epochs is None:
            return self._pool.draw(_generator(plan.seed, step), plan.batch, plan.replay_share, plan.conversation_share, places)
        return self._pool.deal(plan.seed, [step * plan.batch + place for place in places], plan.replay_share, plan.conversation_share)

    def _gather(self, losses: Mapping[int, list[Tensor]]) -> list[float]:
        """Return the losses of all processes in one list, in the order of the images in the step.

        ``losses`` are this process's, by the image's index in the step. They are read from the device only here, so that the CPU does not
        wait for the device after each image.
        """
        table = np.zeros((self.plan.batch, 2, LOSSES))
        for place, some in losses.items():
            table[place, :, : len(some)] = [[float(loss) for loss in some], [1.0] * len(some)]
        table = np.array(self._processes.add_up(table.ravel().tolist())).reshape(table.shape)
        used: list[float] = table[:, 0][table[:, 1] > 0].tolist()
        return used

    def _update(self, step: int, steps: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.plan, step, steps)
        self._scaler.unscale_(self._optimizer)
        norm = float(nn.utils.clip_grad_norm_(self._trained, self.plan.clip))
        if not math.isfinite(norm) and not self._scaler.is_enabled():  # an enabled scaler skips such a step and lowers its scale
            raise TrainingError(f"the gradient is {norm} at step {step + 1}; use a lower rate")
        self._scaler.step(self._optimizer)
        self._scaler.update()


def _recompute(model: Any) -> None:
    """Turn on activation checkpointing, whose method transformers 5.23 renamed; the re-entrant kind would need an input with a gradient."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _generator(*seed: int) -> np.random.Generator:
    """Return a generator that is independent of those for other numbers.

    NumPy ignores a last number of 0, so callers count the images of a step from 1.
    """
    return np.random.default_rng(seed)
