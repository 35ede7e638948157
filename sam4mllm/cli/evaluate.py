"""``sam4mllm evaluate``: its options, and what it prints."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    LookBackOption,
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
from sam4mllm.options import PATTERN, THOUGHT_TOKENS, THRESHOLD, Precision

if TYPE_CHECKING:
    from rich.table import Table

    from sam4mllm.data.examples import Example
    from sam4mllm.evaluation.metrics import Figures
    from sam4mllm.evaluation.predictions import JudgedExample
    from sam4mllm.pipeline import Pipeline

commands = typer.Typer()


@commands.command(epilog="Example: sam4mllm evaluate /tmp/scenes --oracle --report /tmp/report")
def evaluate(
    dataset: DatasetArgument,
    *,
    strategy: StrategyOption = "auto",
    points: PointsOption = None,
    pattern: PatternOption = PATTERN,
    threshold: ThresholdOption = THRESHOLD,
    thought_tokens: ThoughtTokensOption = THOUGHT_TOKENS,
    look_back: LookBackOption = "off",
    oracle: Annotated[bool, typer.Option("--oracle", help="Also draw from true boxes and points: the upper bound.")] = False,
    clicks: Annotated[
        bool,
        typer.Option(
            "--clicks", help="Also click on answers until they fit, as a reviewer does, with and without the former mask as input."
        ),
    ] = False,
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
    options = as_options(strategy, points, pattern, threshold=threshold, thought_tokens=thought_tokens, look_back=look_back)
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
    clicked = _click(pipeline, dataset, examples) if clicks else None
    if as_json:
        more = {f"{name}s": found for name, found in several.items()} | ({} if clicked is None else {"clicks": clicked})
        print(json.dumps({**figures, "strategy": pipeline.strategy, "intervals": ends, **more}))
        return
    tables = [_figures_table(figures, ends), *(_parts_table(name, found) for name, found in several.items())]
    _print([*tables, *([] if clicked is None else [_clicks_table(clicked)])])
    for path in (out, report):
        if path is not None:
            print(path)


def _click(pipeline: Pipeline, dataset: Path, examples: Sequence[Example]) -> dict[str, Any]:
    from sam4mllm.evaluation.click_curves import as_fields, measure_clicks

    return as_fields(measure_clicks(pipeline, dataset, examples, lambda images, total: bar(images, total, "clicking")))


def _report(folder: Path, dataset: Path, judged: Sequence[JudgedExample], figures: Figures, version: str) -> None:
    from sam4mllm.evaluation.report import write_report

    write_report(folder, dataset, judged, figures, version, shlex.join(["sam4mllm", *sys.argv[1:]]))


def _print(tables: Sequence[Table]) -> None:
    from rich.console import Console

    for table in tables:
        Console().print(table)


def _figures_table(figures: Figures, ends: Mapping[str, tuple[float, float] | None]) -> Table:
    from rich.table import Table

    table = Table("metric", "value", "95 % interval")
    for name, value in figures.items():
        reach = ends.get(name)
        shown = "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(name, shown, f"{reach[0]:.4f} – {reach[1]:.4f}" if reach else "")
    return table


def _clicks_table(clicked: Mapping[str, Any]) -> Table:
    from rich.table import Table

    with_former = "gain" in clicked
    table = Table("clicks, mIoU", "value", "95 % interval", *(["with the former mask", "difference (95 %)"] if with_former else []))
    for name, value in clicked["without"]["figures"].items():
        shown = [name, *(["–", ""] if value is None else [f"{value:.3f}", _reach(clicked["without"]["intervals"][name])])]
        if with_former:
            other, gain = clicked["with"]["figures"][name], clicked["gain"][name]
            shown += [
                "–" if other is None else f"{other:.3f}",
                "" if gain is None else f"{gain[0]:+.3f} ({gain[1]:+.3f} to {gain[2]:+.3f})",
            ]
        table.add_row(*shown)
    return table


def _reach(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.3f} – {ends[1]:.3f}"


def _parts_table(name: str, found: Mapping[str, Figures]) -> Table:
    columns = ("gIoU", "cIoU", "mIoU", "N-acc", "T-acc", "Pr@0.5", "Pr@0.9", "count")
    from rich.table import Table

    table = Table(name, *columns)
    for part, figures in found.items():
        values = [figures[column] for column in columns]
        table.add_row(part, *["–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value) for value in values])
    return table
