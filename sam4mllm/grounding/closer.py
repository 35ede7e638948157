"""A grounder that asks about points in a close-up of their box, or in the whole image where no close-up is made: where it would enlarge too
little, or where the box is longer than the image's short side (:func:`~sam4mllm.closeup.window_around`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam4mllm import closeup
from sam4mllm.closeup import Window, window_around
from sam4mllm.grounding.many import ask_each, ground_each, open_each, parted
from sam4mllm.grounding.protocol import Grounder, Inquiry, Question, Replies, Scene
from sam4mllm.identity import digest_of
from sam4mllm.values import Grounding

VIEWS_AT_ONCE = 16
"""How many views (close-ups or whole images) are asked about together, so that few KV caches of close-ups are held at a time."""


@dataclass(frozen=True, eq=False)
class CloserScene(Scene):
    """A scene and the image (H, W, 3) uint8 that close-ups are cut from. ``nbytes`` does not include the image, because the pipeline
    counts it by itself.
    """

    scene: Scene
    image: NDArray[np.uint8]

    def read(self) -> None:
        self.scene.read()


class CloserGrounder:
    """Wraps a grounder. The wrapped grounder finds the boxes in the whole image. It is asked about points in a close-up of their box, or
    in the whole image where no close-up is made (:func:`~sam4mllm.closeup.window_around`).
    """

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
        return self.whole.ground(_own(scene).scene, phrases, question)

    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        return self.whole.ground_after(_own(scene).scene, phrases, thoughts)

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        return self.whole.confirm(_own(scene).scene, phrases)

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        return self.whole.name(_own(scene).scene, phrases)

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        return self.ask_each([(scene, inquiries)], joint)[0]

    def ground_each(self, asked: Sequence[tuple[Scene, Sequence[str]]], question: Question = "box") -> list[list[Grounding]]:
        """Boxes of each scene's phrases (:mod:`sam4mllm.grounding.many`)."""
        return ground_each(self.whole, [(_own(scene).scene, phrases) for scene, phrases in asked], question)

    def ask_each(self, asked: Sequence[tuple[Scene, Sequence[Inquiry]]], joint: bool = False) -> list[list[Replies]]:
        """Ask about the points of each scene's inquiries. The questions of up to VIEWS_AT_ONCE views are asked in one call."""
        views: dict[tuple[int, Window | None], list[tuple[int, Inquiry]]] = {}
        scenes = [_own(scene) for scene, _ in asked]
        count = 0
        for place, (scene, inquiries) in enumerate(asked):
            for inquiry in inquiries:
                window = window_around(inquiry.grounding.boxes_px[inquiry.index], scene.width, scene.height)
                seen = inquiry if window is None else _inside(window, inquiry)
                views.setdefault((place, window), []).append((count, seen))
                count += 1
        answers: dict[int, Replies] = {}
        every = list(views.items())
        for start in range(0, len(every), VIEWS_AT_ONCE):
            some = every[start : start + VIEWS_AT_ONCE]
            cuts = iter(open_each(self.whole, [window.cut(scenes[place].image) for (place, window), _ in some if window is not None]))
            opened = [
                (scenes[place].scene if window is None else next(cuts), [seen for _, seen in found]) for (place, window), found in some
            ]
            for (_, found), said in zip(some, ask_each(self.whole, opened, joint), strict=True):
                answers |= dict(zip([index for index, _ in found], said, strict=True))
        return parted([answers[index] for index in range(count)], [len(inquiries) for _, inquiries in asked])


def _own(scene: Scene) -> CloserScene:
    assert isinstance(scene, CloserScene)
    return scene


def _inside(window: Window, inquiry: Inquiry) -> Inquiry:
    """Convert an inquiry to the coordinates of a close-up. Its grounding there has only the inquiry's box, even if the phrase has more."""
    told, index = inquiry.grounding, inquiry.index
    box = window.inner(told.boxes_px[index])[None]
    alone = Grounding(told.phrase, box, told.box_probabilities[index : index + 1], told.no_target_probability)
    return Inquiry(alone, 0, window.inner(inquiry.points_px))
