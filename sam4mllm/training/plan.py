"""Training plans: the numbers of a training run, their checks, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sam4mllm.errors import TrainingError


@dataclass(frozen=True)
class TrainingPlan:
    """The numbers of a training run. Raises TrainingError if one is out of range or of another type.

    The optimiser's defaults are the released recipe's (AdamW, linear decay after a warm-up, weight decay 0.001). That recipe has rank 128
    and dropout 0.05; on demo scenes, with dozens of corrections instead of half a million sentences, half its rank and twice its dropout
    did best.

    ``batch``: images in a step. ``warmup``: length of the warm-up, as a share of the steps. ``clip``: the most that the gradient's norm may
    be. ``replay_share``: share of the images without a conversation that come from the replay and not from corrections, if there is a
    replay. ``budget_seconds``: the time that the run may take; the number of steps is cut to it once MEASURED steps are done.
    ``seconds_between_saves``: the time after which the training state is saved again. ``recompute``: use activation checkpointing, which
    takes a third longer and far less memory; None: only on a GPU.

    ``epochs``: how often each correction is learned from, which gives the number of steps; None: there are ``steps`` steps, whose images
    are drawn at random (:class:`~sam4mllm.training.pool.Pool`). ``least_epochs``: how often each correction of a large dataset is drawn at
    least, on average, for which the number of steps is raised; None: it is not raised. ``phrases``: the most phrases of an image that are
    learned at once, the others counting as an image of their own; None: all.

    ``conversation_share``: share of the images that come with a conversation on anything else, if there are conversations, so that the
    model does not forget how to answer questions. ``feature_megabytes``: memory for the frozen vision tower's outputs, so that it need not
    run twice on the same image; a photo of 640 × 480 takes 4 MB in Qwen2.5-VL (1,564 patches of 1,280 numbers in bfloat16).

    ``strength``: share of what was learned that the saved adapter keeps. Below 1 it is a step back towards the base model, which restores
    most of what was forgotten (Wortsman et al. 2022). On demo scenes a step back of an eighth undid a loss of 0.010 on the golden set and
    cost nothing of what was learned. The released recipe takes no step back (1).

    ``augment_share``: share of the images that are stretched, put on a larger canvas and made brighter or darker. ``paste_share``:
    share of the replay's images that get objects which are new to the replay: cut out of corrections by their masks and pasted, or asked
    for in vain (:mod:`sam4mllm.training.variety`).

    ``validation_share``: share of the corrected pictures that are not learned from but measured, to end the run when it learns no more
    (:mod:`sam4mllm.training.validation`).

    ``squash``: length in pixels to which both sides of an image are resized before the model's processor sees it (the released recipe:
    672); None: images keep their shape, as in serving.
    """

    steps: int = 400
    batch: int = 4
    rate: float = 1e-4
    rank: int = 64
    alpha: int = 128
    dropout: float = 0.1
    strength: float = 0.875
    weight_decay: float = 0.001
    warmup: float = 0.03
    clip: float = 1.0
    replay_share: float = 0.3
    seed: int = 1
    budget_seconds: float = math.inf
    seconds_between_saves: float = 120.0
    recompute: bool | None = None
    epochs: float | None = None
    phrases: int | None = None
    conversation_share: float = 0.2
    feature_megabytes: int = 256
    squash: int | None = None
    least_epochs: float | None = None
    augment_share: float = 0.0
    paste_share: float = 0.0
    validation_share: float = 0.1

    def __post_init__(self) -> None:
        check_numbers(self, _RANGES, optional=("epochs", "phrases", "squash", "least_epochs"))
        if self.recompute not in (None, True, False):
            raise TrainingError(f"recompute must be true or false, not {self.recompute!r}")


def check_numbers(values: object, ranges: Mapping[str, tuple[Any, float, float]], optional: Collection[str] = ()) -> None:
    """Check attributes of ``values`` against ``ranges``, which holds the type, the least and the most value of each by its name.

    Attributes named in ``optional`` may be None. Raises TrainingError at the first one that does not fit.
    """
    for name, (kind, least, most) in ranges.items():
        value = getattr(values, name)
        number = isinstance(value, kind) and not isinstance(value, bool)
        if (not number or not least <= value <= most) and not (value is None and name in optional):
            what = "a whole number" if kind is int else "a number"
            raise TrainingError(f"{name} must be {what} from {least:g} to {most:g}, not {value!r}")


_TINY = 1e-12
"""The least of what must be more than zero."""
_RANGES: dict[str, tuple[Any, float, float]] = {
    "steps": (int, 1, 10_000_000),
    "batch": (int, 1, 10_000),
    "rate": (int | float, _TINY, 1),
    "rank": (int, 1, 4_096),  # the most that sam4mllm.adapters.files lets in
    "alpha": (int, 1, 1_000_000),
    "dropout": (int | float, 0, 0.99),
    "strength": (int | float, _TINY, 1),
    "weight_decay": (int | float, 0, 1),
    "warmup": (int | float, 0, 1),
    "clip": (int | float, _TINY, math.inf),
    "replay_share": (int | float, 0, 1),
    "seed": (int, 0, 2**63 - 1),
    "budget_seconds": (int | float, _TINY, math.inf),
    "seconds_between_saves": (int | float, 0, math.inf),
    "epochs": (int | float, _TINY, 100_000),
    "least_epochs": (int | float, _TINY, 100_000),
    "phrases": (int, 1, 10_000),
    "conversation_share": (int | float, 0, 1),
    "feature_megabytes": (int, 0, 10_000_000),
    "augment_share": (int | float, 0, 1),
    "paste_share": (int | float, 0, 1),
    "validation_share": (int | float, 0, 0.5),
    "squash": (int, 28, 4_096),  # from a merged patch of Qwen2.5-VL (2 × 2 patches of 14 pixels) to more than any family takes
}
"""The type, the least and the most value of each number."""

MEASURED = 10
"""How many steps are timed before the number of steps is fitted to the time budget."""


def learning_rate(plan: TrainingPlan, step: int, steps: int) -> float:
    """Return the learning rate of a step, which counts from 0: a linear warm-up, then a linear decay to zero."""
    warmup = max(1, round(plan.warmup * steps))
    return plan.rate * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def fit_steps(steps: int, done: int, seconds: float, budget_seconds: float) -> int:
    """Return how many steps, at most ``steps`` and at least ``done``, fit into the budget when ``done`` of them took ``seconds``."""
    return steps if math.isinf(budget_seconds) else max(done, min(steps, int(budget_seconds * done / max(seconds, _TINY))))


def plan_of(values: Mapping[str, Any], **given: Any) -> TrainingPlan:
    """Return the plan with the fields in ``values``; those in ``given`` that are not None override them.

    If ``given`` has ``steps``, ``epochs`` and ``least_epochs`` do not count.

    Raises TrainingError if ``values`` has an unknown field, or both steps and epochs, or if a field of the plan is out of range or of
    another type.
    """
    names = [field.name for field in fields(TrainingPlan)]
    unknown = sorted(values.keys() - set(names))
    if unknown:
        raise TrainingError(f"unknown {', '.join(map(repr, unknown))[:200]}; known are {', '.join(names)}")
    if values.get("epochs") is not None and "steps" in values:
        raise TrainingError("steps and epochs are both given; leave one out")
    own = {name: value for name, value in given.items() if value is not None}
    if "steps" in own:
        own |= {"epochs": None, "least_epochs": None}
    return TrainingPlan(**{**values, **own})
