"""``sam4mllm data``: the commands that make datasets of public data sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam4mllm.cli.options import JsonOption
from sam4mllm.cli.plugins import find_reader
from sam4mllm.cli.progress import bar
from sam4mllm.errors import DatasetError
from sam4mllm.plain_text import one_line

if TYPE_CHECKING:
    from sam4mllm.data.pairs import Prepared

MOST_REASONS = 20
"""Most reasons for leaving something out that are shown; the JSON has all of them."""

commands = typer.Typer(name="data", no_args_is_help=True, help="Public data sets, as folders in the dataset format.")
OutArgument = Annotated[Path, typer.Argument(help="A new folder for the dataset.")]


@commands.command(epilog="Example: sam4mllm data prepare refcoco /data/refer /data/prepared/refcoco")
def prepare(
    name: Annotated[
        str,
        typer.Argument(
            help="Which data set it is: refcoco, refcoco+, refcocog, grefcoco, refcoco-m, reasonseg, coco, ade20k, paco-lvis, "
            "partimagenet, label-studio, or one that another package reads.",
            metavar="SET",
        ),
    ],
    source: Annotated[Path, typer.Argument(help="Its folder, laid out as it is published; an export's file for label-studio.")],
    folder: OutArgument,
    as_json: JsonOption = False,
) -> None:
    """Write a public data set in the dataset format, with its splits."""
    from sam4mllm.data.pairs import write_pairs  # these take long to import
    from sam4mllm.data.readers import compare

    reader = find_reader(name)
    if not source.exists():
        raise DatasetError(f"{source} does not exist; name the data set's folder")
    reading = reader.read(source)
    prepared = write_pairs(reading, folder, lambda items, total: bar(items, total, "reading"))
    warnings = compare(reader, reading, prepared)
    for line in warnings:
        print(one_line(f"warning: {name} {line}"), file=sys.stderr)
    _print(folder, prepared, as_json, warnings)


@commands.command(epilog="Example: sam4mllm data merge /data/prepared/all /data/prepared/refcoco /data/prepared/grefcoco")
def merge(
    folder: OutArgument,
    datasets: Annotated[list[Path], typer.Argument(help="Folders in the dataset format; where two say the same, the first is kept.")],
    as_json: JsonOption = False,
) -> None:
    """Write several datasets as one; no picture that one of them tests on is trained on."""
    from sam4mllm.data.merge import merge as run

    _print(folder, run(datasets, folder, lambda items, total: bar(items, total, "merging")), as_json)


def _print(folder: Path, prepared: Prepared, as_json: bool, warnings: Iterable[str] = ()) -> None:
    if as_json:
        counts = {"read": prepared.read, "written": prepared.written, "left_out": prepared.left_out}
        whole = {"folder": str(folder), **{name: dict(count) for name, count in counts.items()}, "warnings": [*warnings]}
        print(json.dumps({**whole, "images": prepared.images, "merged": prepared.merged, "first_left_out": prepared.first}))
        return
    splits = ", ".join(f"{count:,} {split}" for split, count in prepared.written.items()) or "nothing"
    print(f"{folder}: {splits}; {prepared.images:,} pictures, {prepared.merged:,} repetitions merged")
    for reason, count in prepared.left_out.most_common(MOST_REASONS):
        print(one_line(f"  {count:,} left out: {reason} (first: {prepared.first[reason]})"))
    if len(prepared.left_out) > MOST_REASONS:
        print(f"  and {len(prepared.left_out) - MOST_REASONS:,} other reasons; --json has them")
