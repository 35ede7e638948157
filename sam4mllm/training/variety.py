"""Random variation of training images, to learn more from few corrections.

Images are changed in ways that leave every phrase true. Some of the replay's images get one or two corrected objects: each is pasted, or
the model is asked for it in vain, and learns to say "none". Without the variation a model learns a few pictures by heart and says "none"
to the same objects in other pictures; without the questions in vain it says "none" too seldom when asked about things that it knew before
(docs/training.md has the figures). Two objects are there so that the model does not take any new object for the one that is asked for.
The constants are our choice.

Only objects that are new to the replay are pasted or asked for in vain: those whose noun occurs in no phrase of the replay, so that the
replay's images can be assumed not to show them. A phrase whose noun cannot be found for sure (:mod:`sam4mllm.head_noun`) does not count as
new. A pasted object is asked for by its phrase if that is true anywhere ("the small cup"); otherwise, and half of the time, by its noun
alone ("the cup"). Its colour may then be changed, since nothing is said of it. The objects of a phrase that means several are asked for by
that phrase only, and are not pasted if it is not true anywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.data.examples import Example, ExampleInstance
from sam4mllm.head_noun import head_noun
from sam4mllm.images import MIN_SIDE
from sam4mllm.masks import box_of
from sam4mllm.run_lengths import rle_area, to_rle
from sam4mllm.training.looks import mask_of
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.pool import Pool, TrainingImage

STRETCH, LIGHT = 0.2, 0.15
"""The most that a logarithm changes by: STRETCH for each side by itself, LIGHT for the brightness and for its exponent (gamma)."""
MARGIN = 0.15
"""The widest margin that is added at a side, as a share of the image's width or height. Half of the sides get none. The margin has the
image's mean colour. Nothing is cropped, so that phrases such as "left of" stay true.
"""
ZOOM = 0.35
"""The most by which the logarithm of a pasted thing's size changes."""
ROTATION = 20.0
"""The most degrees by which a pasted object is turned."""
WORDS = 3
"""The most words of a phrase that is kept when its object is pasted: "the small cup" is true anywhere, "the cup below the lamp" is not, and
its noun stands for it.
"""
_SIDES = ("left", "right", "top", "bottom", "upper", "lower", "middle", "centre", "center", "front", "back", "near", "far")
PLACES = frozenset((*_SIDES, "first", "second", "third", "last", "next"))
"""Words for a place. A phrase with one of them, also with "most" at its end ("leftmost"), may become false when its object is moved."""
IN_VAIN = 0.35
"""Share of the new objects that are asked for in vain, and not pasted."""
MOST = 2
"""The most new objects that an image of the replay gets."""
TRIES = 20
"""How many places are tried for a pasted object, until one does not cover an object that a phrase means."""

Mask = NDArray[np.bool_]


class Variety:
    """Changes images at random, as a plan says. It draws nothing from the random generator if the plan asks for no changes."""

    def __init__(self, plan: TrainingPlan, pool: Pool) -> None:
        self._plan = plan
        self._pool = pool
        self._new = _new_things(pool) if plan.paste_share else []

    def __call__(self, shown: TrainingImage, rng: np.random.Generator) -> TrainingImage:
        if shown.replayed and self._plan.paste_share:
            shown = self._with_new_things(shown, rng)
        if self._plan.augment_share and rng.random() < self._plan.augment_share:
            shown = augment(shown, rng)
        return shown

    def _with_new_things(self, shown: TrainingImage, rng: np.random.Generator) -> TrainingImage:
        """Return the image with up to two new objects, each pasted or asked for in vain; the second teaches to tell one from the other."""
        if not self._new or rng.random() >= self._plan.paste_share:
            return shown
        drawn = [self._new[kind] for kind in rng.permutation(len(self._new))[: rng.integers(1, MOST + 1)]]
        chosen = [(things, things[rng.integers(len(things))], rng.random() < IN_VAIN) for things in drawn]
        pasted = {one.picture for _, one, in_vain in chosen if not in_vain}
        for things, one, in_vain in chosen:
            if not in_vain:
                shown = self._with_pasted(shown, one, rng)
            elif not pasted & {thing.picture for thing in things}:  # else a pasted object may show it: the man's hat
                asked = replace(_asked_of(one.example, shown.examples[0], shown.image, ()), thought="")
                shown = replace(shown, examples=(*shown.examples, asked))
        return shown

    def _with_pasted(self, shown: TrainingImage, one: _NewThing, rng: np.random.Generator) -> TrainingImage:
        example, holds = one.example, _holds_anywhere(one.example.phrase)
        source = self._pool.correction(one.picture).image
        if len(example.instances) == 1 and (rng.random() < 0.5 or not holds):
            named = replace(example, phrase=f"the {one.noun}")
            return paste(shown, source, named, rng, recolour=" " not in one.noun)  # of two words the first may be a colour
        return paste(shown, source, example, rng) if holds else shown


