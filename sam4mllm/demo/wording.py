"""What referring expressions are made of: words for things, and the places, sizes and relations that phrases speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sam4mllm.demo.layout import Thing

SIZE_RATIO = 1.35
"""Least ratio of the sizes of two things of which one is called larger."""
SIDE_MARGIN = 0.08
"""Least distance of the middles of two things of which one is called left of the other, as a share of the image's long side."""
IRREGULAR_PLURALS = {"cherry": "cherries", "strawberry": "strawberries", "butterfly": "butterflies", "sheep": "sheep", "fish": "fish"}
SIBILANTS = ("s", "x", "ch", "sh", "o")
SIDES = ("left", "right", "top", "bottom")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Expression:
    """A phrase, the indices of the things that it means (empty: nothing in the scene), and its kind.

    ``nouns`` are the nouns in the phrase, first that of the thing asked for. ``steps`` are phrases for the things by which the target is
    found, each with the index of the one thing that it means; a short thought says them before the answer.
    """

    phrase: str
    targets: tuple[int, ...]
    kind: str
    nouns: tuple[str, ...]
    steps: tuple[tuple[str, int], ...] = ()


def plural(noun: str) -> str:
    """The English plural of one of the sheet's nouns."""
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
    """Return the indices and nouns of those things whose noun no other thing has."""
    return [(index, thing.noun) for index, thing in enumerate(things) if thing.noun and len(indices_of(things, thing.noun)) == 1]


def stands(thing: Thing, relation: str, anchor: Thing) -> bool | None:
    """Whether a thing is clearly in one of RELATIONS to another, or clearly not; None if people could disagree."""
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
    along = sign * (thing.middle[axis] - anchor.middle[axis])
    across = abs(thing.middle[1 - axis] - anchor.middle[1 - axis])
    if along > SIDE_MARGIN and along > across:
        return True
    return False if along < -SIDE_MARGIN else None


def the_one(verdicts: Sequence[bool | None]) -> int | None:
    """Return the index of the only True; None if there is not exactly one, or if any verdict is None (in doubt)."""
    return verdicts.index(True) if verdicts.count(True) == 1 and None not in verdicts else None
