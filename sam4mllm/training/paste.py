"""Corrected objects in other pictures: cut out along the reviewer's mask, and pasted where nothing else answers to their phrase.

Dozens of corrections show a new thing in dozens of places only, and a model learns the places with it. A cut-out in a picture of other
things keeps the thing and changes all around it (Ghiasi et al., Simple Copy-Paste, CVPR 2021).
"""

from __future__ import annotations

import re
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import Example, ExampleInstance
from sam4mllm.masks import box_of, to_rle

MOST_OBJECTS = 3
"""A phrase of more objects is not pasted: they would cover each other."""
SCALES = (0.7, 1.3)
"""How much a cut-out's share of the picture is changed."""
LARGEST = 0.6
"""Of the shorter side of the picture that it is pasted into."""
SMALLEST_PX = 12
LEAST_SEEN = 0.5
"""Of an object that another one covers."""

RELATIONS = frozenset(
    {"left", "right", "leftmost", "rightmost", "top", "bottom", "upper", "lower", "middle", "center", "centre", "corner", "edge", "side"}
    | {"above", "below", "under", "over", "behind", "between", "near", "nearest", "next", "beside", "front", "back", "far", "closest"}
    | {"on", "in", "inside", "outside", "at", "by", "with", "first", "last", "second", "third", "biggest", "largest", "smallest"}
)
"""Words that say where a thing is or what is around it: true of one picture only."""

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def words(phrase: str) -> frozenset[str]:
    """A phrase's words, in small letters."""
    return frozenset(re.findall(r"\w+", phrase.lower()))


def can_be_pasted(example: Example) -> bool:
    """Whether a phrase means the same things in another picture."""
    return 1 <= len(example.instances) <= MOST_OBJECTS and not words(example.phrase) & RELATIONS


def paste(image: Image, example: Example, background: Image, rng: np.random.Generator) -> tuple[Image, Example] | None:
    """The objects of an example of ``image`` (H, W, 3) in a picture (h, w, 3), and the example as it is there.

    Each keeps about the share of the picture that it had, and lies wherever it fits; a later one may cover an earlier one in part. None if
    one is covered for the most part, or the picture is tiny.
    """
    picture = background.copy()
    height, width = picture.shape[:2]
    if min(height, width) * LARGEST < SMALLEST_PX:
        return None
    masks: list[Mask] = []
    areas: list[int] = []
    for mask in example.masks():
        cut, alpha = _cut(image, mask, _scale(image, mask, picture, rng))
        high, wide = alpha.shape
        y, x = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
        there = picture[y : y + high, x : x + wide]
        there[:] = np.rint(alpha[..., None] * cut + (1 - alpha[..., None]) * there)
        pasted = np.zeros((height, width), np.bool_)
        pasted[y : y + high, x : x + wide] = alpha > 0.5
        masks = [*(earlier & ~pasted for earlier in masks), pasted]
        areas.append(int(pasted.sum()))
    if any(np.count_nonzero(mask) <= LEAST_SEEN * area for mask, area in zip(masks, areas, strict=True)):
        return None
    instances = tuple(ExampleInstance(box_of(mask), to_rle(mask)) for mask in masks)
    return picture, replace(example, width=width, height=height, instances=instances)


def _scale(image: Image, mask: Mask, picture: Image, rng: np.random.Generator) -> float:
    """From an object's size in its image to that in the picture."""
    x1, y1, x2, y2 = box_of(mask)
    longest = max(x2 - x1, y2 - y1)
    share = longest / max(image.shape[:2]) * rng.uniform(*SCALES)
    target = min(share * max(picture.shape[:2]), LARGEST * min(picture.shape[:2]))
    return float(max(target, SMALLEST_PX) / longest)


def _cut(image: Image, mask: Mask, scale: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An object (h, w, 3) and how much of each pixel is its own (h, w), 0 to 1."""
    x1, y1, x2, y2 = box_of(mask).astype(int)
    size = (max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    colours = cv2.resize(image[y1:y2, x1:x2].astype(np.float32), size, interpolation=way)
    alpha = cv2.resize(mask[y1:y2, x1:x2].astype(np.float32), size, interpolation=way)
    return np.asarray(colours, np.float32), np.asarray(alpha, np.float32)
