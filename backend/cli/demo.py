"""``sam4mllm demo``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.cli.server_extra import check_server_extra

commands = typer.Typer()


@commands.command(epilog="Example: sam4mllm demo out/demo --port 8080")
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo keeps its data for the next time.")] = Path("out/demo"),
    port: Annotated[int, typer.Option("--port", help="Label Studio's port.")] = 8080,
    backend_port: Annotated[int, typer.Option("--backend-port", help="The backend's port.")] = 9090,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page when it is ready.")] = False,
) -> None:
    """A real Label Studio with described pictures and their masks, until Ctrl-C."""
    check_server_extra()
    from backend.demo.launch import run_demo

    run_demo(folder, port, backend_port, open_browser=browser)
