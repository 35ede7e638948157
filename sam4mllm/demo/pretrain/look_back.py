"""A look back: masks to outline in a scene, of which some are what a phrase means."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.demo.scenes import DemoScene
from sam4mllm.outline import draw_outline

RIGHT, WRONG = 0.7, 0.5
"""Least IoU of a mask that is what a phrase means, and the IoU below which it is not; between them nothing is asked."""
FLAW_SHARE = 0.35
"""How often a mask is spoiled: a part is missing, a strip is too much, it lies beside the thing, or it holds another thing as well."""


def suggest(rng: np.random.Generator, scene: DemoScene) -> NDArray[np.bool_]:
    """A mask (H, W) as a segmenter might draw it: of a thing that a phrase means or of any other, its edge shaken, now and then spoiled."""
    meant = [target for expression in scene.expressions for target in expression.targets]
    index = int(rng.choice(meant)) if meant and rng.random() < 0.75 else int(rng.integers(len(scene.masks)))
    mask = _shaken(rng, scene.masks[index])
    if rng.random() < FLAW_SHARE:
        mask = _spoiled(rng, mask, scene, index)
    return mask if mask.any() else scene.masks[index]


def outlined(scene: DemoScene, mask: NDArray[np.bool_]) -> DemoScene:
    """The scene with the mask's outline drawn on its image."""
    return replace(scene, image=draw_outline(scene.image, mask))


def verdict(scene: DemoScene, mask: NDArray[np.bool_], targets: tuple[int, ...]) -> bool | None:
    """Whether the mask is one of the things; None if it is only half of one."""
    best = max((float((scene.masks[index] & mask).sum() / (scene.masks[index] | mask).sum()) for index in targets), default=0.0)
    return True if best >= RIGHT else False if best < WRONG else None


def _shaken(rng: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    side = max(1, round(0.02 * mask.shape[1] * rng.random()))
    kernel = np.ones((2 * side + 1,) * 2, np.uint8)
    change = (cv2.erode, cv2.dilate, lambda image, _: image)[rng.integers(3)]
    return np.asarray(change(mask.astype(np.uint8), kernel) > 0)


def _spoiled(rng: np.random.Generator, mask: NDArray[np.bool_], scene: DemoScene, index: int) -> NDArray[np.bool_]:
    if not mask.any():
        return mask
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    flaw = rng.integers(4)
    spoiled = mask.copy()
    if flaw == 0:  # a side is missing
        axis, share = int(rng.integers(2)), rng.uniform(0.3, 0.7)
        start, length = (rows[0], height) if axis == 0 else (columns[0], width)
        cut = slice(start, start + int(share * length))
        spoiled[(cut, slice(None)) if axis == 0 else (slice(None), cut)] = False
    elif flaw == 1:  # the whole box
        spoiled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    elif flaw == 2:  # beside the thing
        shift = rng.uniform(0.25, 0.6, 2) * (width, height) * rng.choice([-1, 1], 2)
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
        spoiled = np.asarray(cv2.warpAffine(mask.astype(np.uint8), matrix, mask.shape[::-1]) > 0)
    else:  # another thing as well
        other = int(rng.integers(len(scene.masks))) if scene.pair is None or index not in scene.pair else sum(scene.pair) - index
        spoiled |= scene.masks[other]
    return spoiled
