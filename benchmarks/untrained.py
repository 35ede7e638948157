"""What point questions cost with an MLLM that never learned to answer them: the demo model with replaced answers about points.

    python -m benchmarks.untrained [--scenes 40] [--seed 990062]

The demo's weights are loaded from a folder of another name, so that they are not recognised as the demo model. Prints the mean IoU with the
true masks minus that of the box alone, in hundredths: with ``auto``, with ``pqpp``, and with ``pqpp`` where answers that are all alike are
not dropped. The table has rows for the demo's segmenter, and for one that obeys every point.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import sam4mllm
from sam4mllm.demo.scenes import make_scene
from sam4mllm.grounding.families import DEMO_FOLDER
from sam4mllm.grounding.remembering import RememberingGrounder
from sam4mllm.masks import lies_on, mask_iou, union
from sam4mllm.options import AskedStrategy, Options
from sam4mllm.pipeline import Opened, Pipeline
from tests.obedient import ObedientSegmenter, Say, SayingGrounder, all_but_one, all_no, all_yes, noise, right_at

HEADS = ("answers", "segmenter", "auto", "pqpp", "pqpp, all answers kept")


@dataclass(frozen=True)
class Question:
    """A phrase that means something in an image, with the true mask (H, W) bool; ``opened`` is the image, taken in by the models."""

    opened: Opened
    phrase: str
    truth: NDArray[np.bool_]


@contextmanager
def unknown_demo() -> Iterator[Pipeline]:
    """Load the demo's weights from a temporary folder of another name, so that they are not recognised as the demo model."""
    with tempfile.TemporaryDirectory() as folder:
        yield sam4mllm.load(str(shutil.copytree(DEMO_FOLDER, Path(folder) / "copied")))


def ask(pipeline: Pipeline, seed: int, scenes: int) -> list[Question]:
    """Return a question about one noun in each of so many scenes."""
    questions = []
    for index in range(scenes):
        scene = make_scene((seed, index), kinds=("noun",))
        said = scene.expressions[0]
        questions.append(Question(pipeline.open(scene.image), said.phrase, union(scene.masks[list(said.targets)])))
    return questions


def mean_iou(pipeline: Pipeline, questions: list[Question]) -> float:
    return float(np.mean([mask_iou(pipeline.segment(one.opened, [one.phrase])[0].mask, one.truth) for one in questions]))


def rows(base: Pipeline, seed: int, scenes: int) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each row of the table."""
    grounder = RememberingGrounder(base.grounder)
    questions = ask(base.through(grounder), seed, scenes)
    boxes = [grounder.ground(one.opened.scene, [one.phrase])[0].boxes_px.tobytes() for one in questions]
    truths = {box: one.truth for box, one in zip(boxes, questions, strict=True)}
    said: dict[str, Say] = {"all yes": all_yes, "all no": all_no, "29 of 30 yes": all_but_one, "noise": noise}
    said["right at 60 %"] = right_at(0.6, lambda inquiry: lies_on(truths[inquiry.grounding.boxes_px.tobytes()], inquiry.points_px))
    for name, segmenter in (("demo", base.segmenter), ("obedient", ObedientSegmenter(base.segmenter))):

        def measure(say: Say, strategy: AskedStrategy, learned: bool) -> float:
            pipeline = Pipeline(SayingGrounder(grounder, say), segmenter, Options(strategy), base.slug, learned=learned)  # noqa: B023
            return mean_iou(pipeline, questions)

        box = measure(all_yes, "box", False)
        yield "–", name, f"box alone {box:.4f}", "", ""
        for answers, say in said.items():
            found = [measure(say, "auto", False), measure(say, "pqpp", False), measure(say, "pqpp", True)]
            yield answers, name, *(f"{100 * (value - box):+.2f}" for value in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40, help="a phrase each")
    parser.add_argument("--seed", type=int, default=990_062)
    arguments = parser.parse_args()
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    with unknown_demo() as base:
        for cells in rows(base, arguments.seed, arguments.scenes):
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
