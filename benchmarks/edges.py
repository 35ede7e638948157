"""Whether reviewers who draw wider than the truth are offered an edge, what it gains, and whether others are offered none.

    python -m benchmarks.edges [--seed 990501] [--draws 200]

An edge says how far masks are widened or narrowed, and whether holes are filled. The demo segmenter draws things of demo scenes from their
true boxes, whose sides are shifted at random (standard deviation 6 %). Simulated reviewers edit ten pictures, and the edge that they are
then offered is judged on forty others. Their habits: ``wide`` draws 3 pixels beyond the truth; ``hulls`` draws convex hulls; ``exact``
draws the truth; ``loose`` moves the edge of each picture at random (normal distribution, standard deviation 2 pixels), so that there is
nothing to learn. Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from backend.learning.edge_offers import fit_guarded
from benchmarks.obedience import NO_POINTS
from sam4mllm.demo.scenes import make_scene
from sam4mllm.edges import AS_DRAWN, MAX_OFFSET_PX, Edge, draw_edge, try_edges
from sam4mllm.masks import mask_iou
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.values import Prompt

EDITED, UNSEEN = 10, 40
SHAKE = 0.06
WORTH, KEPT = 0.06, 0.93
"""The bars: the least gain in IoU of the edge offered to ``wide`` reviewers, and the least share of teams of ``loose`` reviewers that are
offered none."""
DRAWS = 2000

Mask = NDArray[np.bool_]
Pair = tuple[Mask, Mask]
"""A segmenter's mask and the truth."""
Habit = Callable[[Mask, np.random.Generator], Mask]


def wide(truth: Mask, rng: np.random.Generator) -> Mask:
    return draw_edge(truth, Edge(3))


def hulls(truth: Mask, rng: np.random.Generator) -> Mask:
    points = np.argwhere(truth)[:, ::-1].astype(np.int32)
    return np.asarray(cv2.fillConvexPoly(np.zeros(truth.shape, np.uint8), cv2.convexHull(points), 1) > 0)


def exact(truth: Mask, rng: np.random.Generator) -> Mask:
    return truth


def loose(truth: Mask, rng: np.random.Generator) -> Mask:
    return draw_edge(truth, Edge(int(np.clip(round(rng.normal(0, 2)), -MAX_OFFSET_PX, MAX_OFFSET_PX))))


HABITS: tuple[Habit, ...] = (wide, hulls, exact, loose)


def draw_pairs(seed: int, count: int) -> list[Pair]:
    """Return, for one thing in each of ``count`` scenes, the mask that the demo segmenter draws and the true mask."""
    segmenter, rng = load_segmenter("demo", torch.device("cpu")), np.random.default_rng(seed)
    pairs: list[Pair] = []
    for index in range(count):
        scene = make_scene((seed, index))
        pick = int(rng.integers(len(scene.masks)))
        box = scene.boxes_px[pick]
        shaken = box + np.clip(rng.normal(0, SHAKE, 4), -0.15, 0.15) * np.tile(box[2:] - box[:2], 2)
        [masks] = segmenter.decode(segmenter.encode(scene.image), [Prompt(shaken.astype(np.float32), *NO_POINTS)])
        pairs.append((masks.mask(masks.best), scene.masks[pick]))
    return pairs


def offer(pairs: Sequence[Pair], habit: Habit, rng: np.random.Generator) -> Edge:
    """Return the edge that reviewers with a habit are offered after they edited these pictures; AS_DRAWN if none is offered."""
    found = fit_guarded([try_edges(mask, habit(truth, rng)) for mask, truth in pairs])
    return AS_DRAWN if found is None else found[0].edge


def gain(pairs: Sequence[Pair], edge: Edge, habit: Habit) -> NDArray[np.float64]:
    """Return (N,) by how much an edge raises the IoU of each mask with the one that the reviewers draw."""
    rng = np.random.default_rng(0)
    drawn = [(mask, habit(truth, rng)) for mask, truth in pairs]
    return np.array([mask_iou(draw_edge(mask, edge), own) - mask_iou(mask, own) for mask, own in drawn])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=990_501)
    parser.add_argument("--draws", type=int, default=200, help="teams of loose reviewers")
    arguments = parser.parse_args()
    pairs = draw_pairs(arguments.seed, EDITED + UNSEEN)
    edited, unseen = pairs[:EDITED], pairs[EDITED:]
    met = True
    for habit in HABITS:
        rng = np.random.default_rng(arguments.seed)
        edge = offer(edited, habit, rng)
        gains = gain(unseen, edge, habit)
        means = gains[rng.integers(len(gains), size=(DRAWS, len(gains)))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        wider = "" if habit is not wide else f"; the sham, as much narrower: {gain(unseen, Edge(-edge.offset_px), habit).mean():+.3f}"
        print(f"{habit.__name__}: offered {edge}, worth {gains.mean():+.3f} ({low:+.3f} to {high:+.3f}) on {UNSEEN} others{wider}")
        met &= (gains.mean() >= WORTH) if habit is wide else (edge == AS_DRAWN) if habit is exact else True
    rng = np.random.default_rng(arguments.seed + 1)
    chosen = [[pairs[at] for at in rng.choice(len(pairs), EDITED, replace=False)] for _ in range(arguments.draws)]
    none = sum(offer(some, loose, rng) == AS_DRAWN for some in chosen) / arguments.draws
    print(f"loose: none offered in {100 * none:.1f} % of {arguments.draws} draws (bar: {100 * KEPT:.0f} %)")
    if not met or none < KEPT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
