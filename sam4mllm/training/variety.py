"""More from few corrections: images changed as no phrase minds, and new things pasted on the replay's pictures or asked of them in vain.

Of fifteen corrected pictures each is seen a hundred times. Without variety a model learns them by heart and says "none" of the same things
in other pictures; without questions in vain it says "none" too seldom of what it knew (docs/training.md has the figures).

What is new has a word that no phrase of the replay has, so that the replay's pictures can be taken not to show it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import Example, ExampleInstance
from sam4mllm.masks import box_of
from sam4mllm.run_lengths import to_rle
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.pool import Pool, TrainingImage

STRETCH, LIGHT = 0.2, 0.15
"""The most by which the sides' logarithms change, each by itself, and those of the brightness and of its exponent (gamma)."""
MARGIN = 0.15
"""The most that is added beyond a side, in sides of the image; half of the sides get nothing. It has the mean colour. Nothing is cut off,
so that what stands left or right of something still does.
"""
ZOOM = 0.35
"""The most by which the logarithm of a pasted thing's size changes."""
WORDS = 3
"""The most words of a phrase that is pasted: "the small cup" holds anywhere, "the cup below the lamp" does not."""
TRIES = 20
"""Places tried for a pasted thing until one covers nothing that a phrase means."""

Mask = NDArray[np.bool_]


class Variety:
    """Changes an image as a plan says, each time otherwise. Without such a plan it does not touch the generator."""

    def __init__(self, plan: TrainingPlan, pool: Pool) -> None:
        self._plan = plan
        self._pool = pool
        self._said = {word for phrase in pool.replay_phrases() for word in _words(phrase)} if plan.paste_share else set[str]()

    def __call__(self, shown: TrainingImage, rng: np.random.Generator) -> TrainingImage:
        if shown.replayed and self._plan.paste_share:
            shown = self._with_new_things(shown, rng)
        if self._plan.augment_share and rng.random() < self._plan.augment_share:
            shown = augment(shown, rng)
        return shown

    def _with_new_things(self, shown: TrainingImage, rng: np.random.Generator) -> TrainingImage:
        """Something new pasted, as often asked for in vain."""
        share, chance = self._plan.paste_share, rng.random()
        if chance >= 2 * share:
            return shown
        donor = self._pool.draw_correction(rng)
        new = [example for example in donor.examples if example.has_target and not _words(example.phrase) <= self._said]
        if not new:
            return shown
        example = new[rng.integers(len(new))]
        if chance >= share:
            return replace(shown, examples=(*shown.examples, _with(example, shown, (), ())))
        return paste(shown, donor.image, example, rng) if len(example.phrase.split()) <= WORDS else shown


def _words(phrase: str) -> set[str]:
    return set(re.findall(r"\w+", phrase.casefold()))


def augment(shown: TrainingImage, rng: np.random.Generator) -> TrainingImage:
    """The image stretched, on a larger canvas, brighter or darker; its masks and boxes with it."""
    height, width = shown.image.shape[:2]
    size = tuple(max(1, round(side * math.exp(rng.uniform(-STRETCH, STRETCH)))) for side in (width, height))
    left, right, top, bottom = (int(side * rng.uniform(0, MARGIN) * rng.integers(2)) for side in np.repeat(size, 2))
    levels = np.linspace(0, 1, 256) ** math.exp(rng.uniform(-LIGHT, LIGHT)) * math.exp(rng.uniform(-LIGHT, LIGHT))
    image = (255 * levels).clip(0, 255).astype(np.uint8)[cv2.resize(shown.image, size, interpolation=cv2.INTER_AREA)]
    colour = [round(mean) for mean in image.reshape(-1, 3).mean(0)]
    image = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=colour)

    def moved(mask: Mask) -> Mask:
        return np.pad(_resized(mask, size), ((top, bottom), (left, right)))

    scale, offset = np.tile(np.array(size) / (width, height), 2), np.tile([left, top], 2)
    changed, examples = replace(shown, image=np.asarray(image, np.uint8)), list[Example]()
    for example in shown.examples:
        masks = [moved(mask) for mask in example.masks()]
        if not all(mask.any() for mask in masks):  # a thing too small to be seen in it must not be learned as absent
            return shown
        there = _with(example, changed, masks, example.boxes_px * scale + offset)
        examples.append(replace(there, thought=example.thought))
    return replace(changed, examples=tuple(examples))


def paste(onto: TrainingImage, source: NDArray[np.uint8], example: Example, rng: np.random.Generator) -> TrainingImage:
    """What an example means in its image (H, W, 3), cut out by its masks and pasted in other sizes, some turned over (copy-paste, Ghiasi et
    al. 2021), and its phrase asked beside the others. ``onto`` as it is where there is no room.
    """
    image = onto.image.copy()
    taken = np.any([other.union() for other in onto.examples], axis=0)
    masks = list[Mask]()
    for mask in example.masks():
        place = _paste_one(image, taken, source, mask, rng)
        if place is None:
            return onto
        taken |= place
        masks.append(place)
    pasted = replace(onto, image=image)
    return replace(pasted, examples=(*onto.examples, _with(example, pasted, masks, [box_of(mask) for mask in masks])))


def _paste_one(image: NDArray[np.uint8], taken: Mask, source: NDArray[np.uint8], mask: Mask, rng: np.random.Generator) -> Mask | None:
    """Where (H, W) it now lies; None if it does not fit, or covers something wherever it was tried."""
    if not mask.any():
        return None
    x1, y1, x2, y2 = box_of(mask).astype(int)
    zoom = math.exp(rng.uniform(-ZOOM, ZOOM)) * math.sqrt(taken.size / mask.size)
    width, height = (max(1, round(float(side * zoom))) for side in (x2 - x1, y2 - y1))
    turn = -1 if rng.random() < 0.5 else 1
    shape = _resized(mask[y1:y2, x1:x2], (width, height))[:, ::turn]
    if width > taken.shape[1] or height > taken.shape[0] or not shape.any():
        return None
    for _ in range(TRIES):
        x, y = rng.integers(taken.shape[1] - width + 1), rng.integers(taken.shape[0] - height + 1)
        window = slice(y, y + height), slice(x, x + width)
        if not (taken[window] & shape).any():
            pasted = np.zeros_like(taken)
            pasted[window] = shape
            image[window][shape] = cv2.resize(source[y1:y2, x1:x2], (width, height), interpolation=cv2.INTER_LINEAR)[:, ::turn][shape]
            return pasted
    return None


def _resized(mask: Mask, size: tuple[int, ...]) -> Mask:
    """A mask in another (width, height)."""
    return np.asarray(cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0, np.bool_)


def _with(example: Example, on: TrainingImage, masks: Sequence[Mask], boxes_px: Iterable[NDArray[np.floating]]) -> Example:
    """What an example asks, of another picture: masks (H, W) and boxes (4,) in it. What was thought of its own is left out."""
    instances = tuple(ExampleInstance(box.astype(np.float32), to_rle(mask)) for mask, box in zip(masks, boxes_px, strict=True))
    first, (height, width) = on.examples[0], on.image.shape[:2]
    own = {"image": first.image, "sha256": first.sha256, "height": height, "width": width, "ignore": None, "thought": ""}
    return replace(example, instances=instances, **own)
