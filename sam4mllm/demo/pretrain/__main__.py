"""The demo models' recipe: all of it by one command, or stage by stage. A stage continues from the newest training state in its folder and
stops cleanly on SIGTERM; the same command then goes on.

    python -m sam4mllm.demo.pretrain --runs RUNS --minutes 600

trains every stage and writes the models into RUNS/models. The stages by themselves:

    python -m sam4mllm.demo.pretrain segmenter RUNS/segmenter-small --size 256
    python -m sam4mllm.demo.pretrain segmenter RUNS/segmenter --small RUNS/segmenter-small/step-…
    python -m sam4mllm.demo.pretrain tower RUNS/tower
    python -m sam4mllm.demo.pretrain language RUNS/language --tower RUNS/tower/step-…
    python -m sam4mllm.demo.pretrain export RUNS

``export`` overwrites the model folders in the package. With ``--shipped`` a new run starts from the weights in the package instead;
``export --share`` then writes a weighted mean of the MLLM's weights in the package and the new ones.
``--device cuda`` trains on a GPU; it learns from scenes faster than one process draws them, so give it more ``--workers``.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sam4mllm.demo.pretrain import export, language, segmenter, tower
from sam4mllm.demo.pretrain.examples import BOXES_ONLY
from sam4mllm.demo.pretrain.recipe import GROWN, SHIPPED, STEPS, WholeRun, load_package_weights, train_all
from sam4mllm.demo.pretrain.tower import DemoTrainee
from sam4mllm.errors import Sam4mllmError, first_line
from sam4mllm.grounding.families import DEMO_FOLDER as MLLM_FOLDER
from sam4mllm.loading import pick_device
from sam4mllm.segmentation.loading import DEMO_FOLDER as SEGMENTER_FOLDER
from sam4mllm.segmentation.small_sam import SEGMENTER_SIZE

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)
ASSETS = MLLM_FOLDER.parent
Threads = Annotated[int, typer.Option(help="CPU threads.")]
Shipped = Annotated[bool, typer.Option("--shipped", help="Start from the package's weights.")]
Minutes = Annotated[float | None, typer.Option(help="A budget of training time; resumed runs count together.")]
Seed = Annotated[int, typer.Option(help="Of scenes: a run that goes on from shipped weights takes one that no run before it had.")]
Device = Annotated[str, typer.Option(help="cpu, or cuda where there is a GPU; a run may go on on another.")]
Workers = Annotated[int, typer.Option(help="Processes that draw scenes ahead.")]


@app.callback(invoke_without_command=True)
def train_everything(
    context: typer.Context,
    runs: Annotated[Path, typer.Option("--runs", help="A folder for the stages' states and logs.")] = Path("runs"),
    threads: Threads = 1,
    shipped: Shipped = False,
    minutes: Minutes = None,
    workers: Workers = 1,
    device: Device = "cpu",
) -> None:
    """Train all stages in order and write the models into RUNS/models."""
    if context.invoked_subcommand is None:
        whole = WholeRun(runs, shipped, minutes, threads, workers, device=pick_device(device))
        if not train_all(whole, print):
            print("stopped before the end; the same command goes on")


@app.command("segmenter")
def train_segmenter(
    folder: Path,
    *,
    small: Annotated[Path | None, typer.Option("--small", help="Start from a saved state (step-N) of the small size.")] = None,
    size: int = SEGMENTER_SIZE,
    steps: Annotated[int | None, typer.Option(help="The recipe's if it is not given.")] = None,
    threads: Threads = 1,
    shipped: Shipped = False,
    minutes: Minutes = None,
    workers: Workers = 1,
    seed: Seed = segmenter.SEED,
    device: Device = "cpu",
) -> None:
    """Train the segmenter on scenes: first with --size 256, then at full size with --small STATE."""
    source = SEGMENTER_FOLDER if shipped else small
    begin = partial(segmenter.grow, small=source) if source else None
    named = SHIPPED if shipped else GROWN if small else "random"
    segmenter.train(
        folder,
        steps or STEPS["segmenter-small" if size == segmenter.SMALL else "segmenter"],
        threads=threads,
        size=size,
        begin=begin,
        source=named,
        minutes=minutes,
        workers=workers,
        seed=seed,
        device=pick_device(device),
    )


@app.command("tower")
def train_tower(folder: Path, steps: int = STEPS["tower"], threads: Threads = 1, shipped: Shipped = False, device: Device = "cpu") -> None:
    """Train the MLLM's vision tower on crowded scenes."""
    tower.train(folder, steps, threads=threads, begin=load_package_weights if shipped else None, device=pick_device(device))


@app.command("language")
def train_language(
    folder: Path,
    *,
    tower_state: Annotated[Path | None, typer.Option("--tower", help="A saved state (step-N) of the tower stage.")] = None,
    steps: int = STEPS["language"],
    threads: Threads = 2,
    shipped: Shipped = False,
    minutes: Minutes = None,
    workers: Workers = 1,
    rate: Annotated[float | None, typer.Option(help="The peak learning rate instead of the recipe's.")] = None,
    seed: Seed = language.SEED,
    device: Device = "cpu",
) -> None:
    """Train the whole MLLM on scenes with phrases."""
    if (tower_state is None) != shipped:
        raise typer.BadParameter("give either --tower STATE or --shipped")
    begin = load_package_weights if tower_state is None else partial(language.start, tower=tower_state)
    peak = rate or (language.RATE_TRAINED if shipped else language.RATE)
    boxes_only = 0 if shipped else BOXES_ONLY
    language.train(
        folder,
        begin,
        steps,
        threads=threads,
        rate=peak,
        minutes=minutes,
        workers=workers,
        boxes_only=boxes_only,
        seed=seed,
        device=pick_device(device),
    )


@app.command("export")
def write_assets(
    runs: Path,
    share: Annotated[float, typer.Option("--share", min=0, max=1, help="Of the MLLM, how much is of the new weights.")] = 1.0,
) -> None:
    """Write the newest states of ``language`` and ``segmenter`` in RUNS, those that there are, as the package's model folders."""
    for newest in sorted((runs / "language").glob("step-*"))[-1:]:
        trainee = export.read_trainee(newest)
        if share < 1:
            shipped = DemoTrainee()
            load_package_weights(shipped)
            export.average(trainee, shipped, share)
        export.export_mllm(trainee, MLLM_FOLDER)
        export.export_heads(trainee, ASSETS)
    for newest in sorted((runs / "segmenter").glob("step-*"))[-1:]:
        export.export_segmenter(newest, SEGMENTER_FOLDER)


def main() -> None:
    """Run the command line; print an error of the project or of the operating system (a full disk, say) as one line, and exit with status
    1.
    """
    try:
        app()
    except (Sam4mllmError, OSError) as error:
        typer.secho(f"error: {first_line(error)}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
