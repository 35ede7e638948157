"""The look back: each mask's outline is drawn on the image, and the MLLM is asked whether that is what the phrase means.

The paper asks the MLLM about points before there is a mask; the look back asks about the mask that came of them. The answer is a feature of
the score. With an option, instances that the MLLM denies are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sam4mllm.confidence import Features
from sam4mllm.lockstep import Confirm, Walk, confirm
from sam4mllm.outline import COLOUR, WIDTH, draw_outline
from sam4mllm.points import heed
from sam4mllm.prompts.look_back import DEMO_QUESTION, QUESTION
from sam4mllm.values import Grounding, Instance

SHAPE = {"questions": (QUESTION, DEMO_QUESTION), "colour": COLOUR, "width": WIDTH}
"""All that shapes a look back; it is a part of the pipeline's identity, unless the look back is off."""
DENIED = 0.5
"""P(yes) below which an instance is dropped, where the option is set. If the model says neither yes nor no of an instance, its P(yes)
counts as 0.5, so it stays."""


def look_back(
    image: NDArray[np.uint8],
    phrase: str,
    found: Sequence[Instance],
    judge: Callable[[Features], float],
    seconds: dict[str, float],
) -> Walk[list[Instance]]:
    """Ask the MLLM about each instance of a phrase, and return the instances, scored anew with P(yes) of each.

    Args:
        image: (H, W, 3) uint8. Each outline is drawn on a copy of its own.
        phrase: what the instances should show.
        found: the instances; their masks are not empty.
        judge: gives the score for an instance's features.
        seconds: the time of the questions is added here (see :class:`~sam4mllm.lockstep.Confirm`).
    """
    looked: list[Instance] = []
    for one in found:
        said = yield from confirm(Confirm(draw_outline(image, one.mask), phrase, seconds))
        features = replace(one.features, looked=float(heed(said.inside, said.mass)[0]))
        looked.append(replace(one, features=features, score=judge(features)))
    return looked


def drop_denied(grounding: Grounding, looked: Sequence[Instance]) -> tuple[Grounding, list[Instance]]:
    """Drop the instances that the look back denied. Return the grounding and the instances that are left.

    The grounding keeps all its boxes as long as an instance is left, or if there was none. If all instances are denied, its boxes are
    removed, so that the answer is that there is no such object. The probability of this answer becomes at least 1 minus the highest P(yes)
    of the instances.
    """
    kept = [one for one in looked if one.features.looked >= DENIED]
    if kept or not looked:
        return grounding, kept
    absent = 1 - max(one.features.looked for one in looked)
    none = np.zeros((0, 4), np.float32)
    return replace(grounding, boxes_px=none, no_target_probability=max(absent, grounding.no_target_probability)), kept
