"""Whether a segmenter obeys points: ambiguous scenes, with true, coin-flipped, inverted and random labels of points; clicks; small boxes.

    python -m benchmarks.obedience [--count 100] [--seed 990201] [--segmenter demo] [--state STEP]

On ambiguous scenes both things of each pair are prompted with their true box, alone and with the published 30 points; on default scenes all
things are. Also on default scenes, things are prompted by clicks without a box. Each click is put where the mask so far is wrong, at the
deepest place of the largest wrong region (the protocol of SAM and of interactive segmentation). The former mask is an input as well in two
of three series: as the segmenter's own logits, and as logits made from the mask alone. Small boxes around the deepest place of a thing ask
for the part of the thing inside them; an empty mask counts as an IoU of 0. Intervals are 95 % bootstrap intervals over scenes. ``--state``
takes the weights of a saved training state instead of the segmenter's own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sam4mllm.demo.scenes import DemoScene, make_ambiguous, make_scene
from sam4mllm.evaluation.intervals import differences, intervals, sum_by_image
from sam4mllm.masks import lies_on
from sam4mllm.options import PATTERN_SIZE, Thresholds
from sam4mllm.points import deepest, select, spread
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.protocol import Embedding, Segmenter
from sam4mllm.segmentation.sam import SamEmbedding, SamSegmenter
from sam4mllm.training.state import load_weights
from sam4mllm.values import Prompt

CLICKS = 5
Answer = Callable[[np.random.Generator, NDArray[np.bool_]], NDArray[np.float64]]
"""A function that answers P(inside) (N,) for points, given a random generator and whether each point lies on the thing (N,)."""
ANSWERS: dict[str, Answer] = {
    "true points": lambda rng, on: on.astype(np.float64),
    "coin-flipped": lambda rng, on: rng.integers(0, 2, len(on)).astype(np.float64),
    "inverted": lambda rng, on: (~on).astype(np.float64),
    "uniform": lambda rng, on: rng.random(len(on)),
}
Former = Literal["none", "logits", "mask"]
"""What a click's prompt holds of the mask before it: nothing, the segmenter's own logits, or what serving makes of the mask."""
SMALL = (0.012, 0.03, 0.1)
"""Sides of the small boxes, as shares of the image's sides. A reviewer who drags slightly where a click was meant draws one as small as the
first."""
NO_POINTS = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)


def with_points(box_px: NDArray[np.float32], mask: NDArray[np.bool_], answer: Answer, rng: np.random.Generator) -> Prompt:
    """Return the prompt of a box and those points of the published pattern that ``answer`` is sure enough about, with its labels."""
    points_px = spread(box_px, PATTERN_SIZE)
    kept, labels = select(answer(rng, lies_on(mask, points_px)), Thresholds())
    return Prompt(box_px, points_px[kept], labels)


def drawn(segmenter: Segmenter, embedding: Embedding, prompt: Prompt) -> NDArray[np.bool_]:
    """The mask (H, W) with the best predicted IoU."""
    [masks] = segmenter.decode(embedding, [prompt])
    return masks.mask(masks.best)


def iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    union = (mask | truth).sum()
    return float((mask & truth).sum() / union) if union else 1.0


def box_rows(segmenter: Segmenter, scene: DemoScene, picks: Sequence[int], seed: tuple[int, int]) -> list[dict[str, float]]:
    """Return, for each picked thing, its IoU with each kind of prompt with a box; ``picks`` are the indices of the things."""
    embedding = segmenter.encode(scene.image)
    rows = []
    for pick in picks:
        truth, box_px = scene.masks[pick], scene.boxes_px[pick]
        rng = np.random.default_rng([*seed, pick])
        prompts = {"box only": Prompt(box_px, *NO_POINTS)}
        prompts |= {name: with_points(box_px, truth, answer, rng) for name, answer in ANSWERS.items()}
        rows.append({name: iou(drawn(segmenter, embedding, prompt), truth) for name, prompt in prompts.items()})
    return rows


def next_click(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[NDArray[np.float32], int] | None:
    """Return the deepest place (2,) of the largest region in which the mask is wrong, and its true label; None where nothing is wrong."""
    wrong = (mask ^ truth).astype(np.uint8)
    count, regions, stats, _ = cv2.connectedComponentsWithStats(wrong, connectivity=8)
    if count < 2:
        return None
    largest = regions == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    depth = cv2.distanceTransform(np.pad(largest, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return np.array([column + 0.5, row + 0.5], np.float32), int(truth[row, column])


def click_rows(segmenter: SamSegmenter, scene: DemoScene, former: Former = "none") -> list[dict[str, float]]:
    """IoU of each thing after 1 to CLICKS clicks without a box."""
    embedding = segmenter.encode(scene.image)
    rows = []
    for truth in scene.masks:
        mask = np.zeros_like(truth)
        points, labels, row = [], [], dict[str, float]()
        known: NDArray[np.float32] | None = None
        for number in range(1, CLICKS + 1):
            click = next_click(mask, truth)
            if click is not None:
                points.append(click[0])
                labels.append(click[1])
                prompt = Prompt(None, np.array(points), np.array(labels, np.int64), mask_logits=known)
                mask = drawn(segmenter, embedding, prompt)
                known = logits_after(segmenter, embedding, prompt, mask, former)
            row[f"{number} clicks"] = iou(mask, truth)
        rows.append(row)
    return rows


def small_rows(segmenter: Segmenter, scene: DemoScene) -> list[dict[str, float]]:
    """Return, for small boxes around each thing's deepest place, the IoU with the thing's part in the box, and whether the mask is empty.

    The latter is 1.0 or 0.0.
    """
    embedding = segmenter.encode(scene.image)
    height, width = scene.image.shape[:2]
    rows = []
    for truth in scene.masks:
        middle, row = deepest(truth), dict[str, float]()
        for side in SMALL:
            half = np.array([width, height]) * side / 2
            box_px = np.concatenate([middle - half, middle + half]).clip(0, [width, height, width, height]).astype(np.float32)
            part, mask = truth & inside(box_px, truth.shape), drawn(segmenter, embedding, Prompt(box_px, *NO_POINTS))
            row |= {f"{side:.1%} of a side": iou(mask, part), f"{side:.1%}, nothing": float(not mask.any())}
        rows.append(row)
    return rows


def inside(box_px: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return (H, W) bool the pixels that a box touches; ``shape`` is (H, W)."""
    x1, y1, x2, y2 = np.concatenate([np.floor(box_px[:2]), np.ceil(box_px[2:])]).astype(int)
    found = np.zeros(shape, np.bool_)
    found[y1:y2, x1:x2] = True
    return found


