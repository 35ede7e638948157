"""The whole recipe in one run: every stage in order, each from what the one before it saved, then the model folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sam4mllm.demo.pretrain import export, language, segmenter, tower
from sam4mllm.demo.pretrain.examples import BOXES_ONLY
from sam4mllm.demo.pretrain.loop import CPU
from sam4mllm.demo.pretrain.tower import DemoTrainee
from sam4mllm.errors import TrainingError
from sam4mllm.grounding.families import DEMO_FOLDER as MLLM_FOLDER
from sam4mllm.segmentation.loading import DEMO_FOLDER as SEGMENTER_FOLDER
from sam4mllm.training.state import newest_state, read_state

STEPS = {"segmenter-small": 3500, "segmenter": 40_000, "tower": 7000, "language": 20_000}
"""Steps of each stage, unless a budget of minutes ends it before; a step has 4 images in the segmenter's stages and 8 in the others. The
numbers are estimates from the curves of shorter runs.
"""
SHARES = {"segmenter-small": 0.08, "segmenter": 0.42, "tower": 0.12, "language": 0.38}
"""Each stage's share of a budget of minutes. The segmenter and the MLLM get half of it each, as a good segmenter is of no use without a
good MLLM.
"""
MODELS = "models"
SHIPPED, GROWN = "shipped", "grown"
"""Names of the segmenter's first weights when they are not random: the package's, or those of the small size, grown to full size."""


@dataclass(frozen=True)
class WholeRun:
    """Settings of a run of the recipe; each stage has a folder of its own in ``runs``.

    ``shipped``: start from the package's weights and leave out the stages that only lead up to such weights. ``minutes``: a budget of
    training time for all stages, resumed runs included.
    """

    runs: Path
    shipped: bool = False
    minutes: float | None = None
    threads: int = 1
    workers: int = 1
    steps: Mapping[str, int] = field(default_factory=lambda: STEPS)
    device: torch.device = CPU

    @property
    def stages(self) -> tuple[str, ...]:
        return ("segmenter", "language") if self.shipped else tuple(STEPS)

    def budget(self, stage: str) -> float | None:
        """A stage's minutes; what a stage that is left out would have had goes to the others."""
        return None if self.minutes is None else self.minutes * SHARES[stage] / sum(SHARES[one] for one in self.stages)

    def saved(self, stage: str) -> Path:
        """Return the newest saved state of a stage, for the next one to start from. Raises TrainingError if there is none."""
        found = newest_state(self.runs / stage)
        if found is None:
            raise TrainingError(f"{self.runs / stage} holds no saved state: run the stage {stage} first")
        return found


def load_package_weights(trainee: DemoTrainee) -> None:
    """Load the MLLM and the dense heads that the package ships into a trainee."""
    export.load_shipped(trainee, MLLM_FOLDER, MLLM_FOLDER.parent)


def train_all(whole: WholeRun, tell: Callable[[str], None]) -> bool:
    """Train every stage that is not done yet, and write the model folders ``mllm`` and ``segmenter`` into the folder MODELS in
    ``whole.runs``, in place of any that are there. ``tell`` gets a line of progress at a time.

    Return True at the end, and False if training was asked to stop (SIGTERM); the same call then continues where it stopped. Raises
    TrainingError or ModelError if a run was begun with another recipe, if a saved state is missing or damaged, or if a GPU fails.
    """
    for stage in whole.stages:
        minutes = whole.budget(stage)
        tell(f"{stage}: at most {whole.steps[stage]:,} steps" + ("" if minutes is None else f" and {minutes:.1f} minutes"))
        _train(whole, stage, minutes)
        state = read_state(whole.runs / stage) or {}
        step, trained = state.get("step", 0), state.get("seconds", 0.0) / 60
        tell(f"{stage}: step {step:,} after {trained:.1f} minutes of training")
        if step < whole.steps[stage] and (minutes is None or trained < minutes):
            return False
    folder = whole.runs / MODELS
    export.export_mllm(export.read_trainee(whole.saved("language")), folder / "mllm")
    export.export_segmenter(whole.saved("segmenter"), folder / "segmenter")
    tell(f"models: {folder}")
    return True


def _train(whole: WholeRun, stage: str, minutes: float | None) -> None:
    folder, steps = whole.runs / stage, whole.steps[stage]
    how: Any = {"threads": whole.threads, "minutes": minutes, "device": whole.device}
    match stage:
        case "segmenter-small":
            segmenter.train(folder, steps, size=segmenter.SMALL, workers=whole.workers, **how)
        case "segmenter":
            grown = SEGMENTER_FOLDER if whole.shipped else whole.saved("segmenter-small")
            begin = partial(segmenter.grow, small=grown)
            source = SHIPPED if whole.shipped else GROWN
            segmenter.train(folder, steps, begin=begin, source=source, workers=whole.workers, **how)
        case "tower":
            tower.train(folder, steps, **how)
        case "language":
            first = load_package_weights if whole.shipped else partial(language.start, tower=whole.saved("tower"))
            language.train(
                folder,
                first,
                steps,
                rate=language.RATE_TRAINED if whole.shipped else language.RATE,
                workers=whole.workers,
                boxes_only=0 if whole.shipped else BOXES_ONLY,
                **how,
            )
