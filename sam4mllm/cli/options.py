"""The options that commands have in common."""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sam4mllm.options import (
    MAX_THOUGHT_TOKENS,
    STRATEGIES,
    THOUGHT_TOKENS,
    THRESHOLD,
    AskedStrategy,
    DtypeName,
    LookBack,
    Options,
    Pattern,
    PointsName,
    Precision,
    QuantizeName,
    check_named,
)

if TYPE_CHECKING:
    from sam4mllm.pipeline import Pipeline


class NounsName(StrEnum):
    """Which nouns the phrases of demo scenes ask for."""

    KNOWN = "known"
    NOVEL = "novel"


class SceneKind(StrEnum):
    """Which demo scenes: the keys of :data:`~sam4mllm.demo.dataset.MAKERS`."""

    DEFAULT = "default"
    AMBIGUOUS = "ambiguous"
    MIXED = "mixed"
    RELATIONAL = "relational"
    SHIFTED = "shifted"


def known_strategy(given: str) -> str:
    """Return ``given`` if it is ``auto`` or the name of a strategy. Raises BadParameter if it is neither."""
    try:
        return check_named(given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


DeviceMapName = Literal["auto"]

ModelOption = Annotated[str | None, typer.Option("--model", help="demo, a model folder, a hub id, or none; the adapter's, or demo.")]
AdapterOption = Annotated[str | None, typer.Option("--adapter", help="A folder with a LoRA adapter, or a version.", metavar="PATH|VERSION")]
SegmenterOption = Annotated[
    str | None,
    typer.Option("--segmenter", help="demo, vit_b|vit_l|vit_h:PATH, efficientvit-sam-xl1:PATH, a folder or hub id, or another package's."),
]
DialectOption = Annotated[
    str | None, typer.Option("--dialect", help="How the model is spoken to, where neither adapter nor family says it: a name or a file.")
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 …; a GPU if there is one.")]
DtypeOption = Annotated[DtypeName, typer.Option("--dtype", help="Numbers of the model; auto: bf16 on a GPU, fp32 on a CPU.")]
QuantizeOption = Annotated[
    QuantizeName,
    typer.Option("--quantize", help="8 or 4 bit weights of the language model; needs bitsandbytes."),
]
DeviceMapOption = Annotated[DeviceMapName | None, typer.Option("--device-map", help="auto: spread the model over all GPUs.")]
StrategyOption = Annotated[
    AskedStrategy,
    typer.Option(
        "--strategy",
        callback=known_strategy,
        metavar=f"[auto|{'|'.join(STRATEGIES)}|…]",
        help="How to find the mask; auto: by points (pqpp) if the model has learned them, else by the box; with --model none by what the "
        "segmenter finds (concept); … is a strategy of another package.",
    ),
]
PointsOption = Annotated[
    PointsName | None,
    typer.Option("--points", help="Ask each point on its own (packed) or all in one answer (joint); the adapter's way, else packed."),
]
PatternOption = Annotated[
    Pattern,
    typer.Option("--pattern", help="Where points fall: spread as published, or by the box's mask, by the first answers, or asked again."),
]
ThresholdOption = Annotated[
    float, typer.Option("--threshold", min=0, max=1, help="With strategy concept or choose: the least score of what the segmenter finds.")
]
ThoughtTokensOption = Annotated[
    int,
    typer.Option(
        "--thought-tokens", min=1, max=MAX_THOUGHT_TOKENS, help="With --strategy reason, tokens after which a thought is cut off."
    ),
]
LookBackOption = Annotated[
    LookBack,
    typer.Option("--look-back", help="Show the model each mask and ask if it is right: for its score, or to drop what is denied."),
]
DatasetArgument = Annotated[Path, typer.Argument(help="A folder in the dataset format.")]
SplitOption = Annotated[str | None, typer.Option("--split", help="val, testA, testB, test …; all if it is not given.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many images, drawn by --seed.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Another seed draws other images.")]
MinPixelsOption = Annotated[int, typer.Option("--min-pixels", min=0, help="Take a predicted mask of fewer pixels for none.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def as_options(
    strategy: AskedStrategy,
    points: PointsName | None,
    pattern: Pattern,
    *,
    threshold: float = THRESHOLD,
    thought_tokens: int = THOUGHT_TOKENS,
    look_back: LookBack = "off",
) -> Options:
    """Put the options that say how an answer is found into one Options."""
    joint = None if points is None else points == "joint"
    return Options(strategy=strategy, joint=joint, pattern=pattern, threshold=threshold, thought_tokens=thought_tokens, look_back=look_back)


def hush() -> None:
    """Keep other libraries' bars and notices off the terminal, and let this package's notices of needed memory through. Call it before
    models are loaded.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    _say_needs()
    from transformers.utils import logging as transformers_logging  # takes seconds

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load(
    model: str | None,
    segmenter: str | None,
    device: str | None,
    options: Options,
    adapter: str | None,
    precision: Precision,
    dialect: str | None = None,
    segmenter_adapter: str | None = None,
) -> Pipeline:
    """Load the pipeline that a command uses, without other libraries' notices on the terminal."""
    hush()
    from sam4mllm.loading import load_pipeline  # imported late, so that errors and help texts do not wait for it

    return load_pipeline(model, segmenter, device, options, adapter, precision, dialect, segmenter_adapter)


def _say_needs() -> None:
    """Print the messages of the log ``sam4mllm.memory``, which say how much memory models need, on standard error."""
    log = logging.getLogger("sam4mllm.memory")
    log.setLevel(logging.INFO)
    log.handlers = [logging.StreamHandler()]