def logits_after(
    segmenter: SamSegmenter, embedding: SamEmbedding, prompt: Prompt, mask: NDArray[np.bool_], former: Former
) -> NDArray[np.float32] | None:
    """Return the logits (1, h, w) of the mask (H, W) drawn for ``prompt`` that the next prompt holds; None if ``former`` is "none"."""
    if former == "none":
        return None
    if former == "mask":
        return segmenter.as_logits(embedding, mask)
    with torch.inference_mode():
        logits, predicted = segmenter.logits(embedding, [prompt])
    return np.asarray(logits[0, predicted[0].argmax()].numpy()[None], np.float32)


def report(title: str, scenes: Sequence[Sequence[dict[str, float]]], base: str | None) -> dict[str, object]:
    """Print and return each column's mean with its interval and, unless ``base`` is None, its difference to the column ``base``.

    ``scenes`` has the rows of each scene.
    """
    images = [str(index) for index, rows in enumerate(scenes) for _ in rows]
    flat = [row for rows in scenes for row in rows]
    found: dict[str, object] = {}
    print(f"\n{title}: {len(scenes)} scenes, {len(flat)} things")
    for name in flat[0]:
        sums = sum_by_image(images, [{"IoU": (row[name], 1.0)} for row in flat])
        value, ends = sums.figures()["IoU"], intervals(sums)["IoU"]
        assert value is not None
        assert ends is not None
        line, found[name] = f"  {name:14} {value:.3f} ({ends[0]:.3f} to {ends[1]:.3f})", [value, *ends]
        if base is not None and name != base:
            other = sum_by_image(images, [{"IoU": (row[base], 1.0)} for row in flat])
            gain = differences(sums, other)["IoU"]
            assert gain is not None
            line += f"   {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) to {base}"
            found[f"{name} - {base}"] = [gain.value, gain.low, gain.high]
        print(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="scenes of each kind")
    parser.add_argument("--seed", type=int, default=990_201)
    parser.add_argument("--segmenter", default="demo")
    parser.add_argument("--state", type=Path, help="a saved state of the recipe's segmenter stage")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    segmenter = load_segmenter(arguments.segmenter, torch.device("cpu"))
    assert isinstance(segmenter, SamSegmenter), "the benchmark is of SAM"
    if arguments.state:
        load_weights(arguments.state / "model.safetensors", segmenter.model)
    formers: tuple[Former, ...] = get_args(Former)
    seeds = [(arguments.seed, index) for index in range(arguments.count)]
    pairs = [(make_ambiguous(seed), seed) for seed in seeds]
    plain = [(make_scene(seed), seed) for seed in seeds]
    found = {
        "ambiguous": report("ambiguous", [box_rows(segmenter, scene, scene.pair or (), seed) for scene, seed in pairs], "box only"),
        "default": report("default", [box_rows(segmenter, scene, range(len(scene.masks)), seed) for scene, seed in plain], "box only"),
        "small boxes": report("default, small boxes on a thing", [small_rows(segmenter, scene) for scene, _ in plain], None),
        **{
            f"clicks, former {former}": report(
                f"default, clicks without a box, former mask: {former}", [click_rows(segmenter, scene, former) for scene, _ in plain], None
            )
            for former in formers
        },
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
