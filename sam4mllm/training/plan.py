"""How an adapter is trained: the numbers of a run, each checked, and how they follow from a file."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sam4mllm.errors import TrainingError


@dataclass(frozen=True)
class TrainingPlan:
    """How an adapter is trained. Raises TrainingError if a number is not as it should be.

    The optimiser's defaults are the released recipe's (AdamW, linear decay after a warm-up, weight decay 0.001). Its rank is 128 and its
    dropout 0.05; for dozens of corrections, not half a million sentences, half the rank and twice the dropout did best on demo scenes.

    ``batch`` counts images; ``warmup`` is a share of the steps; ``clip`` bounds the gradient's norm; ``replay_share`` of the images are no
    corrections; ``budget_seconds`` bounds the steps once their speed is known. ``recompute``: do not keep a layer's inner values for the
    way back but work them out again, which takes a third longer and far less memory; None: on a GPU.

    ``epochs``: passes over the data, each image once in each, from which the steps follow; None: ``steps`` images are drawn, a label by
    the square root of how often it is there. ``phrases``: the most that are learned of an image at once, the others being an image of
    their own; None: all. ``least_epochs``: of a large corpus so many steps more that each image is drawn as often, on average; None: none.
    ``conversation_share`` of the images come with a conversation about something else, where there are any, so that the model goes on
    answering questions. ``feature_megabytes``: memory for what the frozen vision tower makes of the images of a run, so that it need not
    see one twice; a photo of 640 × 480 takes 4 MB in Qwen2.5-VL (1,564 patches of 1,280 numbers in bfloat16).

    ``strength``: the share of what was learned that the saved adapter adds to the base model (Wortsman et al. 2022: a step back towards the
    base brings back most of what was forgotten). On demo scenes a step back of an eighth undid a loss of 0.010 on the golden set and cost
    nothing of what was learned. The released recipe has none, 1.

    ``augment_share`` of the images are stretched, put on a larger canvas and made brighter or darker. On up to
    ``paste_share`` of the replay's images, at most half, something new to the replay is pasted, cut out of a correction by its mask, and as
    many are asked for such in vain (:mod:`sam4mllm.training.variety`).

    ``squash``: both sides in pixels to which pictures are brought before the model's processor takes them (the released recipe: 672); None:
    they keep their shape, as in serving.
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

    def __post_init__(self) -> None:
        check_numbers(self, _RANGES, optional=("epochs", "phrases", "squash", "least_epochs"))
        if self.recompute not in (None, True, False):
            raise TrainingError(f"recompute must be true or false, not {self.recompute!r}")


def check_numbers(values: object, ranges: Mapping[str, tuple[Any, float, float]], optional: Collection[str] = ()) -> None:
    """Raises TrainingError unless each number is of its type and from its least to its most; the ``optional`` may be None."""
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
    "paste_share": (int | float, 0, 0.5),
    "squash": (int, 28, 4_096),  # a patch of Qwen2.5-VL's, to more than any family takes
}
"""Of each number its type, its least and its most."""

MEASURED = 10
"""Steps after which the run's speed is known and the number of its steps is fitted to its budget."""


def learning_rate(plan: TrainingPlan, step: int, steps: int) -> float:
    """A linear warm-up over a share of the steps, then a straight line to zero."""
    warmup = max(1, round(plan.warmup * steps))
    return plan.rate * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def fit_steps(steps: int, done: int, seconds: float, budget_seconds: float) -> int:
    """As many steps as the budget has room for, so that the learning rate still comes down to zero."""
    return steps if math.isinf(budget_seconds) else max(done, min(steps, int(budget_seconds * done / max(seconds, _TINY))))


def plan_of(values: Mapping[str, Any], **given: Any) -> TrainingPlan:
    """The plan with those of its fields; those ``given`` that are not None win. Raises TrainingError."""
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
