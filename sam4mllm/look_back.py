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
from sam4mllm.grounding.protocol import Grounder
from sam4mllm.outline import COLOUR, WIDTH, draw_outline
from sam4mllm.points import heed
from sam4mllm.prompts.look_back import DEMO_QUESTION, QUESTION
from sam4mllm.values import Grounding, Instance

SHAPE = {"questions": (QUESTION, DEMO_QUESTION), "colour": COLOUR, "width": WIDTH}
"""All that shapes a look back; it becomes part of the pipeline's identity."""
DENIED = 0.5
"""P(yes) below which an instance is dropped, where that is asked for. One of which the model says neither yes nor no stays."""


def look_back(
    grounder: Grounder, image: NDArray[np.uint8], phrase: str, found: Sequence[Instance], judge: Callable[[Features], float]
) -> list[Instance]:
    """The instances of a phrase, scored anew with P(yes) of each.

    Args:
        grounder: asked once an instance, each time about an image of its own.
        image: (H, W, 3) uint8, on which the outlines are drawn.
        phrase: what the instances should show.
        found: the instances; their masks are not empty.
        judge: gives the score for an instance's features.
    """
    return [_looked(one, _ask(grounder, image, phrase, one), judge) for one in found]


def drop_denied(grounding: Grounding, looked: Sequence[Instance]) -> tuple[Grounding, list[Instance]]:
    """Drop the instances that the look back denied. Return the grounding and the instances that are left.

    If all are denied, the answer is that there is no such object. Its probability is then at least that of the least sure "no".
    """
    kept = [one for one in looked if one.features.looked >= DENIED]
    if kept or not looked:
        return grounding, kept
    absent = 1 - max(one.features.looked for one in looked)
    none = np.zeros((0, 4), np.float32)
    return replace(grounding, boxes_px=none, no_target_probability=max(absent, grounding.no_target_probability)), kept


def _ask(grounder: Grounder, image: NDArray[np.uint8], phrase: str, one: Instance) -> float:
    said = grounder.confirm(grounder.open(draw_outline(image, one.mask)), [phrase])
    return float(heed(said.inside, said.mass)[0])


def _looked(one: Instance, sure: float, judge: Callable[[Features], float]) -> Instance:
    features = replace(one.features, looked=sure)
    return replace(one, features=features, score=judge(features))
