"""``sam4mllm batch``: its options, and what it prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from backend.cli.server_extra import check_server_extra
from backend.errors import BatchError
from sam4mllm.cli.options import DeviceMapOption, DeviceOption, JsonOption, hush
from sam4mllm.options import DtypeName, QuantizeName

commands = typer.Typer()
MOST_REASONS = 10


@commands.command(epilog="Example: LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=… sam4mllm batch 7 --shard 1/2")
def batch(
    target: Annotated[
        str, typer.Argument(help="A project's number in Label Studio, a dataset, or a folder of pictures.", metavar="DATASET|PROJECT")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Where results are kept; under SAM4MLLM_HOME.")] = None,
    shard: Annotated[
        str, typer.Option("--shard", help="Work on the i-th of n parts of the tasks, on this machine.", metavar="i/n")
    ] = "1/1",
    ray: Annotated[bool, typer.Option("--ray", help="Work on a Ray cluster: RAY_ADDRESS, or one on this machine.")] = False,
    phrase: Annotated[list[str] | None, typer.Option("--phrase", help="What to find in a folder's pictures; may be given again.")] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="A LoRA adapter; the champion of SAM4MLLM_HOME.", metavar="PATH|VERSION")
    ] = None,
    part: Annotated[int, typer.Option("--part", min=1, help="Tasks that are stored and pushed together.")] = 50,
    model: Annotated[str | None, typer.Option("--model", help="demo, a model folder, a hub id, or none.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="A vLLM server that has the model.", metavar="URL")] = None,
    segmenter: Annotated[
        str | None, typer.Option("--segmenter", help="demo, vit_b|vit_l|vit_h:PATH, efficientvit-sam-xl1:PATH, or a folder or hub id.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0, max=1, help="The least score of what the segmenter finds by the phrase; 0.5.")
    ] = None,
    device: DeviceOption = None,
    dtype: Annotated[DtypeName | None, typer.Option("--dtype", help="Numbers of the model; auto.")] = None,
    quantize: Annotated[QuantizeName | None, typer.Option("--quantize", help="8 or 4 bit weights of the language model.")] = None,
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pre-annotate in bulk; what was stopped or killed goes on with the same command. Settings are those of serve."""
    check_server_extra()
    models = {"MODEL": model, "SEGMENTER": segmenter, "DEVICE": device, "DTYPE": dtype, "QUANTIZE": quantize, "DEVICE_MAP": device_map}
    given = {**models, "ENGINE": engine, "THRESHOLD": threshold}
    os.environ |= {f"SAM4MLLM_{name}": str(value) for name, value in given.items() if value is not None}
    from backend.cli.adapter_option import follow_adapter
    from backend.settings import read_settings

    hush()
    follow_adapter(read_settings().home, adapter)
    settings = read_settings()
    from backend.batch.shards import GOES_ON, BatchPlan, read_shard, results_of, run_batch  # takes seconds to import

    try:
        chosen = read_shard(shard)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--shard") from error
    where = int(target) if target.isascii() and target.isdigit() else Path(target)
    default = results_of(settings, where) if isinstance(where, int) else settings.home / "batch" / where.absolute().name
    plan = BatchPlan(where, out or default, chosen, tuple(phrase or ()), adapter, part, ray)
    with _result_stream(alone=ray) as stream:
        summary = run_batch(plan, settings)
        print(json.dumps(summary) if as_json else _text(summary), file=stream, flush=True)
    if summary["stopped"]:
        raise BatchError(f"stopped; {GOES_ON}")
    if summary["failed"]:
        raise BatchError(f"{_tasks(summary['failed'])} without an answer; {GOES_ON} with these")


@contextmanager
def _result_stream(*, alone: bool) -> Iterator[TextIO]:
    """Yield the stream for the result, which is standard output.

    With ``alone``, everything else that is written to standard output until the process ends goes to standard error, whether Python code,
    other code or a child process writes it. Ray's processes write at any time, even after the result.
    """
    if not alone:
        yield sys.stdout
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)
        yield stream


def _text(summary: Mapping[str, Any]) -> str:
    lines = [f"{summary['version']}, shard {summary['shard']}: {_tasks(summary['done'])} at {summary['rate']:.2f} a second"]
    if summary["kept"]:
        lines.append(f"{_tasks(summary['kept'])} done before")
    if summary["pushed"] or summary["already"]:
        more = [f"{summary[name]:,} {name}" for name in ("already", "gone", "repeated") if summary[name]]
        lines.append(f"{summary['pushed']:,} predictions pushed" + (f" ({', '.join(more)})" if more else ""))
    lines += [f"{_tasks(one['tasks'])} failed: {one['reason']} (first: {one['first']})" for one in summary["reasons"][:MOST_REASONS]]
    return "\n".join([*lines, str(summary["results"])])


def _tasks(count: int) -> str:
    return f"{count:,} task" + "s" * (count != 1)
