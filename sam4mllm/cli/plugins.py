"""What other packages add to the command line. They declare it as entry points, so that this package imports none of them::

    [project.entry-points."sam4mllm.commands"]
    serve = "backend.cli.serve:commands"

    [project.entry-points."sam4mllm.readers"]
    label-studio = "backend.cli.label_studio_reader:label_studio_reader"

An entry of ``sam4mllm.commands`` is a :class:`typer.Typer`: with a name it is a group of commands, without one its commands stand beside
``predict``. Its module is imported at every start, so it imports little. An entry of ``sam4mllm.readers`` is a function that makes the
:class:`~sam4mllm.data.readers.Reader` of the data set that the entry is named after.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import typer

from sam4mllm.errors import DatasetError, first_line
from sam4mllm.plain_text import one_line

if TYPE_CHECKING:
    from sam4mllm.data.readers import Reader

COMMANDS = "sam4mllm.commands"
READERS = "sam4mllm.readers"


class _UnusableError(Exception):
    """The entry point cannot be used; the message is one line that names the package it comes from."""


def add_commands(app: typer.Typer) -> None:
    """Add the commands of all packages that are installed here. Those of a broken package are left out, with a line on standard error."""
    for entry in entry_points(group=COMMANDS):
        try:
            commands = _load(entry, "command")
            if not isinstance(commands, typer.Typer):
                raise _UnusableError(_line(entry, "command", f"{entry.value} is no typer.Typer"))
        except _UnusableError as error:
            print(f"warning: {error}", file=sys.stderr)
        else:
            app.add_typer(commands)


def find_reader(name: str) -> Reader:
    """The reader of another package for the data set ``name``. Raises DatasetError if there is none, or it cannot be imported."""
    for entry in entry_points(group=READERS, name=name):
        try:
            made: Reader = _load(entry, "reader")()
        except _UnusableError as error:
            raise DatasetError(str(error)) from error
        return made
    raise DatasetError(f"no installed package reads {name}; install sam4mllm with the extra server: pip install 'sam4mllm[server]'")


def _load(entry: EntryPoint, what: str) -> Any:
    try:
        return entry.load()
    except Exception as error:  # whatever the module of another package raises
        raise _UnusableError(_line(entry, what, f"{type(error).__name__}: {first_line(error)}")) from error


def _line(entry: EntryPoint, what: str, reason: str) -> str:
    package = "an unknown package" if entry.dist is None else f"the package {entry.dist.name} {entry.dist.version}"
    return one_line(f"the {what} {entry.name} of {package} cannot be imported ({reason}); update or uninstall that package")
