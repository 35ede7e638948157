"""``sam4mllm serve``: its options, which become settings of the process that serves."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal

import typer

from backend.cli.server_extra import check_server_extra
from backend.support.child import serve_command
from sam4mllm.cli.options import DeviceMapOption, DeviceOption
from sam4mllm.options import DtypeName, QuantizeName

commands = typer.Typer()
PlanName = Literal["none", "auto"]


@commands.command(epilog="Example: LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=… sam4mllm serve")
def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; any but loopback needs SAM4MLLM_AUTH_PASSWORD.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on; 9090.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="demo, a model folder, or a hub id.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="A vLLM server that has the model.", metavar="URL")] = None,
    segmenter: Annotated[
        str | None, typer.Option("--segmenter", help="demo, vit_b|vit_l|vit_h:PATH, efficientvit-sam-xl1:PATH, or a folder or hub id.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", help="What serves first: an empty registry's champion.", metavar="PATH|VERSION"),
    ] = None,
    device: DeviceOption = None,
    dtype: Annotated[DtypeName | None, typer.Option("--dtype", help="Numbers of the model; auto.")] = None,
    quantize: Annotated[QuantizeName | None, typer.Option("--quantize", help="8 or 4 bit weights of the language model.")] = None,
    device_map: DeviceMapOption = None,
    plan: Annotated[PlanName | None, typer.Option("--plan", help="auto: quantisation and training mode that fit the GPU.")] = None,
) -> None:
    """Serve Label Studio. Every other setting is an environment variable; docs/reference.md lists them."""
    check_server_extra()
    from backend.cli.adapter_option import appoint_adapter, follow_adapter
    from backend.settings import read_settings

    given = {"HOST": host, "PORT": port, "MODEL": model, "ENGINE": engine, "SEGMENTER": segmenter}
    given |= {"DEVICE": device, "DTYPE": dtype, "QUANTIZE": quantize, "DEVICE_MAP": device_map, "PLAN": plan}
    for name, value in given.items():
        if value is not None:
            os.environ[f"SAM4MLLM_{name}"] = str(value)
    settings = read_settings()
    if adapter is not None:
        appoint_adapter(settings, adapter)
    follow_adapter(settings.home)
    settings = read_settings()
    if settings.plan == "auto":
        from backend.setup.gpu_plan import take_plan  # takes seconds to import torch

        os.environ.update(take_plan(settings))
    os.execv(sys.executable, serve_command())
