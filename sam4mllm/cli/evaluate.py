"""The commands that measure; :mod:`sam4mllm.cli.main` has them among its own."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

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
from sam4mllm.errors import EvaluationError

if TYPE_CHECKING:
    from sam4mllm.evaluation.ablation_table import Row
    from sam4mllm.evaluation.metrics import Figures
    from sam4mllm.evaluation.predictions import JudgedExample

EVALUATE_EXAMPLE = "Example: sam4mllm evaluate /tmp/scenes --oracle --report /tmp/report"
ABLATE_EXAMPLE = "Example: sam4mllm ablate /tmp/scenes --over strategy,points,count --values count=5,15,30 --out /tmp/ablation"
WIDE = 180
"""Columns of a table that is piped into a file."""
T = TypeVar("T")

DatasetArgument = Annotated[Path, typer.Argument(help="A folder in the dataset format.")]
SplitOption = Annotated[str | None, typer.Option("--split", help="val, testA, testB, test …; all if it is not given.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many images, drawn by --seed.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Another seed draws other images.")]
MinPixelsOption = Annotated[int, typer.Option("--min-pixels", min=0, help="Take a predicted mask of fewer pixels for none.")]


def _bar(items: Iterable[T], total: int, what: str) -> Iterable[T]:
    """A progress bar on standard error, so that standard output stays clean for --json."""
    return track(items, description=what, total=total, console=Console(stderr=True), transient=True)


def evaluate(
    dataset: DatasetArgument,
    *,
    strategy: StrategyOption = StrategyName.PQPP,
    points: PointsOption = PointsName.PACKED,
    pattern: PatternOption = PatternName.SPREAD,
    oracle: Annotated[bool, typer.Option("--oracle", help="Also draw from true boxes and points: the upper bound.")] = False,
    split: SplitOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    min_pixels: MinPixelsOption = 0,
    report: Annotated[Path | None, typer.Option("--report", help="Write a page with figures, plots and pictures into this folder.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write every prediction here: JSON lines, masks as COCO run lengths.")] = None,
    model: ModelOption = "demo",
    adapter: AdapterOption = None,
    segmenter: SegmenterOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = DtypeName.AUTO,
    quantize: QuantizeOption = QuantizeName.NONE,
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure masks, no-target answers and points on a dataset, with 95 % intervals."""
    from sam4mllm.evaluation.run import choose, intervals_of, parts, summarize_judged  # noqa: PLC0415
    from sam4mllm.evaluation.run import evaluate as run  # noqa: PLC0415
    from sam4mllm.options import Options  # noqa: PLC0415

    examples = choose(dataset, split, limit, seed)
    precision = as_precision(dtype, quantize, device_map)
    options = Options(strategy=strategy.value, joint=points is PointsName.JOINT, pattern=pattern.value)
    pipeline = load(model, segmenter, device, options, adapter, precision)
    bar = lambda images, total: _bar(images, total, "evaluating")  # noqa: E731
    figures, judged = run(pipeline, dataset, oracle, bar, examples=examples, min_pixels=min_pixels)
    ends = intervals_of(judged)
    several = {name: {part: summarize_judged(some) for part, some in found.items()} for name, found in parts(judged).items()}
    if out is not None:
        from sam4mllm.evaluation.predictions import write_predictions  # noqa: PLC0415

        write_predictions(out, judged)
    if report is not None:
        _report(report, dataset, judged, figures, pipeline.version)
    if as_json:
        print(json.dumps({**figures, "intervals": ends, **{f"{name}s": found for name, found in several.items()}}))
        return
    Console().print(_figures_table(figures, ends))
    for name, found in several.items():
        Console().print(_parts_table(name, found))
    for path in (out, report):
        if path is not None:
            print(path)


def _report(folder: Path, dataset: Path, judged: Sequence[JudgedExample], figures: Figures, version: str) -> None:
    from sam4mllm.evaluation.report import write_report  # noqa: PLC0415

    write_report(folder, dataset, judged, figures, version, shlex.join(["sam4mllm", *sys.argv[1:]]))


def _figures_table(figures: Figures, ends: Mapping[str, tuple[float, float] | None]) -> Table:
    table = Table("metric", "value", "95 % interval")
    for name, value in figures.items():
        reach = ends.get(name)
        shown = "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(name, shown, f"{reach[0]:.4f} – {reach[1]:.4f}" if reach else "")
    return table


