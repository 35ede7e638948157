"""Referring expressions for a default scene, true by construction: by noun, by colour or size, by position, in the plural, or of what is
not there. For a relational scene, :func:`expressions` takes those of :mod:`sam4mllm.demo.comparisons`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sam4mllm.demo.comparisons import by_comparison, by_hops
from sam4mllm.demo.glyphs import COLOURS
from sam4mllm.demo.layout import Thing
from sam4mllm.demo.wording import RELATIONS, SIDE_MARGIN, SIDES, SIZE_RATIO, Expression, indices_of, plural, present, stands

KINDS = ("noun", "attribute", "position", "plural", "none")
SHARES = (0.30, 0.20, 0.20, 0.15, 0.15)
RELATIONAL_KINDS = ("comparison", "hops")
"""Kinds of phrases that only relational scenes have: of two things compared, and of a thing that is found by way of others."""
NEAR_MISS_SHARE = 0.5


def expressions(rng: np.random.Generator, things: Sequence[Thing], kinds: Sequence[str], nouns: Sequence[str]) -> list[Expression] | None:
    """Return one random expression for each entry of ``kinds``, no two with the same phrase.

    A noun that a phrase asks for is one of ``nouns``; the thing that it is compared with or stands beside may have another.

    Return None if for one of the entries the scene allows no expression that is not taken yet.
    """
    makers: dict[str, Callable[..., list[Expression]]] = {
        "noun": _by_noun,
        "attribute": _by_attribute,
        "position": _by_position,
        "plural": _by_plural,
        "none": _of_nothing,
        "comparison": by_comparison,
        "hops": by_hops,
    }
    chosen: list[Expression] = []
    for kind in kinds:
        seen = {expression.phrase for expression in chosen}
        candidates = [candidate for candidate in makers[kind](rng, things, nouns) if candidate.phrase not in seen]
        if not candidates:
            return None
        chosen.append(candidates[rng.integers(len(candidates))])
    return chosen


def _by_noun(rng: np.random.Generator, things: Sequence[Thing], nouns: Sequence[str]) -> list[Expression]:
    article = "the " if rng.random() < 0.75 else ""
    return [
        Expression(f"{article}{noun}", (indices[0],), "noun", (noun,))
        for noun in present(things, nouns)
        if len(indices := indices_of(things, noun)) == 1
    ]


def _by_attribute(rng: np.random.Generator, things: Sequence[Thing], nouns: Sequence[str]) -> list[Expression]:
    telling: list[Expression] = []  # several things have the noun, so the attribute is needed
    idle: list[Expression] = []  # the noun alone would do
    for noun in present(things, nouns):
        indices = indices_of(things, noun)
        for colour in COLOURS:
            matches = [index for index in indices if things[index].colour == colour]
            clear = all(things[index].colour for index in indices)
            if len(matches) == 1 and clear:
                (telling if len(indices) > 1 else idle).append(Expression(f"the {colour} {noun}", (matches[0],), "attribute", (noun,)))
        if len(indices) > 1:
            order = sorted(indices, key=lambda index: things[index].size)
            if things[order[-1]].size >= SIZE_RATIO * things[order[-2]].size:
                word = "big" if rng.random() < 0.5 else "large"
                telling.append(Expression(f"the {word} {noun}", (order[-1],), "attribute", (noun,)))
            if things[order[1]].size >= SIZE_RATIO * things[order[0]].size:
                telling.append(Expression(f"the small {noun}", (order[0],), "attribute", (noun,)))
    return telling if telling and (not idle or rng.random() < 0.75) else idle


def _by_position(rng: np.random.Generator, things: Sequence[Thing], nouns: Sequence[str]) -> list[Expression]:
    found = []
    for noun in present(things, nouns):
        indices = indices_of(things, noun)
        for side, axis, sign in zip(SIDES, (0, 0, 1, 1), (1, -1, 1, -1), strict=True):
            order = sorted(indices, key=lambda index: sign * things[index].middle[axis])
            if len(order) > 1 and abs(things[order[0]].middle[axis] - things[order[1]].middle[axis]) >= SIDE_MARGIN:
                preposition = "on" if axis == 0 else "at"
                phrase = f"the {side} {noun}" if rng.random() < 0.6 else f"the {noun} {preposition} the {side}"
                found.append(Expression(phrase, (order[0],), "position", (noun,)))
        found += _relations(things, noun, indices, holds=True)
    return found


def _relations(things: Sequence[Thing], noun: str, indices: Sequence[int], holds: bool) -> list[Expression]:
    """Return expressions such as "the cup below the dog", where only one thing is named "dog".

    With ``holds``, exactly one cup is clearly below it and all others clearly are not; without, all cups clearly are not, and the phrase
    means nothing.
    """
    found = []
    for anchor in range(len(things)):
        other = things[anchor].noun
        if not other or other == noun or len(indices_of(things, other)) > 1:
            continue
        for relation in RELATIONS:
            clearly = [stands(things[index], relation, things[anchor]) for index in indices]
            if clearly.count(True) == int(holds) and None not in clearly:
                targets = tuple(index for index, flag in zip(indices, clearly, strict=True) if flag)
                kind = "position" if holds else "none"
                found.append(Expression(f"the {noun} {relation} the {other}", targets, kind, (noun, other)))
    return found


def _by_plural(rng: np.random.Generator, things: Sequence[Thing], nouns: Sequence[str]) -> list[Expression]:
    article = "all" if rng.random() < 0.6 else "the"
    found = []
    for noun in present(things, nouns):
        indices = indices_of(things, noun)
        if len(indices) > 1:
            found.append(Expression(f"{article} {plural(noun)}", tuple(indices), "plural", (noun,)))
            for colour in COLOURS:
                matches = tuple(index for index in indices if things[index].colour == colour)
                if 1 < len(matches) < len(indices) and all(things[index].colour for index in indices):
                    found.append(Expression(f"{article} {colour} {plural(noun)}", matches, "plural", (noun,)))
    return found


def _of_nothing(rng: np.random.Generator, things: Sequence[Thing], nouns: Sequence[str]) -> list[Expression]:
    there = present(things, nouns)
    if rng.random() < NEAR_MISS_SHARE:
        near = []
        for noun in there:
            indices = indices_of(things, noun)
            colours = {things[index].colour for index in indices}
            if "" not in colours:
                near += [Expression(f"the {colour} {noun}", (), "none", (noun,)) for colour in COLOURS if colour not in colours]
            near += _relations(things, noun, indices, holds=False)
        if near:
            return near
    absent = [noun for noun in nouns if not indices_of(things, noun)]
    if not absent:
        return []
    noun = absent[rng.integers(len(absent))]
    forms = (
        f"the {noun}",
        noun,
        f"all {plural(noun)}",
        f"the {COLOURS[rng.integers(len(COLOURS))]} {noun}",
        f"the {SIDES[rng.integers(4)]} {noun}",
    )
    return [Expression(forms[rng.choice(5, p=[0.4, 0.15, 0.15, 0.2, 0.1])], (), "none", (noun,))]
