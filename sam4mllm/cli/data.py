"""The commands that make datasets of public data sets; :mod:`sam4mllm.cli.main` has them among its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import track

from sam4mllm.cli.options import DataSetName, JsonOption
from sam4mllm.errors import DatasetError
from sam4mllm.plain_text import one_line

if TYPE_CHECKING:
    from sam4mllm.data.pairs import Prepared
    from sam4mllm.data.readers import Reader

T = TypeVar("T")
MOST_REASONS = 20
"""Most reasons for leaving something out that are shown; the JSON has all of them."""

data = typer.Typer(name="data", no_args_is_help=True, help="Public data sets, as folders in the dataset format.")
other_readers: dict[str, Callable[[], Reader]] = {}
"""Makes the readers of another package, which adds them here: that one imports this one, never the other way."""
OutArgument = Annotated[Path, typer.Argument(help="A new folder for the dataset.")]


@data.command(epilog="Example: sam4mllm data prepare refcoco /data/refer /data/prepared/refcoco")
def prepare(
    name: Annotated[DataSetName, typer.Argument(help="Which data set it is.", metavar="SET")],
    source: Annotated[Path, typer.Argument(help="Its folder, laid out as it is published; an export's file for label-studio.")],
    folder: OutArgument,
    as_json: JsonOption = False,
) -> None:
    """Write a public data set in the dataset format, with its splits."""
    from sam4mllm.data.pairs import write_pairs  # noqa: PLC0415 – these take long to import
    from sam4mllm.data.readers import compare  # noqa: PLC0415

    reader = _reader(name.value)
    if not source.exists():
        raise DatasetError(f"{source} does not exist; name the data set's folder")
    reading = reader.read(source)
    prepared = write_pairs(reading, folder, lambda items, total: _bar(items, total, "reading"))
    warnings = compare(reader, reading, prepared)
    for line in warnings:
        print(one_line(f"warning: {name.value} {line}"), file=sys.stderr)
    _print(folder, prepared, as_json, warnings)


@data.command(epilog="Example: sam4mllm data merge /data/prepared/all /data/prepared/refcoco /data/prepared/grefcoco")
def merge(
    folder: OutArgument,
    datasets: Annotated[list[Path], typer.Argument(help="Folders in the dataset format; where two say the same, the first is kept.")],
    as_json: JsonOption = False,
) -> None:
    """Write several datasets as one; no picture that one of them tests on is trained on."""
    from sam4mllm.data.merge import merge as run  # noqa: PLC0415

    _print(folder, run(datasets, folder, lambda items, total: _bar(items, total, "merging")), as_json)


def _reader(name: str) -> Reader:
    from sam4mllm.data.readers import READERS  # noqa: PLC0415

    if name in other_readers:
        return other_readers[name]()
    if name not in READERS:
        raise DatasetError(f"{name} is read by the package backend; start the command as sam4mllm")
    return READERS[name]


def _bar(items: Iterable[T], total: int | None, what: str) -> Iterable[T]:
    return track(items, what, total, console=Console(stderr=True), transient=True)


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
