"""``sam4mllm export``: its options, and what it prints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from backend.cli.server_extra import check_server_extra
from backend.errors import ExportError
from sam4mllm.cli.options import JsonOption
from sam4mllm.cli.progress import bar

if TYPE_CHECKING:
    from backend.export.run import Summary

commands = typer.Typer()
MOST_LOST = 20
"""At most this many reasons for losses are printed, each on a line with its count; the JSON output has all losses."""
T = TypeVar("T")


class ExportFormat(StrEnum):
    """The formats that are written."""

    COCO = "coco"
    YOLO_SEG = "yolo-seg"
    PNG = "png"


@commands.command(epilog="Example: LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=… sam4mllm export 7 --format coco out/coco")
def export(
    source: Annotated[
        str,
        typer.Argument(
            help="A project's number in Label Studio, or its export as JSON, with the pictures beside it.", metavar="PROJECT|EXPORT"
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="DIR")],
    form: Annotated[
        ExportFormat, typer.Option("--format", help="COCO with run lengths, a polygon for each object, or a PNG for each object.")
    ] = ExportFormat.COCO,
    every: Annotated[
        bool, typer.Option("--all-annotations", help="Of each task all annotations, not only the ground truth or the newest.")
    ] = False,
    no_images: Annotated[bool, typer.Option("--no-images", help="Write no pictures.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the masks of a project for other tools; exits with 1 if anything that was drawn could not be written."""
    check_server_extra()
    from backend.export.run import ExportPlan, run_export  # takes long to import
    from backend.export.tasks import open_export, open_project
    from backend.settings import read_settings

    settings = read_settings()
    number = source.isascii() and source.isdigit() and not Path(source).exists()
    with closing(open_project(int(source), settings) if number else open_export(Path(source))) as opened:
        summary = run_export(opened, ExportPlan(folder, form.value, every, not no_images), settings.max_pixels, _exporting)
    print(json.dumps(summary.as_json()) if as_json else _text(summary))
    if summary.lost:
        raise ExportError(f"{len(summary.lost):,} of what was drawn, or of the pictures, could not be exported; all else is in {folder}")


def _exporting(items: Iterable[T], total: int | None) -> Iterable[T]:
    return bar(items, total, "exporting")


def _text(summary: Summary) -> str:
    lines = [f"{summary.folder}: {summary.objects:,} objects in {summary.pictures:,} pictures, {len(summary.categories)} categories"]
    if summary.repeated:
        lines.append(f"  {summary.repeated:,} masks that a picture had already were not repeated")
    lines += [f"  {count:,} left out: {what}" for what, count in summary.passed.counts.items()]
    lines += [f"  {count:,} {what}" for what, count in summary.notes.items()]
    for reason, count in Counter(one.reason for one in summary.lost).most_common(MOST_LOST):
        first = next(one for one in summary.lost if one.reason == reason)
        place = f"task {first.task}" + (f", annotation {first.annotation}, region {ascii(first.region)[:42]}" if first.region else "")
        lines.append(f"  {count:,} LOST: {reason} (first: {place})")
    return "\n".join(lines)
