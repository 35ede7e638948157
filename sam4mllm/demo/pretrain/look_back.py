"""A look back: masks to outline in a scene, of which some are what a phrase means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sam4mllm.demo.scenes import DemoScene
from sam4mllm.outline import draw_outline
from sam4mllm.training.looks import as_drawn, is_meant

MEANT_SHARE = 0.75
"""How often the mask to be outlined is drawn from a thing that some phrase means; else it is drawn from any thing."""


def suggest(rng: np.random.Generator, scene: DemoScene) -> NDArray[np.bool_]:
    """A mask (H, W) as a segmenter might draw it: of a thing that a phrase means or of any other."""
    meant = [target for expression in scene.expressions for target in expression.targets]
    index = int(rng.choice(meant)) if meant and rng.random() < MEANT_SHARE else int(rng.integers(len(scene.masks)))

    def other() -> NDArray[np.bool_]:
        beside = int(rng.integers(len(scene.masks))) if scene.pair is None or index not in scene.pair else sum(scene.pair) - index
        mask: NDArray[np.bool_] = scene.masks[beside]
        return mask

    return as_drawn(rng, scene.masks[index], other)


def outlined(scene: DemoScene, mask: NDArray[np.bool_]) -> DemoScene:
    """The scene with the mask's outline drawn on its image."""
    return replace(scene, image=draw_outline(scene.image, mask))


def verdict(scene: DemoScene, mask: NDArray[np.bool_], targets: tuple[int, ...]) -> bool | None:
    """Whether the mask is that of one of the things ``targets``, by its best IoU with their masks; None if that is too low for a yes and
    too high for a no (:func:`~sam4mllm.training.looks.is_meant`).
    """
    return is_meant(mask, (scene.masks[index] for index in targets))
