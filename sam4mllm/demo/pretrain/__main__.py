"""The demo models' recipe, stage by stage; each stage continues from its newest checkpoint.

python -m sam4mllm.demo.pretrain segmenter RUNS/segmenter
python -m sam4mllm.demo.pretrain tower RUNS/tower
python -m sam4mllm.demo.pretrain language RUNS/language --tower RUNS/tower/step-…
python -m sam4mllm.demo.pretrain export RUNS
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sam4mllm.demo.pretrain import export, language, segmenter, tower
from sam4mllm.grounding.families import DEMO_FOLDER as MLLM_FOLDER
from sam4mllm.segmentation.loading import DEMO_FOLDER as SEGMENTER_FOLDER

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
Threads = Annotated[int, typer.Option(help="CPU threads.")]


@app.command("segmenter")
def train_segmenter(folder: Path, steps: int = 3600, threads: Threads = 1) -> None:
    """Train the segmenter on scenes."""
    segmenter.train(folder, steps, threads=threads)


@app.command("tower")
def train_tower(folder: Path, steps: int = 2500, threads: Threads = 1) -> None:
    """Train the MLLM's vision tower on crowded scenes."""
    tower.train(folder, steps, threads=threads)


@app.command("language")
def train_language(
    folder: Path, tower_checkpoint: Annotated[Path, typer.Option("--tower")], steps: int = 6000, threads: Threads = 2
) -> None:
    """Train the whole MLLM on scenes with phrases, from a checkpoint of the tower."""
    language.train(folder, tower_checkpoint, steps, threads=threads)


@app.command("export")
def write_assets(runs: Path, mllm: Path = MLLM_FOLDER, to_segmenter: Path = SEGMENTER_FOLDER) -> None:
    """Write the newest checkpoints of ``language`` and ``segmenter`` in RUNS as the package's model folders."""
    export.export_mllm(sorted((runs / "language").glob("step-*"))[-1], mllm)
    export.export_segmenter(sorted((runs / "segmenter").glob("step-*"))[-1], to_segmenter)


if __name__ == "__main__":
    app()
