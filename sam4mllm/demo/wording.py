"""What referring expressions are made of: words for things, and the places, sizes and relations that phrases speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sam4mllm.demo.layout import Thing

SIZE_RATIO = 1.35
"""Least ratio of the sizes (``Thing.size``) of two things of which a phrase calls one larger or smaller than the other, or the big or small
one of several."""
SIDE_MARGIN = 0.08
"""Least distance, along an axis, of the middles of two things that a phrase tells apart by their places on this axis: left and right, or
top and bottom. It is a share of the image's long side.
"""
IRREGULAR_PLURALS = {"cherry": "cherries", "strawberry": "strawberries", "butterfly": "butterflies", "sheep": "sheep", "fish": "fish"}
SIBILANTS = ("s", "x", "ch", "sh", "o")
SIDES = ("left", "right", "top", "bottom")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Expression:
    """A phrase, the indices of the things that it means (empty: nothing in the scene), and its kind, such as ``attribute`` or ``hops``.

    ``nouns`` are the nouns in the phrase. If a noun names the thing asked for, it is the first; "the ring in front of the cup" has only the
    noun of the other thing. ``steps`` are phrases for the things by which the target is found, each with the index of the one thing that it
    means; a short thought says them before the answer.
    """

    phrase: str
    targets: tuple[int, ...]
    kind: str
    nouns: tuple[str, ...]
    steps: tuple[tuple[str, int], ...] = ()


def plural(noun: str) -> str:
    """Return the English plural of a noun of the demo's glyphs."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    return noun + ("es" if noun.endswith(SIBILANTS) and noun not in ("kiwi", "avocado") else "s")


def indices_of(things: Sequence[Thing], noun: str) -> list[int]:
    """Return the indices of the things that a noun names."""
    return [index for index, thing in enumerate(things) if thing.noun == noun]


def present(things: Sequence[Thing], nouns: Sequence[str]) -> list[str]:
    """Those of ``nouns`` that name a thing, in alphabetical order."""
    return sorted({thing.noun for thing in things if thing.noun in nouns})


def unique(things: Sequence[Thing]) -> list[tuple[int, str]]:
    """Return the indices and nouns of those things whose noun no other thing has. Nameless things, whose noun is empty, are left out."""
    return [(index, thing.noun) for index, thing in enumerate(things) if thing.noun and len(indices_of(things, thing.noun)) == 1]


def stands(thing: Thing, relation: str, anchor: Thing) -> bool | None:
    """Whether a thing is clearly in one of RELATIONS to another, or clearly not; None if people could disagree.

    It clearly is if its middle lies more than SIDE_MARGIN from the other's in the relation's direction, and farther than across it. It
    clearly is not if its middle lies more than SIDE_MARGIN in the opposite direction.
    """
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
    along = sign * (thing.middle[axis] - anchor.middle[axis])
    across = abs(thing.middle[1 - axis] - anchor.middle[1 - axis])
    if along > SIDE_MARGIN and along > across:
        return True
    return False if along < -SIDE_MARGIN else None


def the_one(verdicts: Sequence[bool | None]) -> int | None:
    """Return the index of the only True; None if there is not exactly one, or if any verdict is None (in doubt)."""
    return verdicts.index(True) if verdicts.count(True) == 1 and None not in verdicts else None
