"""``sam4mllm ablate``: its options, and what it prints and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from sam4mllm.errors import EvaluationError
from sam4mllm.options import NO_MODEL, PATTERN, THOUGHT_TOKENS, THRESHOLD, Precision

if TYPE_CHECKING:
    from sam4mllm.evaluation.ablation import Load
    from sam4mllm.evaluation.ablation_table import Row
    from sam4mllm.evaluation.settings import Setting
    from sam4mllm.options import Options
    from sam4mllm.pipeline import Pipeline

commands = typer.Typer()
AXES = "strategy,points,count,pattern,choice,thresholds,answers,segmenter,segmenter-adapter,rank"
WIDE = 180
"""The most characters in a line of a table that is not printed to a terminal."""


@commands.command(epilog="Example: sam4mllm ablate /tmp/scenes --over strategy,points,count --values count=5,15,30 --out /tmp/ablation")
def ablate(
    dataset: DatasetArgument,
    *,
    over: Annotated[str, typer.Option("--over", help=f"What to vary: {AXES}")],
    out: Annotated[Path, typer.Option("--out", help="The folder for table, CSV, plot and journal; there again, it goes on.")],
    values: Annotated[
        list[str] | None, typer.Option("--values", help="Values of an axis instead of the usual: count=5,10,30. May be repeated.")
    ] = None,
    adapters: Annotated[str, typer.Option("--adapters", help="The adapters of rank: r16=FOLDER,r128=FOLDER.")] = "",
    grid: Annotated[bool, typer.Option("--grid", help="Every combination, instead of one thing at a time.")] = False,
    strategy: StrategyOption = "auto",
    points: PointsOption = None,
    pattern: PatternOption = PATTERN,
    threshold: ThresholdOption = THRESHOLD,
    thought_tokens: ThoughtTokensOption = THOUGHT_TOKENS,
    split: SplitOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    min_pixels: MinPixelsOption = 0,
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
    """Compare settings on the same images: each differs from the base in one thing, or in several with --grid. The published setting and
    the upper bound stand beside them; settings with the same models encode each image once.
    """
    from sam4mllm.evaluation.ablation import Journal
    from sam4mllm.evaluation.ablation import ablate as run
    from sam4mllm.evaluation.ablation_table import tabulate
    from sam4mllm.evaluation.run import choose
    from sam4mllm.evaluation.settings import plan

    if model == NO_MODEL:
        raise EvaluationError("ablate compares ways to ask an MLLM, the published one among them, and the model is none; name a model")
    options = as_options(strategy, points, pattern, threshold=threshold, thought_tokens=thought_tokens)
    base, axes, named = _base(options, segmenter, adapter), _axes(over, values or []), _named(adapters)
    settings = plan(base, axes, named, grid)  # raises for wrong values before the models are loaded
    examples = choose(dataset, split, limit, seed)
    journal = Journal(_folder(out) / "journal.jsonl")
    precision = Precision(dtype, quantize, device_map)
    fixed = segmenter is None and "segmenter" not in axes  # each adapter is then used with its own segmenter

    def of_setting(setting: Setting) -> Pipeline:
        named = None if fixed else setting.segmenter
        return load(model, named, device, options, setting.adapter, precision, dialect, setting.segmenter_adapter)

    open_pipeline: Load = of_setting
    if axes.get("strategy") == ():
        first = open_pipeline(base)
        settings = plan(base, axes, named, grid, first.strategies)
        open_pipeline = _beginning_with(first, open_pipeline)
    rows = tabulate(run(settings, dataset, examples, open_pipeline, journal, bar, min_pixels))
    _write(out, rows, len(examples))
    _print(rows, out, as_json)


def _base(options: Options, segmenter: str | None, adapter: str | None) -> Setting:
    """Return the base, the setting that the rows vary.

    Where the options leave them open, the strategy, the way of asking about points and the segmenter are those in the adapter's papers.
    """
    from sam4mllm.adapters.follow import choose_segmenter
    from sam4mllm.adapters.loose import find_adapter, read_papers
    from sam4mllm.evaluation.settings import Setting

    papers = None if adapter is None else read_papers(find_adapter(adapter))
    asked = options if papers is None else papers.asked(options)
    return Setting(("base",), asked, choose_segmenter(segmenter, papers), adapter)


def _beginning_with(first: Pipeline, load: Load) -> Load:
    """Return a function that loads pipelines, but gives ``first``, which is loaded already, to the first call.

    The first call is for the base's models. The function then drops ``first``, because two pipelines might not fit into memory.
    """
    waiting = [first]
    return lambda setting: waiting.pop() if waiting else load(setting)


def _axes(over: str, values: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse ``--over`` and ``--values`` into the values of each axis; an empty tuple stands for the default values.

    Raises EvaluationError if one of them is malformed, or a value is for an axis that ``--over`` does not name.
    """
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
    from sam4mllm.durable import replace_file
    from sam4mllm.evaluation.ablation_table import to_csv, to_fields, to_markdown, to_plot

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
    from sam4mllm.evaluation.ablation_table import cells, describe, heads, tell_gain, to_fields

    if as_json:
        print(json.dumps({"rows": [to_fields(row) for row in rows], "best": tell_gain(rows), "out": str(out)}))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(*[Column(head, no_wrap=True) for head in heads()], box=None, padding=(0, 1))
    for row in rows:
        table.add_row(*cells(row))
    console = Console()
    (console if console.is_terminal else Console(width=WIDE)).print(table)
    for name in ("base", "published"):
        print(f"{name}: {next(describe(row.setting) for row in rows if name in row.setting.names)}")
    print(f"{tell_gain(rows)}\n{out}")
