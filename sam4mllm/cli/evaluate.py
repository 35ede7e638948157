"""``sam4mllm evaluate``: its options, and what it prints."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam4mllm.cli.options import (
    AdapterOption,
    DatasetArgument,
    DeviceMapOption,
    DeviceOption,
    DialectOption,
    DtypeOption,
    JsonOption,
    LimitOption,
    MinPixelsOption,
    ModelOption,
    PatternOption,
    PointsOption,
    QuantizeOption,
    SeedOption,
    SegmenterOption,
    SplitOption,
    StrategyOption,
    ThoughtTokensOption,
    ThresholdOption,
    as_options,
    load,
)
from sam4mllm.cli.progress import bar
from sam4mllm.options import THOUGHT_TOKENS, THRESHOLD, Precision

if TYPE_CHECKING:
    from rich.table import Table

    from sam4mllm.evaluation.metrics import Figures
    from sam4mllm.evaluation.predictions import JudgedExample

commands = typer.Typer()


@commands.command(epilog="Example: sam4mllm evaluate /tmp/scenes --oracle --report /tmp/report")
def evaluate(
    dataset: DatasetArgument,
    *,
    strategy: StrategyOption = "auto",
    points: PointsOption = None,
    pattern: PatternOption = "spread",
    threshold: ThresholdOption = THRESHOLD,
    thought_tokens: ThoughtTokensOption = THOUGHT_TOKENS,
    oracle: Annotated[bool, typer.Option("--oracle", help="Also draw from true boxes and points: the upper bound.")] = False,
    split: SplitOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    min_pixels: MinPixelsOption = 0,
    report: Annotated[Path | None, typer.Option("--report", help="Write a page with figures, plots and pictures into this folder.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write every prediction here: JSON lines, masks as COCO run lengths.")] = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    segmenter: SegmenterOption = None,
    dialect: DialectOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "none",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure masks, no-target answers and points on a dataset, with 95 % intervals."""
    from sam4mllm.evaluation.run import choose, intervals_of, parts, summarize_judged
    from sam4mllm.evaluation.run import evaluate as run

    examples = choose(dataset, split, limit, seed)
    precision = Precision(dtype, quantize, device_map)
    options = as_options(strategy, points, pattern, threshold=threshold, thought_tokens=thought_tokens)
    pipeline = load(model, segmenter, device, options, adapter, precision, dialect)
    evaluating = lambda images, total: bar(images, total, "evaluating")  # noqa: E731
    figures, judged = run(pipeline, dataset, oracle, evaluating, examples=examples, min_pixels=min_pixels)
    ends = intervals_of(judged)
    several = {name: {part: summarize_judged(some) for part, some in found.items()} for name, found in parts(judged).items()}
    if out is not None:
        from sam4mllm.evaluation.predictions import write_predictions

        write_predictions(out, judged)
    if report is not None:
        _report(report, dataset, judged, figures, pipeline.version)
    if as_json:
        print(
            json.dumps(
                {**figures, "strategy": pipeline.strategy, "intervals": ends, **{f"{name}s": found for name, found in several.items()}}
            )
        )
        return
    from rich.console import Console

    Console().print(_figures_table(figures, ends))
    for name, found in several.items():
        Console().print(_parts_table(name, found))
    for path in (out, report):
        if path is not None:
            print(path)


def _report(folder: Path, dataset: Path, judged: Sequence[JudgedExample], figures: Figures, version: str) -> None:
    from sam4mllm.evaluation.report import write_report

    write_report(folder, dataset, judged, figures, version, shlex.join(["sam4mllm", *sys.argv[1:]]))


def _figures_table(figures: Figures, ends: Mapping[str, tuple[float, float] | None]) -> Table:
    from rich.table import Table

    table = Table("metric", "value", "95 % interval")
    for name, value in figures.items():
        reach = ends.get(name)
        shown = "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(name, shown, f"{reach[0]:.4f} – {reach[1]:.4f}" if reach else "")
    return table


def _parts_table(name: str, found: Mapping[str, Figures]) -> Table:
    columns = ("gIoU", "cIoU", "mIoU", "N-acc", "T-acc", "Pr@0.5", "Pr@0.9", "count")
    from rich.table import Table

    table = Table(name, *columns)
    for part, figures in found.items():
        values = [figures[column] for column in columns]
        table.add_row(part, *["–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value) for value in values])
    return table