class _NewThing(NamedTuple):
    """A phrase about an object that is new to the replay, the index of its image among the corrections, and the phrase's noun."""

    picture: int
    example: Example
    noun: str


def _new_things(pool: Pool) -> list[list[_NewThing]]:
    """Return the new objects by kind. Nouns that share a word ("racket", "tennis rackets") are one kind. Each kind is drawn equally often,
    however seldom it was corrected.
    """
    said = {form for phrase in pool.replay_phrases() for word in _words(phrase) for form in _forms(word)}
    kinds = list[list[_NewThing]]()
    known = dict[str, int]()
    for picture, examples in enumerate(pool.asked_of_corrections()):
        for example in examples:
            head = head_noun(example.phrase)
            forms = {form for word in _words(head.noun) for form in _forms(word)}
            if not example.has_target or not head.sure or said & forms:
                continue
            kind = next((known[form] for form in sorted(forms) if form in known), len(kinds))
            if kind == len(kinds):
                kinds.append([])
            known = dict.fromkeys(forms, kind) | known
            kinds[kind].append(_NewThing(picture, example, head.noun))
    return kinds


def _words(phrase: str) -> list[str]:
    return re.findall(r"\w+", phrase.lower())


def _forms(word: str) -> set[str]:
    """A word and what it may be the plural of."""
    return {word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)}


def _holds_anywhere(phrase: str) -> bool:
    words = _words(phrase)
    return len(words) <= WORDS and not PLACES & {word.removesuffix("most") for word in words}


def augment(shown: TrainingImage, rng: np.random.Generator, amount: float = 1.0) -> TrainingImage:
    """Return the image stretched, on a larger canvas, and brighter or darker, with its masks and boxes moved accordingly.

    ``amount`` scales the most of each change (STRETCH, MARGIN, LIGHT). If the image would become too small, or an object would vanish,
    ``shown`` is returned unchanged.
    """
    stretch, light, margin = amount * STRETCH, amount * LIGHT, amount * MARGIN
    height, width = shown.image.shape[:2]
    size = tuple(max(1, round(side * math.exp(rng.uniform(-stretch, stretch)))) for side in (width, height))
    left, right, top, bottom = (int(side * rng.uniform(0, margin) * rng.integers(2)) for side in np.repeat(size, 2))
    levels = np.linspace(0, 1, 256) ** math.exp(rng.uniform(-light, light)) * math.exp(rng.uniform(-light, light))
    image = (255 * levels).clip(0, 255).astype(np.uint8)[cv2.resize(shown.image, size, interpolation=cv2.INTER_AREA)]
    colour = [round(mean) for mean in image.reshape(-1, 3).mean(0)]
    image = np.asarray(cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=colour), np.uint8)
    if min(image.shape[:2]) < MIN_SIDE:
        return shown
    scale, offset = np.tile(np.array(size) / (width, height), 2), np.tile([left, top], 2)

    def moved(instance: ExampleInstance, mask: Mask) -> ExampleInstance:
        around = np.pad(_resized(mask, size), ((top, bottom), (left, right)))
        return ExampleInstance((instance.box_px * scale + offset).astype(np.float32), to_rle(around))

    examples = list[Example]()
    for example in shown.examples:
        instances = [moved(instance, mask_of(example, index)) for index, instance in enumerate(example.instances)]
        if not all(rle_area(instance.rle, *image.shape[:2]) for instance in instances):
            return shown  # a thing too small to be seen in it must not be learned as absent
        examples.append(_asked_of(example, shown.examples[0], image, instances))
    return replace(shown, image=image, examples=tuple(examples), varied=True)


