"""What a region's id says: which served masks it takes the place of, and whether it was drawn by clicks alone.

Label Studio keeps ids in annotations and in exports, so that both can be read without the log. ``~`` is no letter of the ids that its
editor makes. ``ABC~XYZ`` takes the place of ``ABC``, ``ABC+DEF~XYZ`` of both, ``ABC~XYZ.UVW`` of ``ABC`` and of ``ABC~XYZ``; ``~XYZ``
stands alone. A refined region keeps its id where that is safe, and the editor itself then puts it in the old one's place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from backend.label_studio.wire import Region

MARK = "~"
TAKEN_OVER = "prediction"
"""The origin of a region that nobody changed."""


def alone_id(new: str) -> str:
    """The id of a region that was drawn by clicks or boxes alone."""
    return MARK + new


def stands_alone(region_id: str) -> bool:
    """Whether a region was drawn by clicks or boxes alone, outside of all that was served."""
    return region_id.startswith(MARK)


def refined_ids(old: Sequence[str], new: Sequence[str], in_place: bool) -> list[str]:
    """Ids for the regions of a refined instance: ``old`` are those of the one that is shown, ``new`` unused ones.

    ``in_place``: the old ids may be used again, each for one region.
    """
    if in_place and len(old) <= len(new):
        return [*old, *new[len(old) :]]
    kept = list(old[: len(new) - 1]) if in_place else []
    rest = old[len(kept) :]
    again = len(rest) == 1 and MARK in rest[0]
    return [*kept, f"{'+'.join(rest)}{'.' if again else MARK}{new[len(kept)]}", *new[len(kept) + 1 :]]


def superseded(regions: Iterable[Region]) -> frozenset[str]:
    """Ids of regions as they were served, that a refined region of the same annotation takes the place of. An edited one never is."""
    origins: Mapping[str, object] = {str(region.get("id")): region.get("origin") for region in regions}
    replaced = {old for new in origins for old in _replaced(new, origins)}
    return frozenset(old for old in replaced if origins[old] == TAKEN_OVER)


def _replaced(region_id: str, known: Iterable[str]) -> set[str]:
    if MARK not in region_id or stands_alone(region_id):
        return set()
    roots, _, last = region_id.partition(MARK)
    earlier = last.split(".")[:-1]
    former = {f"{roots}{MARK}{'.'.join(earlier[: count + 1])}" for count in range(len(earlier))}
    return ({*roots.split("+")} | former) & {*known}
