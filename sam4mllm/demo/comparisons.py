"""Phrases that compare things, and phrases that find a thing by its relation to others ("the cup left of the larger dog"). They are true by
construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from sam4mllm.demo.glyphs import COLOURS
from sam4mllm.demo.layout import Thing
from sam4mllm.demo.wording import RELATIONS, SIDE_MARGIN, SIDES, SIZE_RATIO, Expression, indices_of, present, stands, the_one, unique

NEARER = 1.4
"""One thing is called the closest if the distance of the second closest is at least this many times its own."""
BETWEEN, BESIDE = (0.25, 0.75), 0.3
"""When a thing lies between two others: `BETWEEN` is where its projection on the line from one to the other must lie, and `BESIDE` how far
from that line it may be. Both are shares of the line's length.
"""
ABSENT_SHARE = 0.2
"""How often a comparison asks for what is not there, where the scene allows it."""


def by_comparison(rng: np.random.Generator, things: Sequence[Thing], nouns: Sequence[str]) -> list[Expression]:
    """Return expressions such as "the dog smaller than the cup", "the cup closest to the dog" and "the largest thing".

    A noun of the thing asked for is one of ``nouns``; the thing that it is compared with may have any noun. With a probability of
    ABSENT_SHARE the comparisons are instead those that nothing in the scene fulfils, if there are any.
    """
    found = [*_extremes(things)]
    absent: list[Expression] = []
    for noun in present(things, nouns):
        indices = indices_of(things, noun)
        for anchor, other in unique(things):
            if other == noun:
                continue
            for word, sign in (("larger", 1), ("smaller", -1)):
                verdicts = [_compare(things[index].size, things[anchor].size, sign) for index in indices]
                phrase, words = f"the {noun} {word} than the {other}", (noun, other)
                place = the_one(verdicts)
                if place is not None and len(indices) > 1:
                    found.append(Expression(phrase, (indices[place],), "comparison", words, ((f"the {other}", anchor),)))
                if not any(verdict is not False for verdict in verdicts):
                    absent.append(Expression(phrase, (), "comparison", words, ((f"the {other}", anchor),)))
            nearest = _nearest(things, indices, anchor)
            if nearest is not None:
                steps = ((f"the {other}", anchor),)
                found.append(Expression(f"the {noun} closest to the {other}", (nearest,), "comparison", (noun, other), steps))
    return absent if absent and rng.random() < ABSENT_SHARE else found


def by_hops(rng: np.random.Generator, things: Sequence[Thing], nouns: Sequence[str]) -> list[Expression]:
    """Return expressions of one of two forms: "the cup left of the larger dog", or "the thing between the cup and the shoe".

    Where the scene allows both forms, the first is returned with a probability of 0.6. Its nouns are all of ``nouns``; in the second form
    that holds for the thing asked for only.
    """
    two = _between(rng, things, nouns)
    relative = [
        expression for noun in present(things, nouns) for other in present(things, nouns) for expression in _chained(things, noun, other)
    ]
    return relative if relative and (not two or rng.random() < 0.6) else two


def _compare(size: float, other: float, sign: int) -> bool | None:
    """Whether a size is clearly larger (``sign`` 1) or clearly smaller (``sign`` -1) than another: False if the opposite is clear, None if
    neither is.
    """
    ratio = (size / other) ** sign
    return True if ratio >= SIZE_RATIO else False if ratio <= 1 / SIZE_RATIO else None


def _extremes(things: Sequence[Thing]) -> list[Expression]:
    order = sorted(range(len(things)), key=lambda index: things[index].size)
    found = []
    for word, first, second in (("largest", order[-1], order[-2]), ("smallest", order[0], order[1])):
        if _compare(things[first].size, things[second].size, 1 if word == "largest" else -1):
            found.append(Expression(f"the {word} thing", (first,), "comparison", ()))
    return found


def _nearest(things: Sequence[Thing], indices: Sequence[int], anchor: int) -> int | None:
    """Return the one of ``indices`` that is clearly the closest to the thing ``anchor``; None if there are fewer than two, or none is
    clearly the closest.
    """
    if len(indices) < 2:
        return None
    distances = [float(np.hypot(*np.subtract(things[index].middle, things[anchor].middle))) for index in indices]
    order = np.argsort(distances)
    return indices[order[0]] if distances[order[1]] >= NEARER * distances[order[0]] else None


def _between(rng: np.random.Generator, things: Sequence[Thing], nouns: Sequence[str]) -> list[Expression]:
    found = []
    for pair in combinations(unique(things), 2):
        (one, first), (other, second) = (pair[index] for index in rng.permutation(2))
        rest = [index for index in range(len(things)) if index not in (one, other)]
        verdicts = [_lies_between(things[index], things[one], things[other]) for index in rest]
        place = the_one(verdicts)
        if place is None:
            continue
        target = rest[place]
        noun = things[target].noun
        word = noun if noun in nouns and rng.random() < 0.5 else "thing"
        steps = ((f"the {first}", one), (f"the {second}", other))
        words = ((noun,) if word == noun else ()) + (first, second)
        found.append(Expression(f"the {word} between the {first} and the {second}", (target,), "hops", words, steps))
    return found


def _lies_between(thing: Thing, one: Thing, other: Thing) -> bool | None:
    start, way = np.array(one.middle), np.subtract(other.middle, one.middle)
    length = float(np.hypot(*way))
    if length < 2 * SIDE_MARGIN:
        return None
    along = float((np.array(thing.middle) - start) @ way) / length**2
    beside = float(np.hypot(*(np.array(thing.middle) - start - along * way))) / length
    if BETWEEN[0] <= along <= BETWEEN[1] and beside <= BESIDE:
        return True
    return False if along < 0 or along > 1 or beside > 2 * BESIDE else None


def _chained(things: Sequence[Thing], noun: str, other: str) -> list[Expression]:
    """Return expressions such as "the cup left of the larger dog", where ``noun`` is "cup" and ``other``, "dog", names several things.

    The phrase for the anchor ("the larger dog") tells it from the other anchors, and exactly one thing named ``noun`` stands in the
    relation to it. If ``noun`` names one thing only, that thing must clearly not stand in the same relation to any other anchor.
    """
    anchors, indices = indices_of(things, other), indices_of(things, noun)
    if noun == other or len(anchors) < 2:
        return []
    found = []
    for told, anchor in _told_apart(things, other, anchors):
        for relation in RELATIONS:
            place = the_one([stands(things[index], relation, things[anchor]) for index in indices])
            if place is None:
                continue
            target = indices[place]
            if all(stands(things[target], relation, things[rest]) is False for rest in anchors if rest != anchor) or len(indices) > 1:
                found.append(Expression(f"the {noun} {relation} {told}", (target,), "hops", (noun, other), ((told, anchor),)))
    return found


def _told_apart(things: Sequence[Thing], noun: str, indices: Sequence[int]) -> list[tuple[str, int]]:
    """Return phrases by size, side or colour, such as "the larger dog", each with the index of the one thing that it means.

    ``indices`` are the things that ``noun`` names.
    """
    found = []
    if len(indices) == 2:
        small, large = sorted(indices, key=lambda index: things[index].size)
        if _compare(things[large].size, things[small].size, 1):
            found += [(f"the larger {noun}", large), (f"the smaller {noun}", small)]
    for side, axis, sign in zip(SIDES, (0, 0, 1, 1), (1, -1, 1, -1), strict=True):
        order = sorted(indices, key=lambda index: sign * things[index].middle[axis])
        if abs(things[order[0]].middle[axis] - things[order[1]].middle[axis]) >= SIDE_MARGIN:
            found.append((f"the {side} {noun}", order[0]))
    colours = [things[index].colour for index in indices]
    if all(colours):
        found += [(f"the {name} {noun}", indices[colours.index(name)]) for name in COLOURS if colours.count(name) == 1]
    return found
