"""Every pattern of points with every choice of the mask, on the same images, compared with the published pattern and choice.

    python -m benchmarks.points FOLDER [--shake 0.08] [--model demo] [--segmenter demo] [--patterns unsure …] [--choices single …]

Without ``--shake`` it is ``sam4mllm ablate FOLDER --over pattern,choice --grid`` with more decimal places. ``--shake`` imitates a model
that finds things less exactly than the demo on its own scenes: it shifts each side of the MLLM's boxes by a normally distributed amount,
whose standard deviation is this share of the box's width or height. The shifts are the same for all rows. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import sam4mllm
from sam4mllm.evaluation.ablation import Journal, ablate
from sam4mllm.evaluation.ablation_table import Row, tabulate
from sam4mllm.evaluation.run import choose
from sam4mllm.evaluation.settings import Setting, plan
from sam4mllm.grounding.protocol import Grounder, Inquiry, Question, Replies, Scene
from sam4mllm.options import CHOICES, PATTERNS, Options
from sam4mllm.pipeline import Pipeline
from sam4mllm.values import Grounding

HEADS = (
    "pattern, choice",
    "gIoU",
    "difference × 100 (95 %)",
    "mIoU",
    "difference × 100 (95 %)",
    "points right",
    "s a phrase",
    "of base",
)


class ShakenGrounder:
    """Wraps a grounder and shifts its boxes at random, by a share of their sides. The same phrase and boxes are always shifted alike."""

    def __init__(self, grounder: Grounder, share: float) -> None:
        self._grounder = grounder
        self._share = share

    @property
    def identity(self) -> str:
        return f"{self._grounder.identity} shaken by {self._share}"

    def open(self, image: NDArray[np.uint8]) -> Scene:
        return self._grounder.open(image)

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        return [self._shaken(found, scene) for found in self._grounder.ground(scene, phrases, question)]

    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        return [self._shaken(found, scene) for found in self._grounder.ground_after(scene, phrases, thoughts)]

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        return self._grounder.confirm(scene, phrases)

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        return self._grounder.name(scene, phrases)

    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        return self._grounder.ask(scene, inquiries, joint)

    def _shaken(self, found: Grounding, scene: Scene) -> Grounding:
        boxes = found.boxes_px
        rng = np.random.default_rng([scene.width, scene.height, *found.phrase.encode(), *boxes.astype(np.int64).ravel().tolist()])
        moved = boxes + rng.normal(0, self._share, boxes.shape) * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        inside = np.clip(moved, 0, [scene.width, scene.height] * 2).reshape(-1, 2, 2)
        return replace(found, boxes_px=np.concatenate([inside.min(1), inside.max(1)], 1).astype(np.float32))


def measure(pipeline: Pipeline, folder: Path, patterns: Sequence[str], choices: Sequence[str]) -> list[Row]:
    """Return a row for the published pattern and choice, and then one for every other pair. Each image of the dataset is taken in once."""
    settings = plan(Setting(("base",), Options()), {"pattern": patterns, "choice": choices}, grid=True)
    compared = [setting for setting in settings if not setting.oracle]
    return tabulate(ablate(compared, folder, choose(folder), lambda *_: pipeline, Journal()))


def as_markdown(rows: Sequence[Row]) -> str:
    """Return the rows as the table of docs/points.md, with differences in hundredths."""
    lines = [f"| {' | '.join(HEADS)} |", "|---|" + "---|" * (len(HEADS) - 1)]
    base = rows[0].figures["seconds_per_phrase"] or 1.0
    for row in rows:
        seconds = row.figures["seconds_per_phrase"] or 0.0
        cells = [_name(row), *(cell for name in ("gIoU", "mIoU") for cell in (_figure(row, name), _gain(row, name)))]
        cells += [_figure(row, "asked_right"), f"{seconds:.3f}", f"{seconds / base:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _name(row: Row) -> str:
    options = row.setting.options
    return f"{options.pattern}, {options.choice}" + (", joint, 15 points" if options.joint else "")


def _figure(row: Row, name: str) -> str:
    value = row.figures[name]
    return "–" if value is None else f"{value:.4f}"


def _gain(row: Row, name: str) -> str:
    gain = row.to_base[name]
    if gain is None or "base" in row.setting.names:
        return "–"
    return f"{100 * gain.value:+.2f} ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})".replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a dataset, such as sam4mllm scenes writes")
    parser.add_argument("--shake", type=float, default=0.0, help="standard deviation of each side of a box, as a share of its sides")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=PATTERNS)
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=CHOICES)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--segmenter", default="demo")
    arguments = parser.parse_args()
    loaded = sam4mllm.load(arguments.model, arguments.segmenter)
    grounder = ShakenGrounder(loaded.grounder, arguments.shake) if arguments.shake else loaded.grounder
    pipeline = loaded.through(grounder)
    print(as_markdown(measure(pipeline, arguments.folder, arguments.patterns, arguments.choices)))


if __name__ == "__main__":
    main()
