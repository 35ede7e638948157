"""Whether an adapter of the segmenter learns where a team draws its edges, and how much worse the true masks are met for it.

    python -m benchmarks.decoder [--seed 990511] [--seeds 3] [--unseen 40]

The scenes and the segmenter are the demo's. Simulated reviewers correct three things in each of ten pictures. The adapter is fitted as by
``sam4mllm train --segmenter-adapter`` and judged on other pictures, from boxes whose sides are off by 6 % and points of which 5 % have a
wrong label. The reviewers' habits: ``wide`` draws 3 pixels beyond the truth; ``hulls`` draws convex hulls; ``exact`` draws the truth;
``shuffled``, the control, draws each thing's mask at another place. Intervals are 95 % bootstrap intervals over scenes. Ends with 1 if a
bar is missed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.edges import DRAWS, Habit, exact, hulls, wide
from sam4mllm.demo.scenes import DemoScene, make_scene
from sam4mllm.masks import box_of, mask_iou
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.protocol import Segmenter
from sam4mllm.segmentation.sam import SamSegmenter
from sam4mllm.training.decoder_fit import DecoderLesson, draw_prompt, fit_decoder, make_lessons
from sam4mllm.values import Prompt

PICTURES, THINGS = 10, 3
GAIN, COST, SECONDS = 0.02, 0.015, 60
"""The bars: the least gain in IoU with the masks of ``wide`` reviewers, the most loss in IoU with the true masks, and the most CPU seconds
of a fit."""

Mask = NDArray[np.bool_]


def shuffled(truth: Mask, rng: np.random.Generator) -> Mask:
    """Return the true mask moved by 20 to 99 pixels in each direction, around the image's borders: as large, but at a wrong place."""
    return np.roll(truth, rng.integers(20, 100, 2), (0, 1))


@dataclass(frozen=True)
class Case:
    """A thing on which segmenters are judged, with its true mask (H, W) and one prompt for it. ``place`` is the number of the scene."""

    scene: DemoScene
    place: int
    truth: Mask
    prompt: Prompt


def draw_cases(segmenter: SamSegmenter, seed: int, count: int) -> list[Case]:
    cases = []
    for place in range(count):
        scene, rng = make_scene((seed, 1000 + place)), np.random.default_rng([seed, place])
        for truth, lesson in zip(scene.masks, _lessons(segmenter, scene, exact, rng), strict=False):
            cases.append(Case(scene, place, truth, draw_prompt(lesson, rng)))
    return cases


def judge(segmenter: Segmenter, cases: Sequence[Case], habit: Habit) -> NDArray[np.float64]:
    """Return (N, 2) the IoU of the mask drawn for each case with the reviewers' mask and with the true one."""
    rows = []
    for case in cases:
        [masks] = segmenter.decode(segmenter.encode(case.scene.image), [case.prompt])
        drawn = masks.mask(masks.best)
        own = habit(case.truth, np.random.default_rng(case.place))
        rows.append((mask_iou(drawn, own), mask_iou(drawn, case.truth)))
    return np.array(rows)


def fitted(habit: Habit, seed: int) -> tuple[SamSegmenter, float]:
    """A segmenter with an adapter fitted to a habit, and the CPU seconds that took."""
    segmenter, rng = load(), np.random.default_rng(seed)
    scenes = [make_scene((seed, place)) for place in range(PICTURES)]
    began = time.process_time()
    lessons = [lesson for scene in scenes for lesson in _lessons(segmenter, scene, habit, rng)]
    fit_decoder(segmenter, lessons, seed=seed)
    return segmenter, time.process_time() - began


def load() -> SamSegmenter:
    segmenter = load_segmenter("demo", torch.device("cpu"))
    assert isinstance(segmenter, SamSegmenter)
    return segmenter


def over_scenes(changes: NDArray[np.float64], cases: Sequence[Case]) -> tuple[float, float, float]:
    """Return the mean of the changes (N,) of the cases, and the ends of its bootstrap 95 % interval over scenes."""
    places = np.array([case.place for case in cases])
    sums = np.array([changes[places == place].sum() for place in np.unique(places)])
    counts = np.array([(places == place).sum() for place in np.unique(places)])
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(changes.mean()), float(low), float(high)


def _lessons(segmenter: SamSegmenter, scene: DemoScene, habit: Habit, rng: np.random.Generator) -> list[DecoderLesson]:
    masks = np.stack([habit(mask, rng) for mask in scene.masks[:THINGS]])
    return make_lessons(segmenter, scene.image, masks, np.stack([box_of(mask) for mask in masks]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=990_511)
    parser.add_argument("--seeds", type=int, default=3, help="teams, each with ten pictures of its own")
    parser.add_argument("--unseen", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain, met = load(), True
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        cases = draw_cases(plain, seed, arguments.unseen)
        for habit in (wide, hulls, exact, shuffled):
            before = judge(plain, cases, habit)
            segmenter, seconds = fitted(habit, seed)
            changes = judge(segmenter, cases, habit) - before
            own, truth = (over_scenes(changes[:, column], cases) for column in (0, 1))
            line = f"{seed} {habit.__name__}: their masks {_show(own)}, the plain truth {_show(truth)}, {seconds:.0f} s"
            print(f"{line} (before: {before[:, 0].mean():.3f}, {before[:, 1].mean():.3f})", flush=True)
            if habit is wide:
                met &= own[0] >= GAIN and own[1] > 0 and seconds <= SECONDS
            if habit is not shuffled and habit is not hulls:
                met &= truth[0] >= -COST
    if not met:
        raise SystemExit(1)


def _show(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    main()
