"""A grounder that takes a closer look: points are asked in a close-up of their box, where there is one, and else in the whole image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam4mllm import closeup
from sam4mllm.closeup import Window, window_around
from sam4mllm.grounding.protocol import Grounder, Inquiry, Question, Replies, Scene
from sam4mllm.identity import digest_of
from sam4mllm.values import Grounding


@dataclass(frozen=True, eq=False)
class CloserScene(Scene):
    """A scene and the image (H, W, 3) uint8 that close-ups are cut from. ``nbytes`` is without the image: whoever opened it counts that."""

    scene: Scene
    image: NDArray[np.uint8]


class CloserGrounder:
    """Wraps a grounder. Boxes are the wrapped one's own; so are the answers about points, each read from the closest view of them."""

    def __init__(self, grounder: Grounder) -> None:
        self.whole = grounder

    @property
    def identity(self) -> str:
        close_up = {"zoom": closeup.ZOOM, "least_gain": closeup.LEAST_GAIN, "side_px": closeup.SIDE_PX}
        return digest_of({"whole": self.whole.identity, "close_up": close_up})[:8]

    def open(self, image: NDArray[np.uint8]) -> CloserScene:
        scene = self.whole.open(image)
        return CloserScene(scene.width, scene.height, scene.nbytes, scene, image)

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        assert isinstance(scene, CloserScene)
        return self.whole.ground(scene.scene, phrases, question)

    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        assert isinstance(scene, CloserScene)
        return self.whole.ground_after(scene.scene, phrases, thoughts)

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        assert isinstance(scene, CloserScene)
        return self.whole.confirm(scene.scene, phrases)

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        assert isinstance(scene, CloserScene)
        return self.whole.name(scene.scene, phrases)

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        assert isinstance(scene, CloserScene)
        views: defaultdict[Window | None, list[int]] = defaultdict(list)
        for index, inquiry in enumerate(inquiries):
            views[window_around(inquiry.grounding.boxes_px[inquiry.index], scene.width, scene.height)].append(index)
        answers: dict[int, Replies] = {}
        for window, indices in views.items():
            asked = [inquiries[index] for index in indices]
            if window is None:
                view = scene.scene
            else:
                view = self.whole.open(window.cut(scene.image))
                asked = [_inside(window, inquiry) for inquiry in asked]
            answers |= dict(zip(indices, self.whole.ask(view, asked, joint), strict=True))
        return [answers[index] for index in range(len(inquiries))]


def _inside(window: Window, inquiry: Inquiry) -> Inquiry:
    """The question as it reads in the close-up: of what the phrase means there is this one box."""
    told, index = inquiry.grounding, inquiry.index
    box = window.inner(told.boxes_px[index])[None]
    alone = Grounding(told.phrase, box, told.box_probabilities[index : index + 1], told.no_target_probability)
    return Inquiry(alone, 0, window.inner(inquiry.points_px))
