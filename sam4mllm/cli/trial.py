"""``sam4mllm trial``: its options, and what it prints and writes."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sam4mllm.cli.options import JsonOption, LimitOption, SeedOption, SplitOption
from sam4mllm.cli.plugins import find_reader
from sam4mllm.cli.progress import bar
from sam4mllm.errors import EvaluationError, Sam4mllmError
from sam4mllm.plain_text import one_line

if TYPE_CHECKING:
    from sam4mllm.data.examples import Example
    from sam4mllm.trial.candidates import Contender
    from sam4mllm.trial.run import Tried
    from sam4mllm.trial.verdict import TrialRow

commands = typer.Typer()
USUAL_LIMIT = 50
"""The default number of pictures. With more, several large models take longer than an evening; and candidates that 50 pictures do not tell
apart seldom differ enough to matter."""
WIDE = 160
"""The most characters in a line of a table that is not printed to a terminal."""


@commands.command(epilog="Example: sam4mllm trial export.json --candidates candidates.toml --out out/trial")
def trial(
    source: Annotated[Path, typer.Argument(help="An export of Label Studio (JSON), or a folder in the dataset format.", metavar="SOURCE")],
    *,
    candidates: Annotated[Path, typer.Option("--candidates", help="A TOML file with a table for each candidate.")],
    out: Annotated[Path, typer.Option("--out", help="The folder for the page, the figures and the journal; there again, it goes on.")],
    split: SplitOption = None,
    limit: LimitOption = USUAL_LIMIT,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Try models, segmenters, strategies and adapters on some labelled pictures of your own, one after the other, and say which to take."""
    from sam4mllm.trial.candidates import read_candidates

    listed = read_candidates(candidates)
    from sam4mllm.evaluation.run import choose

    _make(out)
    dataset = _dataset(source, out / "dataset")
    examples = choose(dataset, split, limit, seed)
    tried = _try(listed, dataset, examples, out, split)
    for one in tried:
        if one.failure:
            print(one_line(f"warning: {one.candidate.name}: {one.failure}"), file=sys.stderr)
    _report(tried, dataset, source, examples, out, as_json)


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"{out} cannot be made ({error.strerror}); choose another folder with --out") from error


def _dataset(source: Path, folder: Path) -> Path:
    """Return ``source`` if it is in the dataset format; else read it as an export of Label Studio and write it as a dataset to ``folder``.

    ``folder`` is replaced each time; the same export gives the same dataset.
    """
    from sam4mllm.data.examples import EXAMPLES

    if (source / EXAMPLES).is_file():
        return source
    from sam4mllm.data.pairs import write_pairs
    from sam4mllm.durable import remove

    reading = find_reader("label-studio").read(source)
    try:
        remove(folder)
    except OSError as error:
        raise EvaluationError(f"{folder} cannot be replaced ({error.strerror}); choose another folder with --out") from error
    prepared = write_pairs(reading, folder, lambda items, total: bar(items, total, "reading"))
    for reason, count in prepared.left_out.most_common():
        print(one_line(f"warning: {count:,} left out: {reason} (first: {prepared.first[reason]})"), file=sys.stderr)
    return folder


def _try(listed: Sequence[Contender], dataset: Path, examples: Sequence[Example], out: Path, split: str | None) -> list[Tried]:
    from sam4mllm.trial.run import try_all

    try:
        return try_all(listed, dataset, examples, out, split, bar)
    except KeyboardInterrupt as error:
        raise EvaluationError("stopped; what is done is kept, and the same command goes on") from error


def _report(tried: Sequence[Tried], dataset: Path, source: Path, examples: Sequence[Example], out: Path, as_json: bool) -> None:
    from sam4mllm.trial.report import PAGE, RECORD, write_trial
    from sam4mllm.trial.verdict import tabulate_trial

    rows = tabulate_trial(tried)
    record = write_trial(out, dataset, source.name, examples, tried, rows, shlex.join(["sam4mllm", *sys.argv[1:]]))
    if not rows:
        raise Sam4mllmError("no candidate could be tried; the warnings say why")
    if as_json:
        print(json.dumps(record))
        return
    _print(rows, record)
    print(f"{out / PAGE}\n{out / RECORD}\n{record['sentence']}")


def _print(rows: Sequence[TrialRow], record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from sam4mllm.trial.verdict import HEADS, trial_cells

    table = Table(*[Column(head, no_wrap=True) for head in HEADS], box=None, padding=(0, 1))
    for row in rows:
        table.add_row(*trial_cells(row))
    console = Console()
    (console if console.is_terminal else Console(width=WIDE)).print(table)
    print(f"{record['phrases']} phrases on {record['pictures']} pictures")
