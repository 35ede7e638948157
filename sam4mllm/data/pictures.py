"""Finds the files of a data set's pictures. All are looked for before the first is read, so that missing ones are reported at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from sam4mllm.errors import DatasetError


def find_pictures(names: Iterable[Sequence[str]], folders: Sequence[Path]) -> Mapping[str, Path]:
    """Return the file of each picture, by the picture's first name.

    ``names`` are the possible names of each picture. A picture is looked for in all ``folders`` under each of its names, as the whole path
    and as its last part alone.

    Raises DatasetError if any picture is missing. Its message is one line with the number of missing pictures, the name of the first, and
    the folder to put it into: the folder of the last picture that was found, or the first of ``folders`` if none was.
    """
    there = [folder for folder in folders if folder.is_dir()]
    wanted = {picture[0]: picture for picture in names}
    found: dict[str, Path] = {}
    hint: tuple[Path, int] | None = None
    missing: list[str] = []
    for first, picture in wanted.items():
        spelled = [spelling for name in picture for spelling in _spellings(name)]
        # most pictures lie in the folder of the one before and are spelled the same way, so that place is tried first
        likely = [hint] if hint else []
        places = [*likely, *((folder, form) for folder in there for form in range(len(spelled)))]
        place = next((one for one in places if one[1] < len(spelled) and os.path.isfile(one[0] / spelled[one[1]])), None)
        if place is None:
            missing.append(first)
        else:
            hint, found[first] = place, place[0] / spelled[place[1]]
    if missing:
        count = f"{len(missing):,} of {len(wanted):,} pictures are missing, the first is" if len(missing) > 1 else "a picture is missing:"
        raise DatasetError(f"{count} {PurePosixPath(missing[0]).name}; put it into {hint[0] if hint else folders[0]}")
    return found


def _spellings(name: str) -> list[str]:
    """Return the paths inside a folder that an untrusted name may stand for: the name itself and its last part.

    The list is empty if the name could lead out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.name:
        return []
    return list(dict.fromkeys((str(path), path.name)))
