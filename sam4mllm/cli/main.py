"""The command line. Each command prints one clear line and exits with 1 if it fails; wrong usage exits with 2.

All modules here import little: ``--help`` and a wrong option are answered without torch, transformers or numpy.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Annotated

import typer

from sam4mllm import __version__
from sam4mllm.cli import ablate, adapters, bench, data, evaluate, models, predict, scenes, train, trial
from sam4mllm.cli.plugins import add_commands
from sam4mllm.errors import Sam4mllmError
from sam4mllm.host_memory import keep_freed_memory
from sam4mllm.plain_text import OneLine

OWN = (predict, scenes, data, train, models, adapters, evaluate, ablate, trial, bench)
"""The modules of this package's commands, in the order in which ``--help`` shows them."""


def main() -> None:
    """Entry point of ``sam4mllm`` and ``python -m sam4mllm``: turns our own errors into one line on standard error."""
    if logging.lastResort is not None:  # prints what is logged without a handler, one line each
        logging.lastResort.setFormatter(OneLine())
    # Pillow warns once for each damaged metadata tag of a picture; load_image itself checks what matters, the pixels
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on some processors its import recommends another package
    keep_freed_memory()
    app = make_app()
    try:
        app()
    except Sam4mllmError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)


def make_app() -> typer.Typer:
    """All commands: this package's own, and those of the packages that are installed beside it."""
    # plain help: to draw help or a usage error with rich, typer would first load it, which takes a tenth of a second
    app = typer.Typer(name="sam4mllm", no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    app.callback()(_common)
    for module in OWN:
        app.add_typer(module.commands)
    add_commands(app)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        print(f"sam4mllm {__version__}")
        raise typer.Exit


def _common(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Text to mask: an MLLM finds it, SAM draws it."""
