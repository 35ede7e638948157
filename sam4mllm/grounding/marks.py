"""Points on objects, written as boxes without sides (x, y, x, y), in which form the answers of a model that points are spelled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sam4mllm.prompts.dialects import Dialect
from sam4mllm.values import Grounding


def as_boxes(points_px: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points (N, 2) as boxes (N, 4) without sides."""
    return np.tile(points_px.reshape(-1, 2), 2)


def said_boxes(dialect: Dialect, told: Grounding) -> NDArray[np.float32]:
    """Return the boxes (N, 4) from which an answer is spelled again: the grounding's own, or, if the model answers with points and wrote
    one for each box, those points as boxes without sides.
    """
    spoken = [one.inside_px[0] for one in told.points if len(one.inside_px)]
    if dialect.answers_with_points and len(spoken) == len(told.boxes_px) > 0:
        return as_boxes(np.array(spoken, np.float32))
    return told.boxes_px
