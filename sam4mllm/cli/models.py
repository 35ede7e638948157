"""``sam4mllm models``: the commands that look after model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sam4mllm.cli.options import hush

commands = typer.Typer(name="models", no_args_is_help=True, help="Models as first published, made ready to be loaded.")


@commands.callback()
def _group() -> None:
    """Do nothing. Without a callback, Typer would drop the name of an app's only command."""


@commands.command(epilog="Example: sam4mllm models convert Qwen-VL-Chat qwen-vl-chat")
def convert(
    folder: Annotated[Path, typer.Argument(help="Qwen-VL-Chat or InternVL as first published, or a LoRA adapter with older names.")],
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
) -> None:
    """Write a published folder anew as safetensors under today's names. No code that comes with it is run."""
    hush()
    from sam4mllm.conversion.convert import convert_folder

    print(f"{out}: {convert_folder(folder, out)}")
