"""What a region's id says: which served regions it replaces, and whether it was drawn by clicks alone.

Label Studio keeps ids in annotations and in exports, so both can be read without the log. The ids that its editor makes never contain
``~``. ``ABC~XYZ`` replaces ``ABC``; ``ABC+DEF~XYZ`` replaces ``ABC`` and ``DEF``; ``ABC~XYZ.UVW`` replaces ``ABC`` and ``ABC~XYZ``.
``~XYZ`` stands alone: it was drawn by clicks alone. A refined region keeps its id where that is safe, and the editor itself then replaces
the old region.
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
    """Return an id for each region of a refined instance.

    ``old`` are the ids of the instance as it is shown; ``new`` are unused ids, one for each region of the refined instance. ``in_place``:
    the old ids may be used again, each for one region. All old ids that are not used again are named in one of the returned ids, whose
    region replaces theirs.
    """
    if in_place and len(old) <= len(new):
        return [*old, *new[len(old) :]]
    kept = list(old[: len(new) - 1]) if in_place else []
    rest = old[len(kept) :]
    again = len(rest) == 1 and MARK in rest[0]
    return [*kept, f"{'+'.join(rest)}{'.' if again else MARK}{new[len(kept)]}", *new[len(kept) + 1 :]]


def superseded(regions: Iterable[Region]) -> frozenset[str]:
    """Return the ids of regions that a refined region among ``regions`` replaces. A region that the reviewer changed is never replaced."""
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
