"""Simulated holdouts of reviewers who accept masks that are good enough, and the challengers that are compared on them.

Each picture has one object. The champion fails on some pictures (IoU 0 to 0.5) and is right on the others (IoU of about 0.93 with a mask
drawn by hand). Reviewers who are shown its mask redraw failures and accept nine of ten of the other masks; an accepted mask, the champion's
own, is then the truth. Unassisted pictures are drawn by hand whatever the champion's mask is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from backend.learning.gate import PairedSample

RIGHT, RIGHT_SPREAD = 0.93, 0.03
"""Mean and standard deviation of the IoU of a good mask with one drawn by hand."""
AGREED, AGREED_SPREAD = 0.97, 0.015
"""Mean and standard deviation of the IoU of two good masks with each other."""
FAILED = 0.5
ACCEPTED = 0.9
CHANGE = 0.03
"""Standard deviation of the change of IoU when another adapter draws the same thing."""


@dataclass(frozen=True)
class Challenger:
    """A simulated challenger, compared with its champion.

    ``failures``: the share of pictures on which the champion fails; ``mended``: the share of these on which the challenger is right;
    ``broken``: the share of the champion's right ones on which the challenger fails; ``loss``: by how much its IoU is lower on the other
    right ones; ``bar``: what the gate must decide, "" if there is no bar.
    """

    name: str
    failures: float
    mended: float = 0.0
    broken: float = 0.0
    loss: float = 0.0
    bar: Literal["kept", "promoted", ""] = ""

    @property
    def net(self) -> float:
        """The expected difference in IoU with masks drawn by hand, challenger minus champion."""
        right = (1 - self.failures) * (self.broken * (FAILED / 2 - RIGHT) - (1 - self.broken) * self.loss)
        return right + self.failures * self.mended * (RIGHT - FAILED / 2)


CHALLENGERS = (
    Challenger("equal", 0.2, bar="kept"),
    Challenger("mends half of 20 % failures", 0.2, mended=0.5, bar="promoted"),
    Challenger("mends half of 10 % failures", 0.1, mended=0.5),
    Challenger("breaks 5 %", 0.2, broken=0.05, bar="kept"),
    Challenger("loses 0.02 everywhere, hidden by acceptance", 0.2, loss=0.02, bar="kept"),
    Challenger("mends 3 %, loses 0.04 elsewhere, hidden by acceptance", 0.2, mended=0.15, loss=0.04, bar="kept"),
    Challenger("mends 4 %, loses 0.05 elsewhere, hidden by acceptance", 0.2, mended=0.21, loss=0.05, bar="kept"),
)


def draw_pairs(rng: np.random.Generator, kind: Challenger, pictures: int, unassisted: float) -> list[PairedSample]:
    """Simulate a holdout of so many pictures, of which the share ``unassisted`` is drawn by hand; return the pairs of IoUs."""
    freely = int(rng.binomial(1, 0.5)) if pictures * unassisted % 1 else 0
    alone = int(pictures * unassisted) + freely
    return [_draw(rng, kind, f"{index}", index < alone) for index in range(pictures)]


def _draw(rng: np.random.Generator, kind: Challenger, image: str, unassisted: bool) -> PairedSample:
    failed = rng.random() < kind.failures
    champion = rng.uniform(0, FAILED) if failed else _share(rng.normal(RIGHT, RIGHT_SPREAD))
    if failed:
        challenger = rng.normal(RIGHT, RIGHT_SPREAD) if rng.random() < kind.mended else champion + rng.normal(0, CHANGE)
        return PairedSample("thing", champion, _share(challenger), image, unassisted=unassisted)
    accepted = not unassisted and rng.random() < ACCEPTED
    if rng.random() < kind.broken:
        challenger = rng.uniform(0, FAILED)
    elif accepted:
        challenger = rng.normal(AGREED, AGREED_SPREAD) - kind.loss
    else:
        challenger = champion + rng.normal(0, CHANGE) - kind.loss
    return PairedSample("thing", 1.0 if accepted else champion, _share(challenger), image, accepted, unassisted)


def _share(value: float) -> float:
    return float(min(1.0, max(0.0, value)))
