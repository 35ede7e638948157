"""What other installed packages bring, found by the entry points that they declare; this package names none of them::

    [project.entry-points."sam4mllm.segmenters"]
    grabcut = "sam4mllm_grabcut:load"

======================== ======================================== ===================================================================
group                    the entry's name is                      its object
======================== ======================================== ===================================================================
``sam4mllm.families``    a checkpoint's ``model_type``            is a :class:`~sam4mllm.grounding.families.Family`
``sam4mllm.segmenters``  what stands in ``--segmenter NAME:PATH`` makes a :class:`~sam4mllm.segmentation.protocol.Segmenter`
``sam4mllm.readers``     what ``data prepare`` takes              makes a :class:`~sam4mllm.data.readers.Reader`
``sam4mllm.strategies``  what ``--strategy`` takes                is a :class:`~sam4mllm.strategies.OtherStrategy`
``sam4mllm.commands``    without meaning                          is a :class:`typer.Typer`
======================== ======================================== ===================================================================

A package is imported only when something of it is asked for (one with commands at every start). docs/extending.md has a guide, and
``examples/`` a working package, for each of the first four.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from sam4mllm.errors import ExtensionError, first_line

log = logging.getLogger(__name__)

Group = Literal["families", "segmenters", "readers", "strategies", "commands"]


class Extension:
    """An entry point: ``name`` is its name, and ``package`` tells in words, for messages, which package declares it."""

    def __init__(self, group: Group, entry: EntryPoint) -> None:
        self._group = group
        self._entry = entry
        self.name = entry.name
        self.package = "an unknown package" if entry.dist is None else f"the package {entry.dist.name} {entry.dist.version}"

    def load(self) -> Any:
        """Import and return the object that the entry point names. Raises ExtensionError if it cannot be imported."""
        try:
            return self._entry.load()
        except (Exception, SystemExit) as error:  # whatever the module of another package raises
            raise self.refused(f"cannot be imported ({type(error).__name__}: {first_line(error)})") from error

    def refused(self, why: str) -> ExtensionError:
        """Return the error for a caller to raise that cannot use the object; ``why`` goes into its line, which names the package."""
        return ExtensionError(f"{self} {why}; update or uninstall that package")

    def __str__(self) -> str:
        return f"the entry point sam4mllm.{self._group} {self.name} of {self.package}"


def all_of(group: Group) -> list[Extension]:
    """Return what the installed packages declare, in the order of names and packages; nothing is imported. It takes some milliseconds.

    If an installed package has a malformed ``entry_points.txt``, the list is empty; the log says so, once a process.
    """
    try:
        found = [Extension(group, entry) for entry in entry_points(group=f"sam4mllm.{group}")]
    except Exception as error:  # importlib.metadata lets through what it meets in a malformed file
        _tell(f"an installed package has a malformed entry_points.txt, so that none is asked for {group} ({first_line(error)})")
        return []
    return sorted(found, key=lambda extension: (extension.name, extension.package))


def brought(group: Group, ours: Collection[str]) -> dict[str, Extension]:
    """Return what packages bring beside ``ours``, by name; nothing is imported.

    A package that claims a name of ours, or one that another package before it in the alphabet claims, is left out with a line in the log,
    once a process.
    """
    found: dict[str, Extension] = {}
    for extension in all_of(group):
        if extension.name in ours:
            _tell(f"{extension} is left out: this is one of sam4mllm's own")
        elif extension.name in found:
            _tell(f"{extension} is left out: {found[extension.name].package} brings one of that name")
        else:
            found[extension.name] = extension
    return found


def names(group: Group, ours: Collection[str]) -> tuple[str, ...]:
    """Return the names in :func:`brought`."""
    return tuple(brought(group, ours))


def find(group: Group, name: str, ours: Collection[str]) -> Extension | None:
    """Return what a package brings under a name; None if none does, or if the name is one of ``ours``."""
    return brought(group, ours).get(name)


@cache
def _tell(line: str) -> None:
    log.warning(line)
