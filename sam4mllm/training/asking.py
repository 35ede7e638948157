"""How an image is asked about in training: how many points, in which form, and how far from the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sam4mllm.errors import TrainingError
from sam4mllm.training.plan import check_numbers


@dataclass(frozen=True)
class Asking:
    """How an image is asked about. Raises TrainingError if a value is out of range or of another type.

    ``points`` is how many points are asked about one of a phrase's boxes, which is drawn anew each time; with ``every_box`` they are asked
    about each of the boxes, in random order (the released recipe). If ``points_deviation`` is not 0, their number is drawn from a normal
    distribution with the mean ``points``, from 1 to twice the mean (the released recipe: mean 10, deviation 4, from 1 to 20).

    ``joint_share`` is the share of the boxes whose points are answered in one answer, instead of in one each. ``prompt_share`` is the share
    of the phrases that have a PPG conversation too. ``shake`` is the error of the box in a question about points, as serving meets it: the
    standard deviation of its sides, as a share of its width or height. Where points are asked about in close-ups, ``close_share`` of the
    images come with a close-up of one box and ``close_points`` points. ``look_share`` of the images come with a look back
    (:mod:`sam4mllm.training.looks`), for adapters that are to look back in serving; each takes a forward pass of its own.

    ``spread`` says where points lie: "serving", half of them in the pattern that serving asks about and half anywhere in the box; or
    "disks", in a Poisson-disk pattern (:mod:`sam4mllm.training.disks`; the released recipe). ``order`` is the order of the boxes in an
    answer: "left", from left to right, which can be seen in the picture; or "annotation", as in the dataset (the released recipe).

    A PPG answer has ``prompt_inside`` points on the object and ``prompt_outside`` off it, or fewer if there are not so many. With a
    segmenter they are made as in the paper: of ``prompt_groups`` random groups of points, the ``prompt_kept`` from which the segmenter
    draws the object best are kept, and one of these is drawn each time. We found none of these four numbers published; their values are
    our choice.
    """

    points: int = 8
    joint_share: float = 0.1
    prompt_share: float = 0.15
    shake: float = 0.04
    close_share: float = 0.5
    close_points: int = 16
    points_deviation: float = 0.0
    prompt_inside: int = 3
    prompt_outside: int = 2
    prompt_groups: int = 16
    prompt_kept: int = 4
    every_box: bool = False
    spread: Literal["serving", "disks"] = "serving"
    order: Literal["left", "annotation"] = "left"
    look_share: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, _RANGES)
        if not isinstance(self.every_box, bool):
            raise TrainingError(f"every_box must be true or false, not {self.every_box!r}")
        for name, known in (("spread", ("serving", "disks")), ("order", ("left", "annotation"))):
            if getattr(self, name) not in known:
                raise TrainingError(f"{name} must be {' or '.join(known)}, not {getattr(self, name)!r}")

    def count(self, rng: np.random.Generator) -> int:
        """Draw the number of points to ask about one box."""
        if not self.points_deviation:
            return self.points
        return int(np.clip(int(rng.normal(self.points, self.points_deviation)), 1, 2 * self.points))


_RANGES: dict[str, tuple[Any, float, float]] = {
    "points": (int, 1, 200),
    "joint_share": (int | float, 0, 1),
    "prompt_share": (int | float, 0, 1),
    "shake": (int | float, 0, 1),
    "close_share": (int | float, 0, 1),
    "close_points": (int, 1, 200),
    "look_share": (int | float, 0, 1),
    "points_deviation": (int | float, 0, 200),
    "prompt_inside": (int, 1, 50),
    "prompt_outside": (int, 0, 50),
    "prompt_groups": (int, 1, 10_000),
    "prompt_kept": (int, 1, 10_000),
}
