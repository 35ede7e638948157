"""Logging of a run's progress to TensorBoard or Weights & Biases through accelerate's trackers; both are optional packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam4mllm.errors import TrainingError

if TYPE_CHECKING:
    from sam4mllm.training.plan import TrainingPlan
    from sam4mllm.training.recipe import Progress


@contextmanager
def tracking(
    plan: TrainingPlan, name: str, tensorboard: Path | None = None, wandb: str | None = None
) -> Iterator[Callable[[Progress], None]]:
    """Yield a function that logs the loss, the rate and the seconds of a run's Progress. Only the first process may use this.

    With neither ``tensorboard`` nor ``wandb`` nothing is logged. At the end of the block the trackers are closed.

    Args:
        plan: the plan, which is logged as the run's configuration.
        name: the name of the run.
        tensorboard: the folder of all runs' event files, or None.
        wandb: the project at Weights & Biases, or None.

    Raises:
        TrainingError: a package is not installed.
    """
    trackers = list(_start(name, tensorboard, wandb))
    for tracker in trackers:
        tracker.store_init_configuration({field: value for field, value in asdict(plan).items() if value is not None})

    def tell(progress: Progress) -> None:
        values = {"loss": progress.loss, "rate": progress.rate, "seconds": progress.seconds}
        for tracker in trackers:
            tracker.log(values, step=progress.step)

    try:
        yield tell
    finally:
        for tracker in trackers:
            tracker.finish()


def check_trackers(tensorboard: Path | None, wandb: str | None) -> None:
    """Raises TrainingError if the package of a tracker that is not None, ``tensorboard`` or ``wandb``, is not installed."""
    for package, wanted in (("tensorboard", tensorboard), ("wandb", wandb)):
        if wanted is not None and find_spec(package) is None:
            extra = {"tensorboard": "sam4mllm[track]", "wandb": "wandb"}[package]
            raise TrainingError(f"--{package} needs the package {package}: pip install '{extra}', or leave the option out")


def _start(name: str, tensorboard: Path | None, wandb: str | None) -> Iterator[Any]:
    check_trackers(tensorboard, wandb)
    if tensorboard is None and wandb is None:
        return
    from accelerate.tracking import TensorBoardTracker, WandBTracker  # noqa: PLC0415 – takes seconds

    wanted = []
    if tensorboard is not None:
        wanted.append(TensorBoardTracker(name, logging_dir=str(tensorboard)))
    if wandb is not None:
        wanted.append(WandBTracker(wandb, name=name))
    for tracker in wanted:
        tracker.start()
        yield tracker