def paste(
    onto: TrainingImage, source: NDArray[np.uint8], example: Example, rng: np.random.Generator, recolour: bool = False
) -> TrainingImage:
    """Paste the objects of ``example``, cut out of its image ``source`` (H, W, 3) by their masks, onto another image, and add its phrase.

    Their sizes are changed at random, they are turned a little, and each is mirrored with an even chance (copy-paste, Ghiasi et al. 2021);
    with ``recolour``, an even chance gives all of them another hue. Return ``onto`` unchanged if one of them finds no room.
    """
    image = onto.image.copy()
    taken = np.any([other.union() for other in onto.examples], axis=0)
    instances = list[ExampleInstance]()
    if recolour and rng.random() < 0.5:
        source = in_another_hue(source, rng)
    for index in range(len(example.instances)):
        place = _paste_one(image, taken, source, mask_of(example, index), rng)
        if place is None:
            return onto
        taken |= place
        instances.append(ExampleInstance(box_of(place), to_rle(place)))
    pasted = replace(_asked_of(example, onto.examples[0], image, instances), thought="")
    return replace(onto, image=image, examples=(*onto.examples, pasted), varied=True)


def in_another_hue(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) with all hues turned by the same angle; brightness and saturation stay."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(rng.integers(256))  # wraps around
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def _paste_one(image: NDArray[np.uint8], taken: Mask, source: NDArray[np.uint8], mask: Mask, rng: np.random.Generator) -> Mask | None:
    """Paste one object into ``image``, in place, and return its mask (H, W) there.

    None if the object does not fit, or would cover part of ``taken`` at each of the places tried.
    """
    if not mask.any():
        return None
    x1, y1, x2, y2 = box_of(mask).astype(int)
    zoom = math.exp(rng.uniform(-ZOOM, ZOOM)) * math.sqrt(taken.size / mask.size)
    width, height = (max(1, round(float(side * zoom))) for side in (x2 - x1, y2 - y1))
    turn = -1 if rng.random() < 0.5 else 1
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    cut = np.asarray(cv2.resize(source[y1:y2, x1:x2], (width, height), interpolation=how)[:, ::turn], np.uint8)
    cut, shape = _rotated(cut, _resized(mask[y1:y2, x1:x2], (width, height))[:, ::turn], rng.uniform(-ROTATION, ROTATION))
    height, width = shape.shape
    if width > taken.shape[1] or height > taken.shape[0] or not shape.any():
        return None
    for _ in range(TRIES):
        x, y = rng.integers(taken.shape[1] - width + 1), rng.integers(taken.shape[0] - height + 1)
        window = slice(y, y + height), slice(x, x + width)
        if not (taken[window] & shape).any():
            pasted = np.zeros_like(taken)
            pasted[window] = shape
            image[window][shape] = cut[shape]
            return pasted
    return None


def _rotated(cut: NDArray[np.uint8], shape: Mask, degrees: float) -> tuple[NDArray[np.uint8], Mask]:
    """Return an image (h, w, 3) and its mask (h, w), both turned and cropped to the smallest window around the turned mask.

    They stay as they are if nothing would be left of the mask.
    """
    height, width = shape.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    size = math.ceil(width * cos + height * sin), math.ceil(width * sin + height * cos)
    matrix[:, 2] += (size[0] - width) / 2, (size[1] - height) / 2
    turned = cv2.warpAffine(shape.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0
    if not turned.any():
        return cut, shape
    x1, y1, x2, y2 = box_of(turned).astype(int)
    moved = cv2.warpAffine(cut, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved[y1:y2, x1:x2], np.uint8), turned[y1:y2, x1:x2]


def _resized(mask: Mask, size: tuple[int, ...]) -> Mask:
    """Return a mask resized to ``size``, which is (width, height)."""
    return np.asarray(cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0, np.bool_)


def _asked_of(example: Example, of: Example, image: NDArray[np.uint8], instances: Sequence[ExampleInstance]) -> Example:
    """Return a copy of ``example`` that asks about the picture of another example, ``of``, as it is now: ``image`` (H, W, 3).

    ``instances`` are the objects that its phrase means there.
    """
    height, width = image.shape[:2]
    there = replace(example, image=of.image, sha256=of.sha256, height=height, width=width)
    return replace(there, instances=tuple(instances), ignore=None)
