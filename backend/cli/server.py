"""The commands that need a server, beside those of :mod:`sam4mllm.cli.main`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli import batch as batch_cli
from backend.cli import export as export_cli
from backend.cli import setup as doctor_cli
from backend.demo.launch import run_demo
from backend.settings import read_settings
from backend.support.child import serve_command
from sam4mllm.cli.data import other_readers
from sam4mllm.cli.main import DeviceOption, app
from sam4mllm.cli.main import main as run
from sam4mllm.cli.options import DeviceMapOption, DtypeName, QuantizeName

if TYPE_CHECKING:
    from sam4mllm.data.readers import Reader


def main() -> None:
    """Entry point of ``sam4mllm``."""
    run()


def _label_studio() -> Reader:
    from backend.learning.exports import label_studio_reader  # noqa: PLC0415 – takes long to import

    return label_studio_reader()


other_readers["label-studio"] = _label_studio
app.command(epilog=doctor_cli.DOCTOR_EXAMPLE)(doctor_cli.doctor)
app.command(epilog=doctor_cli.CONNECT_EXAMPLE)(doctor_cli.connect)
app.command(epilog=batch_cli.EXAMPLE)(batch_cli.batch)
app.command(epilog=export_cli.EXAMPLE)(export_cli.export)


@app.command(epilog="Example: LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=… sam4mllm serve")
def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; any but loopback needs SAM4MLLM_AUTH_PASSWORD.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on; 9090.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="demo, a model folder, or a hub id.")] = None,
    segmenter: Annotated[
        str | None, typer.Option("--segmenter", help="demo, vit_b|vit_l|vit_h:PATH, efficientvit-sam-xl1:PATH, or a folder or hub id.")
    ] = None,
    device: DeviceOption = None,
    dtype: Annotated[DtypeName | None, typer.Option("--dtype", help="Numbers of the model; auto.")] = None,
    quantize: Annotated[QuantizeName | None, typer.Option("--quantize", help="8 or 4 bit weights of the language model.")] = None,
    device_map: DeviceMapOption = None,
) -> None:
    """Serve Label Studio. Every other setting is an environment variable; docs/reference.md lists them."""
    given = {"HOST": host, "PORT": port, "MODEL": model, "SEGMENTER": segmenter, "DEVICE": device}
    given |= {"DTYPE": dtype, "QUANTIZE": quantize, "DEVICE_MAP": device_map}
    for name, value in given.items():
        if value is not None:
            os.environ[f"SAM4MLLM_{name}"] = str(value)
    read_settings()
    os.execv(sys.executable, serve_command())


@app.command(epilog="Example: sam4mllm demo out/demo --port 8080")
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo keeps its data for the next time.")] = Path("out/demo"),
    port: Annotated[int, typer.Option("--port", help="Label Studio's port.")] = 8080,
    backend_port: Annotated[int, typer.Option("--backend-port", help="The backend's port.")] = 9090,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page when it is ready.")] = False,
) -> None:
    """A real Label Studio with described pictures and their masks, until Ctrl-C."""
    run_demo(folder, port, backend_port, open_browser=browser)
