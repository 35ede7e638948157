"""Points on objects as boxes without sides, x and y twice: what the answer of a model that points is spelled by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sam4mllm.prompts.dialects import Dialect
from sam4mllm.values import Grounding


def as_boxes(points_px: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points (N, 2) as boxes (N, 4) without sides."""
    return np.tile(points_px.reshape(-1, 2), 2)


def said_boxes(dialect: Dialect, told: Grounding) -> NDArray[np.float32]:
    """The boxes (N, 4) that spell an answer: a grounding's own, or the points that stand for them where the model points and said them."""
    spoken = [one.inside_px[0] for one in told.points if len(one.inside_px)]
    if dialect.answers_with_points and len(spoken) == len(told.boxes_px) > 0:
        return as_boxes(np.array(spoken, np.float32))
    return told.boxes_px