def _parts_table(name: str, found: Mapping[str, Figures]) -> Table:
    columns = ("gIoU", "cIoU", "mIoU", "N-acc", "T-acc", "Pr@0.5", "Pr@0.9", "count")
    table = Table(name, *columns)
    for part, figures in found.items():
        values = [figures[column] for column in columns]
        table.add_row(part, *["–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value) for value in values])
    return table


def ablate(
    dataset: DatasetArgument,
    *,
    over: Annotated[str, typer.Option("--over", help="What to vary: strategy,points,count,pattern,choice,thresholds,segmenter,rank.")],
    out: Annotated[Path, typer.Option("--out", help="The folder for table, CSV, plot and journal; there again, it goes on.")],
    values: Annotated[
        list[str] | None, typer.Option("--values", help="Values of an axis instead of the usual: count=5,10,30. May be repeated.")
    ] = None,
    adapters: Annotated[str, typer.Option("--adapters", help="The adapters of rank: r16=FOLDER,r128=FOLDER.")] = "",
    grid: Annotated[bool, typer.Option("--grid", help="Every combination, instead of one thing at a time.")] = False,
    strategy: StrategyOption = StrategyName.PQPP,
    points: PointsOption = PointsName.PACKED,
    pattern: PatternOption = PatternName.SPREAD,
    split: SplitOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    min_pixels: MinPixelsOption = 0,
    model: ModelOption = "demo",
    adapter: AdapterOption = None,
    segmenter: SegmenterOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = DtypeName.AUTO,
    quantize: QuantizeOption = QuantizeName.NONE,
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare settings on the same images: each differs from the base in one thing. The published setting and the upper bound stand beside
    them; each image is taken in once.
    """
    from sam4mllm.evaluation.ablation import Journal  # noqa: PLC0415
    from sam4mllm.evaluation.ablation import ablate as run  # noqa: PLC0415
    from sam4mllm.evaluation.ablation_table import tabulate  # noqa: PLC0415
    from sam4mllm.evaluation.run import choose  # noqa: PLC0415
    from sam4mllm.evaluation.settings import Setting, plan  # noqa: PLC0415
    from sam4mllm.options import Options  # noqa: PLC0415

    options = Options(strategy=strategy.value, joint=points is PointsName.JOINT, pattern=pattern.value)
    settings = plan(Setting(("base",), options, segmenter, adapter), _axes(over, values or []), _named(adapters), grid)
    examples = choose(dataset, split, limit, seed)
    journal = Journal(_folder(out) / "journal.jsonl")
    precision = as_precision(dtype, quantize, device_map)
    open_pipeline = lambda seg, version: load(model, seg, device, options, version, precision)  # noqa: E731
    rows = tabulate(run(settings, dataset, examples, open_pipeline, journal, _bar, min_pixels))
    _write(out, rows, len(examples))
    _print(rows, out, as_json)


def _axes(over: str, values: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``--over`` and ``--values`` as values by axis, none where the usual are meant."""
    axes: dict[str, tuple[str, ...]] = {name.strip(): () for name in over.split(",") if name.strip()}
    if not axes:
        raise EvaluationError("--over names nothing to vary; for example --over strategy,points")
    for given in values:
        axis, equals, some = given.partition("=")
        if not equals or not some:
            raise EvaluationError(f"--values {given} is not AXIS=VALUE,VALUE; for example count=5,10,30")
        if axis.strip() not in axes:
            raise EvaluationError(f"--values names {axis.strip()!r}, which --over does not; add it there")
        axes[axis.strip()] = tuple(value.strip() for value in some.split(",") if value.strip())
    return axes


def _named(adapters: str) -> dict[str, str]:
    named: dict[str, str] = {}
    for given in filter(None, (part.strip() for part in adapters.split(","))):
        name, equals, folder = given.partition("=")
        if not equals or not name or not folder or name in named:
            raise EvaluationError(f"--adapters {given} is not NAME=FOLDER, each name once; for example r16=/tmp/r16,r128=/tmp/r128")
        named[name] = folder
    return named


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"{out} cannot be made ({error.strerror}); choose another folder with --out") from error
    return out


def _write(out: Path, rows: Sequence[Row], phrases: int) -> None:
    from sam4mllm.durable import replace_file  # noqa: PLC0415
    from sam4mllm.evaluation.ablation_table import to_csv, to_fields, to_markdown, to_plot  # noqa: PLC0415

    note = f"{phrases} phrases; intervals and differences by a bootstrap over images"
    files = {
        "ablation.csv": to_csv(rows).encode(),
        "ablation.md": to_markdown(rows, note).encode(),
        "ablation.json": json.dumps([to_fields(row) for row in rows], indent=1, allow_nan=False).encode(),
        "ablation.png": to_plot(rows),
    }
    for name, data in files.items():
        try:
            replace_file(out / name, data)
        except OSError as error:
            raise EvaluationError(f"{out / name} cannot be written ({error.strerror}); free space or choose another folder") from error


def _print(rows: Sequence[Row], out: Path, as_json: bool) -> None:
    from sam4mllm.evaluation.ablation_table import cells, describe, heads, tell_gain, to_fields  # noqa: PLC0415

    if as_json:
        print(json.dumps({"rows": [to_fields(row) for row in rows], "best": tell_gain(rows), "out": str(out)}))
        return
    table = Table(*[Column(head, no_wrap=True) for head in heads()], box=None, padding=(0, 1))
    for row in rows:
        table.add_row(*cells(row))
    console = Console()
    (console if console.is_terminal else Console(width=WIDE)).print(table)
    for name in ("base", "published"):
        print(f"{name}: {next(describe(row.setting) for row in rows if name in row.setting.names)}")
    print(f"{tell_gain(rows)}\n{out}")
