"""Training examples for the look back: an image with a mask's outline on it, and for each phrase whether the mask is what it means.

A segmenter's mask is often inexact at its edge, and sometimes covers another object, half of an object, or more than one. The masks made
here have the same errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import Example
from sam4mllm.masks import mask_iou
from sam4mllm.outline import draw_outline

RIGHT, WRONG = 0.7, 0.5
"""IoU limits, of a mask and what a phrase means: from RIGHT on the answer is yes, below WRONG it is no; between them nothing is asked."""
FLAW_SHARE = 0.35
"""How often a mask gets a flaw: a part is missing, its whole box is filled, it lies beside the object, or it includes another object."""
SHAKE = 0.02
"""The most that an edge is moved or smoothed by, as a share of the image's width."""
MISSING = (0.3, 0.7)
"""The least and the most that is cut off from a mask, as a share of its height or width."""
BESIDE = (0.25, 0.6)
"""The least and the most that a mask is shifted from its object, as a share of its box's width and height."""

Mask = NDArray[np.bool_]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class OutlinedImage:
    """An ``image`` (H, W, 3) uint8 with the outline of a mask, and in ``asked`` pairs of a phrase and whether it means the mask."""

    image: NDArray[np.uint8]
    asked: tuple[tuple[str, bool], ...]


def draw_look(image: NDArray[np.uint8], examples: Sequence[Example], rng: np.random.Generator) -> OutlinedImage | None:
    """Draw a look back at one random instance of an image's examples. It asks about those of their phrases that :func:`balanced` chooses.

    None if there is no instance, or if no phrase is left to ask about.
    """
    found = [(example, index) for example in examples for index in range(len(example.instances))]
    if not found:
        return None
    pick = int(rng.integers(len(found)))
    shown = as_drawn(rng, mask_of(*found[pick]), lambda: mask_of(*found[int(rng.integers(len(found)))]))
    answers = [(example.phrase, is_meant(shown, (mask_of(example, at) for at in range(len(example.instances))))) for example in examples]
    asked = balanced(rng, answers)
    return OutlinedImage(draw_outline(image, shown), tuple(asked)) if asked else None


def balanced(rng: np.random.Generator, answers: Sequence[tuple[T, bool | None]]) -> list[tuple[T, bool]]:
    """Return all pairs whose answer is yes, and a random choice of the pairs whose answer is no, at most one more than there are with yes.

    Pairs with None are left out.
    """
    right = [(phrase, True) for phrase, answer in answers if answer]
    wrong = [(phrase, False) for phrase, answer in answers if answer is False]
    return [*right, *[wrong[place] for place in rng.permutation(len(wrong))[: len(right) + 1]]]


def as_drawn(rng: np.random.Generator, mask: Mask, other: Callable[[], Mask]) -> Mask:
    """Return a mask (H, W) as a segmenter might draw it: its edge moved or smoothed, and sometimes with a flaw (FLAW_SHARE).

    In a quarter of cases the edge stays. If nothing would be left, ``mask`` itself is returned. ``other`` returns a random mask, for the
    flaw that includes another object.
    """
    drawn = _shaken(rng, mask)
    if rng.random() < FLAW_SHARE:
        drawn = _spoiled(rng, drawn, other)
    return drawn if drawn.any() else mask


def is_meant(mask: Mask, meant: Iterable[Mask]) -> bool | None:
    """Whether a mask is one of those in ``meant``, by its best IoU with them; None if that lies between WRONG and RIGHT."""
    best = max((mask_iou(mask, one) for one in meant), default=0.0)
    return True if best >= RIGHT else False if best < WRONG else None


def mask_of(example: Example, index: int) -> Mask:
    """Return the mask (H, W) of one instance. Masks are expanded one by one because those of a crowd would fill a gigabyte."""
    mask: Mask = replace(example, instances=example.instances[index : index + 1]).masks()[0]
    return mask


def _shaken(rng: np.random.Generator, mask: Mask) -> Mask:
    side = max(1, round(SHAKE * mask.shape[1] * rng.random()))
    kernel = np.ones((2 * side + 1,) * 2, np.uint8)
    shown = mask.astype(np.uint8)
    match int(rng.integers(4)):
        case 0:
            shown = np.asarray(cv2.erode(shown, kernel), dtype=np.uint8)
        case 1:
            shown = np.asarray(cv2.dilate(shown, kernel), dtype=np.uint8)
        case 2:  # as a coarse grid of logits draws it
            return np.asarray(cv2.GaussianBlur(shown.astype(np.float32), (0, 0), side) > 0.5)
        case _:
            pass
    return shown > 0


def _spoiled(rng: np.random.Generator, mask: Mask, other: Callable[[], Mask]) -> Mask:
    if not mask.any():
        return mask
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    spoiled = mask.copy()
    match int(rng.integers(4)):
        case 0:  # a side is missing
            axis, share = int(rng.integers(2)), rng.uniform(*MISSING)
            start, length = (rows[0], height) if axis == 0 else (columns[0], width)
            cut = slice(start, start + int(share * length))
            spoiled[(cut, slice(None)) if axis == 0 else (slice(None), cut)] = False
        case 1:  # the whole box
            spoiled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        case 2:  # beside the thing
            shift = rng.uniform(*BESIDE, 2) * (width, height) * rng.choice([-1, 1], 2)
            matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
            spoiled = np.asarray(cv2.warpAffine(mask.astype(np.uint8), matrix, mask.shape[::-1]) > 0)
        case _:  # another thing as well
            spoiled |= other()
    return spoiled
