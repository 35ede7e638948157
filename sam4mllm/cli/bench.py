"""``sam4mllm bench``: its options, and what it prints."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sam4mllm.cli.options import (
    AdapterOption,
    DeviceMapOption,
    DeviceOption,
    DtypeName,
    DtypeOption,
    JsonOption,
    ModelOption,
    PatternName,
    PatternOption,
    PointsName,
    PointsOption,
    QuantizeName,
    QuantizeOption,
    SegmenterOption,
    StrategyName,
    StrategyOption,
    as_precision,
    load,
)
from sam4mllm.cli.progress import bar

commands = typer.Typer()


@commands.command(epilog="Example: sam4mllm bench --images 12 --json")
def bench(
    images: Annotated[int, typer.Option("--images", min=1, help="Demo scenes to time, a phrase each.")] = 12,
    strategy: StrategyOption = StrategyName.PQPP,
    points: PointsOption = PointsName.PACKED,
    pattern: PatternOption = PatternName.SPREAD,
    model: ModelOption = "demo",
    adapter: AdapterOption = None,
    segmenter: SegmenterOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = DtypeName.AUTO,
    quantize: QuantizeOption = QuantizeName.NONE,
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time one phrase an image on demo scenes, split by stage, after one warm-up; loading is stated apart."""
    from sam4mllm.options import Options

    began = time.perf_counter()
    options = Options(strategy=strategy.value, joint=points is PointsName.JOINT, pattern=pattern.value)
    pipeline = load(model, segmenter, device, options, adapter, as_precision(dtype, quantize, device_map))
    loading = time.perf_counter() - began
    from sam4mllm.evaluation.bench import time_phrases

    summary = {"loading": loading, **time_phrases(pipeline, images, lambda items, total: bar(items, total, "timing"))}
    if as_json:
        print(json.dumps(summary))
        return
    table = Table("stage", "median seconds")
    for name, value in summary.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)
