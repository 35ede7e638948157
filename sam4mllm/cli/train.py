"""``sam4mllm train``: its options, its progress bar, and how it is stopped."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam4mllm.cli.options import (
    DeviceMapOption,
    DeviceOption,
    DialectOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuantizeOption,
    hush,
)
from sam4mllm.cli.train_segmenter import pictures_bar, refuse_others, train_segmenter
from sam4mllm.options import Precision

if TYPE_CHECKING:
    from types import FrameType

    from sam4mllm.training.recipe import Progress
    from sam4mllm.training.session import Session

commands = typer.Typer()
CONFIG_HELP = "default, released, paper, demo, server, or a JSON or TOML file with steps, batch, rate, rank …"


@commands.command(epilog="Example: sam4mllm train /tmp/corrections --out /tmp/adapter --replay /tmp/scenes --steps 200")
def train(
    context: typer.Context,
    dataset: Annotated[Path, typer.Argument(help="A folder in the dataset format, of which the split train is learned.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Where to write the adapter: a new or empty folder.")],
    config: Annotated[str | None, typer.Option("--config", help=CONFIG_HELP)] = None,
    replay: Annotated[Path | None, typer.Option("--replay", help="A dataset of what the model knows, so that it does not forget.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps, instead of the plan's.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The same seed gives the same adapter.")] = None,
    segmenter: Annotated[str | None, typer.Option("--segmenter", help="It chooses PPG's points, or is trained: demo, vit_h:PATH …")] = None,
    conversations: Annotated[Path | None, typer.Option("--conversations", help="A LLaVA file, mixed in at conversation_share.")] = None,
    images: Annotated[Path | None, typer.Option("--conversation-images", help="Where its images' paths begin; else its folder.")] = None,
    tensorboard: Annotated[Path | None, typer.Option("--tensorboard", help="Write the curve here for TensorBoard.")] = None,
    wandb: Annotated[str | None, typer.Option("--wandb", help="Send the curve to this project at Weights & Biases.")] = None,
    model: ModelOption = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="Go on from this one, a folder or a version, not from none.", metavar="PATH|VERSION")
    ] = None,
    segmenter_adapter: Annotated[
        bool, typer.Option("--segmenter-adapter", help="Train one of the segmenter instead: where masks end, from some ten pictures on.")
    ] = False,
    dialect: DialectOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "none",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a LoRA adapter. Stopped with Ctrl-C, by SIGTERM or by a kill, the same command goes on from its last saved state.

    On several GPUs: accelerate launch -m sam4mllm train …
    """
    hush()
    if segmenter_adapter:
        refuse_others(context)
        train_segmenter(dataset, out, segmenter, device, steps or 0, seed or 0, as_json)
        return
    from sam4mllm.adapters.loose import find_adapter
    from sam4mllm.training.config import read_config  # torch takes seconds to import
    from sam4mllm.training.session import Extras, Session
    from sam4mllm.training.tracking import check_trackers

    check_trackers(tensorboard, wandb)
    settings = read_config(config, steps=steps, seed=seed)
    extras = Extras(None if config is None else settings.asking, segmenter, conversations, images, pictures_bar("prompting the segmenter"))
    precision = Precision(dtype, quantize, device_map)
    start = None if adapter is None else find_adapter(adapter)
    given = (dataset, out, settings.plan, model, device, replay)
    session = Session(*given, start=start, dialect=dialect, extras=extras, precision=precision)
    _run(session, tensorboard, wandb, as_json)


def _run(session: Session, tensorboard: Path | None, wandb: str | None, as_json: bool) -> None:
    """Train to the end and print the result. If it is stopped before, say so and raise typer.Exit with status 1."""
    from sam4mllm.training.tracking import tracking

    plan, first = session.trainer.plan, session.processes.first
    curves = tracking(plan, session.out.name, tensorboard, wandb) if first else nullcontext()
    with _stopping(session.trainer.stop), _training_bar(plan.steps) as (show, last), curves as note:

        def tell(progress: Progress) -> None:
            show(progress)
            if note is not None:
                note(progress)

        finished = session.run(tell)
    if not finished:
        at = f"at step {last[0].step} of {last[0].steps}" if last else "before its first step"
        if first:
            print(f"stopped {at}; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(1)
    if first:
        _print_trained(session.out, last[0] if last else None, len(session.examples), as_json)
    session.processes.leave()


def _print_trained(out: Path, last: Progress | None, phrases: int, as_json: bool) -> None:
    """Print the result. ``last`` is the last progress, or None if all steps were done before and only the adapter was left to write."""
    summary = {"adapter": str(out), "phrases": phrases, **({} if last is None else asdict(last))}
    done = "" if last is None else f": {last.steps} steps in {last.seconds:.0f} s, loss {last.loss:.3f}"
    print(json.dumps(summary) if as_json else f"{out}{done}")


@contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block, the first Ctrl-C or SIGTERM calls ``stop``, which ends the run after the step in progress; a second one ends the
    process at once.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)
        stop()

    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def _training_bar(steps: int) -> Iterator[tuple[Callable[[Progress], None], list[Progress]]]:
    """Show a progress bar on standard error, if that is a terminal.

    Yields a function that updates the bar, and a list that holds the last Progress given to it, or nothing yet.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
    last: list[Progress] = []
    console = Console(stderr=True)
    with Bar(TextColumn("training"), *columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=steps, loss="")

        def tell(progress: Progress) -> None:
            if not last and progress.step > 1:
                console.print(f"going on from step {progress.step}", highlight=False)
            last[:] = [progress]
            bar.update(task, completed=progress.step, total=progress.steps, loss=f"loss {progress.loss:.3f}")

        yield tell, last
