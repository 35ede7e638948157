"""The command line. Each command prints one clear line and exits with 1 if it fails; wrong usage exits with 2."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sam4mllm.cli import adapters as adapter_cli
from sam4mllm.cli import data as data_cli
from sam4mllm.cli import evaluate as evaluate_cli
from sam4mllm.cli.options import (
    AdapterOption,
    DeviceMapOption,
    DeviceOption,
    DtypeName,
    DtypeOption,
    JsonOption,
    ModelOption,
    NounsName,
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
from sam4mllm.errors import Sam4mllmError
from sam4mllm.plain_text import OneLine, one_line

if TYPE_CHECKING:
    from sam4mllm.values import Segmentation

__all__ = ["DeviceOption", "app", "main"]

app = typer.Typer(name="sam4mllm", no_args_is_help=True, add_completion=False, help="Text to mask: an MLLM finds it, SAM draws it.")
app.command(epilog=adapter_cli.TRAIN_EXAMPLE)(adapter_cli.train)
app.add_typer(adapter_cli.adapters)
app.command(epilog=evaluate_cli.EVALUATE_EXAMPLE)(evaluate_cli.evaluate)
app.command(epilog=evaluate_cli.ABLATE_EXAMPLE)(evaluate_cli.ablate)
app.add_typer(data_cli.data)
T = TypeVar("T")


def main() -> None:
    """Entry point: turns our own errors into one line on standard error."""
    if logging.lastResort is not None:  # what libraries and we log without a handler
        logging.lastResort.setFormatter(OneLine())
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of a damaged file's metadata, once a tag; the pixels are checked by us
    try:
        app()
    except Sam4mllmError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _bar(items: Iterable[T], total: int | None, what: str) -> Iterable[T]:
    """A progress bar on standard error, so that standard output stays clean for --json."""
    return track(items, description=what, total=total, console=Console(stderr=True), transient=True)


@app.command(epilog="Example: sam4mllm predict kitchen.jpg 'the left cup' 'all ripe tomatoes' --out overlay.png")
def predict(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    phrases: Annotated[list[str], typer.Argument(help="What to find; one or more phrases.")],
    strategy: StrategyOption = StrategyName.PQPP,
    points: PointsOption = PointsName.PACKED,
    pattern: PatternOption = PatternName.SPREAD,
    out: Annotated[Path | None, typer.Option("--out", help="Write a picture of the answer here.")] = None,
    model: ModelOption = "demo",
    adapter: AdapterOption = None,
    segmenter: SegmenterOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = DtypeName.AUTO,
    quantize: QuantizeOption = QuantizeName.NONE,
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find phrases in an image: boxes, masks and a picture of them."""
    from sam4mllm.images import load_image
    from sam4mllm.options import Options

    pixels = load_image(image)
    options = Options(strategy=strategy.value, joint=points is PointsName.JOINT, pattern=pattern.value)
    pipeline = load(model, segmenter, device, options, adapter, as_precision(dtype, quantize, device_map))
    answers = pipeline.segment(pixels, phrases)
    if out is not None:
        from sam4mllm.overlay import draw

        try:
            draw(pixels, answers).save(out)
        except (OSError, ValueError) as error:
            raise Sam4mllmError(f"{out} could not be written: {error}") from error
    if as_json:
        print(json.dumps([_as_json(answer) for answer in answers]))
        return
    for answer in answers:
        print(one_line(_as_line(answer)))
    print(f"{sum(answers[0].timings.values()):.2f} s for {len(answers)} phrases")
    if out is not None:
        print(f"overlay: {out}")


def _as_line(answer: Segmentation) -> str:
    if not answer.instances:
        return f"{answer.phrase}: {answer.note or f'no such object (P = {answer.score:.2f})'}"
    boxes = ", ".join(
        "[" + " ".join(f"{side:.0f}" for side in instance.box_px) + f"] {instance.score:.2f}" for instance in answer.instances
    )
    note = f" ({answer.note})" if answer.note else ""
    return f"{answer.phrase}: {len(answer.instances)} found, {int(answer.mask.sum())} pixels, box and score {boxes}{note}"


def _as_json(answer: Segmentation) -> dict[str, Any]:
    from sam4mllm.masks import to_rle

    return {
        "phrase": answer.phrase,
        "score": answer.score,
        "no_target_probability": answer.no_target_probability,
        "version": answer.version,
        "note": answer.note,
        "timings": answer.timings,
        "instances": [
            {
                "box": instance.box_px.tolist(),
                "score": instance.score,
                "rle": to_rle(instance.mask),
                "points": instance.points_px.tolist(),
                "inside": instance.inside.tolist(),
                "labels": instance.labels.tolist(),
            }
            for instance in answer.instances
        ],
    }


@app.command(epilog="Example: sam4mllm scenes /tmp/scenes --count 120 --seed 7")
def scenes(
    folder: Annotated[Path, typer.Argument(help="Where to write the dataset.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Images; each has five phrases.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same scenes.")] = 0,
    nouns: Annotated[
        NounsName, typer.Option("--nouns", help="Ask for nouns that the demo model knows, or for new ones.")
    ] = NounsName.KNOWN,
    split: Annotated[str, typer.Option("--split", help="Of all examples: test, or train for `sam4mllm train`.")] = "test",
    as_json: JsonOption = False,
) -> None:
    """Write demo scenes with phrases and exact masks as a dataset."""
    from sam4mllm.demo.dataset import write_scenes
    from sam4mllm.demo.glyphs import novel_nouns

    asked = novel_nouns() if nouns is NounsName.NOVEL else None
    written = write_scenes(folder, count, seed, asked, lambda items: _bar(items, count, "drawing"), split=split)
    line = f"{folder}: {count} images, {written} phrases"
    print(json.dumps({"folder": str(folder), "images": count, "phrases": written}) if as_json else line)


@app.command(epilog="Example: sam4mllm bench --images 12 --json")
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

    summary = {"loading": loading, **time_phrases(pipeline, images, lambda items, total: _bar(items, total, "timing"))}
    if as_json:
        print(json.dumps(summary))
        return
    table = Table("stage", "median seconds")
    for name, value in summary.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
