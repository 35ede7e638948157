"""``sam4mllm bench``: its options, and what it prints."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from sam4mllm.cli.options import (
    AdapterOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PatternOption,
    PointsOption,
    QuantizeOption,
    SegmenterOption,
    StrategyOption,
    ThoughtTokensOption,
    ThresholdOption,
    as_options,
    load,
)
from sam4mllm.cli.progress import bar
from sam4mllm.options import PATTERN, THOUGHT_TOKENS, THRESHOLD, Precision

commands = typer.Typer()


@commands.command(epilog="Example: sam4mllm bench --images 12 --json")
def bench(
    images: Annotated[int, typer.Option("--images", min=1, help="Demo scenes to time, a phrase each.")] = 12,
    strategy: StrategyOption = "auto",
    points: PointsOption = None,
    pattern: PatternOption = PATTERN,
    threshold: ThresholdOption = THRESHOLD,
    thought_tokens: ThoughtTokensOption = THOUGHT_TOKENS,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    segmenter: SegmenterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "none",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time one phrase an image on demo scenes, split by stage, after one warm-up; loading is stated apart."""

    began = time.perf_counter()
    options = as_options(strategy, points, pattern, threshold=threshold, thought_tokens=thought_tokens)
    pipeline = load(model, segmenter, device, options, adapter, Precision(dtype, quantize, device_map))
    loading = time.perf_counter() - began
    from sam4mllm.evaluation.bench import time_phrases

    summary = {"loading": loading, **time_phrases(pipeline, images, lambda items, total: bar(items, total, "timing"))}
    if as_json:
        print(json.dumps(summary))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "median seconds")
    for name, value in summary.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)
