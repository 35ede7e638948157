"""``sam4mllm predict``: its options, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sam4mllm.cli.options import (
    AdapterOption,
    DeviceMapOption,
    DeviceOption,
    DialectOption,
    DtypeOption,
    JsonOption,
    LookBackOption,
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
from sam4mllm.errors import Sam4mllmError
from sam4mllm.options import PATTERN, THOUGHT_TOKENS, THRESHOLD, Precision
from sam4mllm.plain_text import one_line, shortened

if TYPE_CHECKING:
    from sam4mllm.values import Segmentation

commands = typer.Typer()


@commands.command(epilog="Example: sam4mllm predict kitchen.jpg 'the left cup' 'all ripe tomatoes' --out overlay.png")
def predict(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    phrases: Annotated[list[str], typer.Argument(help="What to find; one or more phrases.")],
    strategy: StrategyOption = "auto",
    points: PointsOption = None,
    pattern: PatternOption = PATTERN,
    threshold: ThresholdOption = THRESHOLD,
    thought_tokens: ThoughtTokensOption = THOUGHT_TOKENS,
    look_back: LookBackOption = "off",
    out: Annotated[Path | None, typer.Option("--out", help="Write a picture of the answer here.")] = None,
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
    """Find phrases in an image: boxes, masks and a picture of them."""
    from sam4mllm.images import load_image

    pixels = load_image(image)
    options = as_options(strategy, points, pattern, threshold=threshold, thought_tokens=thought_tokens, look_back=look_back)
    pipeline = load(model, segmenter, device, options, adapter, Precision(dtype, quantize, device_map), dialect)
    answers = pipeline.segment(pixels, phrases)
    if out is not None:
        from sam4mllm.overlay import draw

        try:
            draw(pixels, answers).save(out)
        except (OSError, ValueError) as error:
            raise Sam4mllmError(f"{out} could not be written: {error}") from error
    if as_json:
        print(json.dumps([_as_json(answer, pipeline.strategy) for answer in answers]))
        return
    for answer in answers:
        print(one_line(_as_line(answer)))
    print(f"{sum(answers[0].timings.values()):.2f} s for {len(answers)} phrases")
    if out is not None:
        print(f"overlay: {out}")


def _as_line(answer: Segmentation) -> str:
    if not answer.instances:
        return f"{answer.phrase}: {answer.note or f'no such object (P = {answer.no_target_probability:.2f})'}{_thought(answer)}"
    boxes = ", ".join(
        "[" + " ".join(f"{side:.0f}" for side in instance.box_px) + f"] {instance.score:.2f}" for instance in answer.instances
    )
    note = f" ({answer.note})" if answer.note else ""
    return f"{answer.phrase}: {len(answer.instances)} found, {int(answer.mask.sum())} pixels, box and score {boxes}{note}{_thought(answer)}"


def _thought(answer: Segmentation) -> str:
    return f"; thought: {shortened(answer.thought)}" if answer.thought else ""


def _as_json(answer: Segmentation, strategy: str) -> dict[str, Any]:
    from sam4mllm.run_lengths import to_rle

    return {
        "phrase": answer.phrase,
        "score": answer.score,
        "calibrated": answer.calibrated,
        "no_target_probability": answer.no_target_probability,
        "strategy": strategy,
        "version": answer.version,
        "note": answer.note,
        "thought": answer.thought,
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
