"""What other packages add to the command line (:mod:`sam4mllm.extensions`).

An entry of ``sam4mllm.commands`` is a :class:`typer.Typer`: with a name it is a group of commands, without one its commands stand beside
``predict``. Its module is imported at every start, so it imports little. An entry of ``sam4mllm.readers`` is a function that makes the
:class:`~sam4mllm.data.readers.Reader` of the data set that the entry is named after.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from sam4mllm.errors import DatasetError, ExtensionError, Sam4mllmError, first_line
from sam4mllm.extensions import all_of, find, names

if TYPE_CHECKING:
    from sam4mllm.data.readers import Reader


def add_commands(app: typer.Typer) -> None:
    """Add the commands of all packages that are installed here. Those of a broken package are left out, with a line on standard error."""
    for extension in all_of("commands"):
        try:
            commands = extension.load()
            if not isinstance(commands, typer.Typer):
                raise extension.refused("is no typer.Typer")
        except ExtensionError as error:
            print(f"warning: {error}", file=sys.stderr)
        else:
            app.add_typer(commands)


def find_reader(name: str) -> Reader:
    """Return the reader of the data set ``name``. Raises DatasetError if there is none, ExtensionError if another package's reader cannot
    be used; a Sam4mllmError that such a package raises itself is passed on.
    """
    from sam4mllm.data.readers import READERS, Reader

    extension = find("readers", name, READERS)
    if extension is not None:
        make = extension.load()
        try:
            reader = make() if callable(make) else None
        except Sam4mllmError:
            raise
        except Exception as error:  # whatever another package raises
            raise extension.refused(f"cannot be used ({type(error).__name__}: {first_line(error)})") from error
        if not isinstance(reader, Reader):
            raise extension.refused("makes no sam4mllm.data.readers.Reader")
        return reader
    if name not in READERS:
        known = ", ".join((*READERS, *names("readers", READERS)))
        raise DatasetError(f"no installed package reads {name!r:.80}; use one of {known}; label-studio comes with sam4mllm[server]")
    return READERS[name]
