"""A strategy: the MLLM is asked about five points of each box, and those with sure answers become prompt points beside the box.

The points are the centre of the box and the centres of its quarters::

+---------------+
|   x       x   |
|       x       |
|   x       x   |
+---------------+
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sam4mllm.grounding.protocol import Inquiry
from sam4mllm.lockstep import Walk
from sam4mllm.points import select
from sam4mllm.strategies import Given
from sam4mllm.values import Grounding, SpokenPoints

PLACES = np.array([(0.5, 0.5), (0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)], np.float32)
"""The points (5, 2) as shares of the box's width and height, from its upper left corner."""


class Five:
    """A :class:`~sam4mllm.strategies.OtherStrategy`."""

    identity = "five-1"

    def find(self, given: Given) -> Walk[list[Grounding]]:
        groundings = yield from given.ground("box")
        asked = [(number, index) for number, found in enumerate(groundings) for index in range(len(found.boxes_px))]
        inquiries = [Inquiry(groundings[number], index, self._points_in(groundings[number].boxes_px[index])) for number, index in asked]
        answers = yield from given.ask(inquiries)
        points: list[list[SpokenPoints]] = [[] for _ in groundings]
        for (number, _), inquiry, answer in zip(asked, inquiries, answers, strict=True):
            kept, labels = select(answer.inside, given.options.thresholds)
            sure_px = inquiry.points_px[kept]
            points[number].append(SpokenPoints(sure_px[labels == 1], sure_px[labels == 0]))
        return [replace(found, points=tuple(some)) for found, some in zip(groundings, points, strict=True)]

    @staticmethod
    def _points_in(box_px: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the points (5, 2) of a box (4,) in pixels."""
        return box_px[:2] + PLACES * (box_px[2:] - box_px[:2])


FIVE = Five()
