"""Referring expressions for the two things of a pair, whose boxes nearly coincide. They are true by construction.

Each line below has kinds of pairs, then what their phrases look like.

::

    crossed, front, ring    "the carrot"  "the red carrot"  "the carrot behind the key"  "the thing in front of the key"
    crossed                 "the carrot across the key"
    ring                    "the hollow apple"  "the ring in front of the key"  "the key behind the ring"
    part                    "the whole cake"  "the yellow part of the cake"  "the dark part of the cake"
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.demo.glyphs import COLOURS, HUE_RANGES, rotate_hue
from sam4mllm.demo.layout import Thing, overlap
from sam4mllm.demo.wording import Expression, indices_of, unique

ELSEWHERE = 0.1
"""A part may be named by its colour if at most this share of the rest of the thing has that colour too."""
SHADE_MARGIN = 30.0
"""A part is called dark if its median lightness, 0 to 255, is at least this much below the lightness of nine tenths of the other pixels of
its thing, and light if it is at least this much above."""
PAIR = "pair"
"""The ``kind`` of the expressions that mean one of a pair."""


def of_pair(
    things: Sequence[Thing], pair: tuple[int, int], kind: str, nouns: Sequence[str]
) -> tuple[list[Expression], list[Expression], list[Expression]]:
    """Return all phrases for the first thing of a pair, all for the second, and near misses, which mean nothing in the scene.

    ``kind`` is one of :data:`~sam4mllm.demo.pairs.PAIR_KINDS`. No phrase has a noun that is not in ``nouns``, or that names several things.
    A list is empty where that leaves no phrase.
    """
    if kind == "part":
        return _of_part(things, pair, nouns)
    back, front = pair
    known = {index: noun for index, noun in unique(things) if noun in nouns}
    found: dict[int, list[Expression]] = {back: _alone(things, back, known), front: _alone(things, front, known)}
    absent = [*_wrong_colour(things, back, known), *_wrong_colour(things, front, known)]
    for index, other, words, opposite in ((back, front, "behind", "in front of"), (front, back, "in front of", "behind")):
        if other not in known:
            continue
        subject: list[tuple[str, tuple[str, ...]]] = [(known[index], (known[index], known[other]))] if index in known else []
        if _free(things, pair):
            subject.append(("thing", (known[other],)))
        relations = [words, *(["across"] if kind == "crossed" else [])]
        found[index] += [
            Expression(f"the {noun} {relation} the {known[other]}", (index,), PAIR, told)
            for noun, told in subject
            for relation in relations
        ]
        if index in known:
            absent.append(Expression(f"the {known[index]} {opposite} the {known[other]}", (), "none", (known[index], known[other])))
    if kind == "ring":
        _add_ring(found, absent, pair, known)
    return found[back], found[front], absent


def _alone(things: Sequence[Thing], index: int, known: dict[int, str]) -> list[Expression]:
    if index not in known:
        return []
    noun, colour = known[index], things[index].colour
    phrases = [f"the {noun}", noun, *([f"the {colour} {noun}"] if colour else [])]
    return [Expression(phrase, (index,), PAIR, (noun,)) for phrase in phrases]


def _wrong_colour(things: Sequence[Thing], index: int, known: dict[int, str]) -> list[Expression]:
    if index not in known or not things[index].colour:
        return []
    return [Expression(f"the {colour} {known[index]}", (), "none", (known[index],)) for colour in COLOURS if colour != things[index].colour]


def _free(things: Sequence[Thing], pair: tuple[int, int]) -> bool:
    """Whether no other thing's box overlaps a box of the pair.

    Only then does "the thing behind the key" mean one thing alone: nothing else is behind the key or in front of it.
    """
    return not any(overlap(things[index].box, thing.box) for index in pair for at, thing in enumerate(things) if at not in pair)


def _add_ring(found: dict[int, list[Expression]], absent: list[Expression], pair: tuple[int, int], known: dict[int, str]) -> None:
    back, front = pair
    if front in known:
        found[front].append(Expression(f"the hollow {known[front]}", (front,), PAIR, (known[front],)))
    found[front].append(Expression("the ring", (front,), PAIR, ()))
    if back in known:
        noun = known[back]
        found[front].append(Expression(f"the ring in front of the {noun}", (front,), PAIR, (noun,)))
        found[back].append(Expression(f"the {noun} behind the ring", (back,), PAIR, (noun,)))
        absent.append(Expression(f"the hollow {noun}", (), "none", (noun,)))


def _of_part(
    things: Sequence[Thing], pair: tuple[int, int], nouns: Sequence[str]
) -> tuple[list[Expression], list[Expression], list[Expression]]:
    whole, part = pair
    noun = things[whole].noun
    if noun not in nouns or len(indices_of(things, noun)) > 1:
        return [], [], []
    first = [Expression(phrase, (whole,), PAIR, (noun,)) for phrase in (f"the {noun}", noun, f"the whole {noun}")]
    second = [Expression(f"the {word} part of the {noun}", (part,), PAIR, (noun,)) for word in part_words(things[whole], things[part])]
    absent = [Expression(f"the {word} part of the {noun}", (), "none", (noun,)) for word in _missing_colours(things[whole])]
    return first, second, absent


def part_words(whole: Thing, part: Thing) -> list[str]:
    """The words by which a part is told from the rest of its thing: its colour, and ``dark`` or ``light``."""
    rgba = rotate_hue(whole.glyph.rgba, whole.hue, whole.brightness)
    inside = part.glyph.rgba[..., 3] > 127
    rest = (whole.glyph.rgba[..., 3] > 127) & ~inside
    words = [part.colour] if part.colour and _share(rgba[rest], part.colour) <= ELSEWHERE else []
    lightness = cv2.cvtColor(np.ascontiguousarray(rgba[..., :3]), cv2.COLOR_RGB2GRAY).astype(np.float64)
    own, low, high = np.median(lightness[inside]), np.percentile(lightness[rest], 10), np.percentile(lightness[rest], 90)
    if own <= low - SHADE_MARGIN:
        words.append("dark")
    if own >= high + SHADE_MARGIN:
        words.append("light")
    return words


def _missing_colours(whole: Thing) -> list[str]:
    rgba = rotate_hue(whole.glyph.rgba, whole.hue, whole.brightness)
    opaque = rgba[whole.glyph.rgba[..., 3] > 127]
    return [colour for colour in COLOURS if _share(opaque, colour, slack=12.0) <= 0.01]


def _share(pixels: NDArray[np.uint8], colour: str, slack: float = 0.0) -> float:
    """Which share of pixels (N, 4) could be called by a colour's name; ``slack`` widens its range of hues, in degrees."""
    hsv = cv2.cvtColor(pixels[None, :, :3].astype(np.float32) / 255.0, cv2.COLOR_RGB2HSV)[0]
    low, high = HUE_RANGES[COLOURS.index(colour)]
    hue = hsv[:, 0]
    inside = ((hue >= low - slack) & (hue <= high + slack)) | (hue + 360 <= high + slack) | (hue - 360 >= low - slack)
    return float(((hsv[:, 1] > 0.2) & (hsv[:, 2] > 0.2) & inside).mean())
