"""``sam4mllm train --segmenter-adapter``: what it refuses, shows and prints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sam4mllm.errors import TrainingError

if TYPE_CHECKING:
    import typer

    from sam4mllm.data.examples import Example

TAKEN = ("dataset", "out", "segmenter_adapter", "segmenter", "device", "steps", "seed", "as_json")
"""The arguments of ``sam4mllm train`` that may be given together with ``--segmenter-adapter``; the others concern the MLLM and are
refused."""


def refuse_others(context: typer.Context) -> None:
    """Raises TrainingError if an option is given that says how an MLLM is trained, or several processes were started."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("--segmenter-adapter trains in one process; leave accelerate launch out")
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in TAKEN and source is not None and source.name == "COMMANDLINE":
            option = max(next(one.opts for one in context.command.params if one.name == name), key=len)
            raise TrainingError(f"--segmenter-adapter trains the segmenter alone, and {option} is of the MLLM's training; leave it out")


def train_segmenter(dataset: Path, out: Path, segmenter: str | None, device: str | None, steps: int, seed: int, as_json: bool) -> None:
    """Train an adapter of the segmenter's mask decoder and print the result. ``steps`` 0 takes the usual number."""
    from sam4mllm.loading import pick_device
    from sam4mllm.training.decoder_fit import STEPS
    from sam4mllm.training.decoder_session import train_decoder

    steps, bar = steps or STEPS, pictures_bar("taking in the pictures")
    found = train_decoder(dataset, out, segmenter or "demo", pick_device(device), steps, seed, track=bar)
    summary = {"adapter": str(out), "steps": steps, **asdict(found)}
    line = f"{out}: {found.objects} objects in {found.pictures} pictures, {steps} steps, loss {found.loss:.3f}"
    print(json.dumps(summary) if as_json else f"{line}\nnext: sam4mllm adapters add {out} --promote")


def pictures_bar(what: str) -> Callable[[Iterable[list[Example]], int], Iterable[list[Example]]]:
    """Return a function that takes pictures and their number, and passes the pictures on with a progress bar named ``what`` on standard
    error, if that is a terminal.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return lambda pictures, total: track(pictures, what, total, console=console, transient=True, disable=not console.is_terminal)
