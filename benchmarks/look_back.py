"""Whether the look back tells wrong masks from right ones, and what dropping the masks that it denies costs or gains.

    python -m benchmarks.look_back [--count 120] [--seed 990401] [--model demo] [--segmenter demo] [--json FILE]

In a look back the MLLM is shown the outline of a mask and asked whether it is what the phrase means. The scenes are mixed: two thirds are
default ones, one third has two things in nearly one box; all have five phrases. Each answer is made once, with the look back. ``off``
scores the same masks without its part in the score; ``shuffled``, the control, exchanges the replies to the looks among the masks, which
must gain nothing. A mask is right if its IoU with a thing that is meant is at least 0.5. The AUROC says how often, of a right mask and a
wrong one, the right one has the higher score. Intervals are 95 % bootstrap intervals over scenes, and differences are paired.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import sam4mllm
from benchmarks.score import auroc
from sam4mllm.confidence import Features, score
from sam4mllm.demo.dataset import MAKERS
from sam4mllm.evaluation.intervals import Difference, differences, sum_by_image
from sam4mllm.evaluation.metrics import compare
from sam4mllm.look_back import DENIED
from sam4mllm.masks import mask_iou, union
from sam4mllm.options import Options
from sam4mllm.pipeline import Pipeline

RIGHT_IOU = 0.5
DRAWS = 2000
BAR = 0.02


@dataclass(frozen=True)
class Shown:
    """A mask that was looked back at: the number of its scene, its features, and its best IoU with a thing that is meant."""

    scene: int
    features: Features
    iou: float

    @property
    def right(self) -> bool:
        return self.iou >= RIGHT_IOU


@dataclass(frozen=True)
class Answered:
    """An answer's contribution to gIoU: ``whole`` with all its masks, and ``dropped`` without those that the look back denied."""

    scene: int
    whole: float
    dropped: float


def look_at(pipeline: Pipeline, kind: str, seed: int, scenes: int) -> tuple[list[Shown], list[Answered]]:
    """All masks and answers of the scenes of a kind."""
    masks: list[Shown] = []
    answers: list[Answered] = []
    for index in range(scenes):
        scene = MAKERS[kind]((seed, index), None)
        found = pipeline.segment(scene.image, [one.phrase for one in scene.expressions])
        for expression, one in zip(scene.expressions, found, strict=True):
            meant = scene.masks[list(expression.targets)]
            best = [max((mask_iou(drawn.mask, truth) for truth in meant), default=0.0) for drawn in one.instances]
            masks += [Shown(index, drawn.features, iou) for drawn, iou in zip(one.instances, best, strict=True)]
            kept = [drawn.mask for drawn in one.instances if drawn.features.looked >= DENIED]
            left = union(np.array(kept, np.bool_).reshape(-1, *one.mask.shape))
            ious = [compare(drawn, union(meant), bool(len(meant))).iou for drawn in (one.mask, left)]
            answers.append(Answered(index, *ious))
    return masks, answers


def scores_of(masks: Sequence[Shown]) -> dict[str, NDArray[np.float64]]:
    """Return the scores of all masks in three ways: without the look back, with it, and with its replies shuffled among the masks."""
    other = np.random.default_rng(0).permutation([one.features.looked for one in masks])
    looked = {
        "off": np.ones(len(masks)),
        "look back": np.array([one.features.looked for one in masks]),
        "shuffled": other,
    }
    return {
        name: np.array([score(replace(one.features, looked=float(sure))) for one, sure in zip(masks, some, strict=True)])
        for name, some in looked.items()
    }


def auroc_table(masks: Sequence[Shown], scores: dict[str, NDArray[np.float64]]) -> dict[str, tuple[float, float, float]]:
    """Return, for each kind of score, the AUROC and its interval, and the same for its difference to ``off``."""
    good, scenes = np.array([one.right for one in masks]), np.array([one.scene for one in masks])
    every = np.arange(len(masks))
    groups = [np.flatnonzero(scenes == scene) for scene in np.unique(scenes)]
    rng = np.random.default_rng(0)
    draws = [every, *(np.concatenate([groups[at] for at in rng.integers(len(groups), size=len(groups))]) for _ in range(DRAWS))]
    draws = [draw for draw in draws if good[draw].any() and not good[draw].all()]
    table = {name: np.array([auroc(some[draw], good[draw]) for draw in draws]) for name, some in scores.items()}
    rows = {**table, **{f"{name} − off": table[name] - table["off"] for name in table if name != "off"}}
    ends = {name: np.quantile(values[1:], [0.025, 0.975]) for name, values in rows.items()}
    return {name: (float(values[0]), float(ends[name][0]), float(ends[name][1])) for name, values in rows.items()}


def gain_of_dropping(answers: Sequence[Answered]) -> Difference | None:
    """Return by how much gIoU changes if the denied masks are dropped; None if no difference can be computed."""
    scenes = [str(one.scene) for one in answers]
    dropped, whole = (
        sum_by_image(scenes, [{"gIoU": (iou, 1.0)} for iou in ious])
        for ious in ([one.dropped for one in answers], [one.whole for one in answers])
    )
    return differences(dropped, whole)["gIoU"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=120, help="scenes")
    parser.add_argument("--seed", type=int, default=990_401)
    parser.add_argument("--kind", default="mixed", choices=MAKERS)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--segmenter", default="demo")
    parser.add_argument("--json", type=Path, help="write every mask's features here")
    arguments = parser.parse_args()
    pipeline = sam4mllm.load(arguments.model, arguments.segmenter, options=Options("pqpp", look_back="score"))
    masks, answers = look_at(pipeline, arguments.kind, arguments.seed, arguments.count)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in masks]))
    wrong = sum(not one.right for one in masks)
    print(f"{len(answers)} phrases, {len(masks)} masks, {wrong} of them wrong\n")
    if not 0 < wrong < len(masks):
        print("there is nothing to tell apart: take more scenes")
        return
    found = auroc_table(masks, scores_of(masks))
    for name, (value, low, high) in found.items():
        print(f"AUROC {name:20} {value:+.3f} ({low:+.3f} to {high:+.3f})")
    looked = np.array([one.features.looked for one in masks])
    right = np.array([one.right for one in masks])
    print(f"AUROC of P(yes) alone    {auroc(looked, right):.3f}; yes to {(looked[right] >= DENIED).mean():.3f} of the right, ", end="")
    print(f"no to {(looked[~right] < DENIED).mean():.3f} of the wrong")
    if dropping := gain_of_dropping(answers):
        print(f"gIoU, denied masks dropped − all kept: {dropping.value:+.4f} ({dropping.low:+.4f} to {dropping.high:+.4f})")
    gain = found["look back − off"]
    print(f"\nThe bar, +{BAR} with a lower end above 0: {'met' if gain[0] >= BAR and gain[1] > 0 else 'MISSED'}")


if __name__ == "__main__":
    main()
