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
``sam4mllm.commands``    of no matter                             is a :class:`typer.Typer`
======================== ======================================== ===================================================================

A package is imported only when something of it is asked for (one with commands at every start). docs/extending.md has a guide, and
``examples/`` a working package, for each of the first four.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from sam4mllm.errors import ExtensionError, first_line

log = logging.getLogger(__name__)

Group = Literal["families", "segmenters", "readers", "strategies", "commands"]


class Extension:
    """An entry point of a package: its ``name``, and who declares it."""

    def __init__(self, group: Group, entry: EntryPoint) -> None:
        self._group = group
        self._entry = entry
        self.name = entry.name
        self.package = "an unknown package" if entry.dist is None else f"the package {entry.dist.name} {entry.dist.version}"

    def load(self) -> Any:
        """Its object. Raises ExtensionError if it cannot be imported."""
        try:
            return self._entry.load()
        except Exception as error:  # whatever the module of another package raises
            raise self.refused(f"cannot be imported ({type(error).__name__}: {first_line(error)})") from error

    def refused(self, why: str) -> ExtensionError:
        """The error to raise where it cannot be used: one line that names the package."""
        return ExtensionError(f"{self} {why}; update or uninstall that package")

    def __str__(self) -> str:
        return f"the entry point sam4mllm.{self._group} {self.name} of {self.package}"


def all_of(group: Group) -> list[Extension]:
    """What the installed packages declare, in the order of names and packages; nothing is imported."""
    found = [Extension(group, entry) for entry in entry_points(group=f"sam4mllm.{group}")]
    return sorted(found, key=lambda extension: (extension.name, extension.package))


def names(group: Group, ours: Collection[str]) -> tuple[str, ...]:
    """The names that packages bring beside ``ours``; nothing is imported."""
    return tuple(dict.fromkeys(extension.name for extension in all_of(group) if extension.name not in ours))


def find(group: Group, name: str, ours: Collection[str]) -> Extension | None:
    """Return what a package brings under a name; None if no package does, or if the name is one of ``ours``.

    If several packages claim the name, the first in the alphabet gets it. The log warns of each entry point that is left out, also of those
    that claim one of ``ours``.
    """
    claims = [extension for extension in all_of(group) if extension.name == name]
    taken = "this is one of sam4mllm's own" if name in ours else f"{claims[0].package} brings one of that name" if claims else ""
    rejected = claims if name in ours else claims[1:]
    for extension in rejected:
        log.warning("%s is left out: %s", extension, taken)
    return None if name in ours or not claims else claims[0]
