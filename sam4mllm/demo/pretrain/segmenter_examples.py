"""What the demo segmenter is trained on: an image, true masks, and the box, points or click that each is first prompted with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.demo.layout import draw_size
from sam4mllm.demo.scenes import DemoScene, make_ambiguous, make_scene

AMBIGUOUS_SHARE = 0.5
PROMPTS_PER_IMAGE = 5
ZOOM_SHARE, ZOOMS = 0.3, (1.3, 2.0)
FEW_POINTS, MAX_POINTS = 8, 30
BOX_NOISE, MAX_BOX_NOISE, SHAKEN_SHARE = 0.06, 0.15, 0.75
"""Standard deviation and bound of the error of a box's sides, in sides of the box, and the share of boxes that have one. The boxes in the
MLLM's answers have such errors.
"""
SHARED_BOX_SHARE = 0.5
"""Share of the images with a pair in which both things get the same box, so that only points can tell them apart."""
CUT_SHARE, CUT_FROM = 0.3, 6
"""`CUT_SHARE` of the images that are prompted with at least `CUT_FROM` points have targets that are cut along a line, of which only the
points tell. Without such targets a segmenter takes the points for a hint at which thing is meant, and hardly heeds a point that
contradicts the others.
"""
WITHIN_SHARE, WITHIN_SIDES = 0.12, (0.01, 0.25)
"""`WITHIN_SHARE` of the images have boxes inside of things as prompts, whose sides are drawn from `WITHIN_SIDES`, in sides of the image.
The target of such a box is the part of the thing in it. Without such images a segmenter draws nothing in a small box that an annotator
drags on a thing.
"""
ROUNDS, ROUND_SHARES = (1, 2, 3, 5), (0.35, 0.25, 0.25, 0.15)
PAD_LABEL, BOX_LABELS = -1, (2, 3)

WINDOW, WINDOW_STEP = 256, 64
"""`WINDOW` is the side, in pixels, of the window of the frame that most steps train on; `WINDOW_STEP` is the step of the grid on which its
corner lies. The attention windows of the encoder, of 8 patches, start on that grid, so that all of it but its layer of global attention
computes what it would in the whole frame, with less than half of the patches.
"""
WHOLE_EVERY = 16
"""One step in so many sees the whole frame."""
INSIDE = 0.95

Start = Literal["box", "points", "click"]
STARTS: tuple[Start, ...] = ("box", "points", "click")
START_SHARES = (0.15, 0.55, 0.3)
"""Shares of STARTS among the images whose prompts are not boxes inside of things. The start ``points`` is a box with points in it."""


@dataclass(frozen=True, eq=False)
class PromptedImage:
    """An image in the model's square frame, with K prompts of the same kind and number of points.

    ``image`` (W, W, 3) uint8 is a window of the frame, or all of it; ``corner`` is the window's top left (x, y). ``masks`` (K, W / 2, W /
    2) float32 are the covered shares of the cells of the mask grid.

    ``points`` (K, P, 2) float32 are in pixels of the frame. ``labels`` (K, P) int64 are 1 for a point on the thing, 0 for one off it, and
    BOX_LABELS for a box's two corners. ``doubtful`` (K,) bool: the prompt is the box of one of a pair, and no point says which of the two
    is meant.

    ``rounds`` is how often the prompts are decoded, each time but the first with one more corrective click.
    """

    image: NDArray[np.uint8]
    corner: tuple[int, int]
    masks: NDArray[np.float32]
    points: NDArray[np.float32]
    labels: NDArray[np.int64]
    doubtful: NDArray[np.bool_]
    rounds: int


def draw_example(seed: int, index: int, side: int, whole: bool) -> PromptedImage:
    """Return the example of a seed and an index, for a model whose frame has a side of ``side`` pixels.

    The example shows the whole frame if ``whole`` is true or the frame is no larger than WINDOW, else a window of it.
    """
    rng = np.random.default_rng([seed, index, 7])
    height, width = draw_size(rng)
    scale = side / max(height, width)
    zoom = 1.0 if rng.random() >= ZOOM_SHARE else float(rng.uniform(*ZOOMS))
    size = (max(16, round(height * scale * zoom)), max(16, round(width * scale * zoom)))
    ambiguous = rng.random() < AMBIGUOUS_SHARE
    scene = make_ambiguous((seed, index), size=size) if ambiguous else make_scene((seed, index), kinds=(), size=size)
    to_frame = side / max(size)
    (left, top), window = ((0, 0), side) if whole or side <= WINDOW else (_corner(rng, scene, to_frame, side), WINDOW)
    picks = _picks(rng, scene, np.array([left, top, left + window, top + window]) / to_frame)
    boxes = _boxes(rng, scene, picks)
    start = STARTS[rng.choice(len(STARTS), p=START_SHARES)]
    count = int(rng.integers(1, (MAX_POINTS if rng.random() < 0.5 else FEW_POINTS) + 1)) if start == "points" else 0
    targets = _cut(rng, scene, picks) if count >= CUT_FROM and rng.random() < CUT_SHARE else [scene.masks[pick] for pick in picks]
    within = rng.random() < WITHIN_SHARE
    if within:
        start, count = "box", 0
        parts = [_within(rng, scene.masks[pick]) for pick in picks]
        boxes, targets = [box for box, _ in parts], [part for _, part in parts]
    prompts = [_prompt(rng, target, box, start, count) for target, box in zip(targets, boxes, strict=True)]
    image = scene.image if zoom == 1 else _resize(scene.image, (round(height * scale), round(width * scale)))
    cells = slice(top // 2, (top + window) // 2), slice(left // 2, (left + window) // 2)
    return PromptedImage(
        image=np.ascontiguousarray(_square(image, side)[top : top + window, left : left + window]),
        corner=(left, top),
        masks=np.stack([_soft_mask(target, side // 2)[cells] for target in targets]),
        points=np.stack([points for points, _ in prompts]) * np.float32(to_frame),
        labels=np.stack([labels for _, labels in prompts]),
        doubtful=np.array([start == "box" and not within and pick in (scene.pair or ()) for pick in picks]),
        rounds=int(rng.choice(ROUNDS, p=ROUND_SHARES)),
    )


def _corner(rng: np.random.Generator, scene: DemoScene, to_frame: float, side: int) -> tuple[int, int]:
    """(x, y) of a window that shows as much as any can of the pair, or of one thing."""
    shown = np.array(scene.pair or [rng.integers(len(scene.masks))])
    x1, y1 = scene.boxes_px[shown, :2].min(0) * to_frame
    x2, y2 = scene.boxes_px[shown, 2:].max(0) * to_frame
    return _start(rng, float(x1), float(x2), side), _start(rng, float(y1), float(y2), side)


def _start(rng: np.random.Generator, low: float, high: float, side: int) -> int:
    """Along one axis, a start of a window with as much of the span from ``low`` to ``high`` as any has."""
    starts = np.arange(0, side - WINDOW + 1, WINDOW_STEP)
    shown = np.minimum(starts + WINDOW, high) - np.maximum(starts, low)
    return int(rng.choice(starts[shown >= shown.max() - 1.0]))


def _picks(rng: np.random.Generator, scene: DemoScene, window_px: NDArray[np.float64]) -> list[int]:
    """Return the things to prompt for, at most PROMPTS_PER_IMAGE: both of a pair, then, in random order, others that the window (4,) shows
    nearly whole. If there are none, it is the thing that the window shows most of.
    """
    shown = np.minimum(scene.boxes_px[:, 2:], window_px[2:]) - np.maximum(scene.boxes_px[:, :2], window_px[:2])
    shares = np.prod(shown.clip(min=0), 1) / np.prod(scene.boxes_px[:, 2:] - scene.boxes_px[:, :2], 1)
    pair = list(scene.pair or ())
    others = [int(index) for index in rng.permutation(len(shares)) if index not in pair and shares[index] >= INSIDE]
    return [*pair, *others][:PROMPTS_PER_IMAGE] or [int(shares.argmax())]


def _cut(rng: np.random.Generator, scene: DemoScene, picks: Sequence[int]) -> list[NDArray[np.bool_]]:
    """Return for each pick the part of its mask on one side of a line through the middle of its box; for one of a pair, also the other
    thing's part on the far side. If that is empty, return the pick's whole mask.
    """
    down, across = np.indices(scene.masks.shape[1:])
    cut = []
    for pick in picks:
        x, y = (scene.boxes_px[pick, :2] + scene.boxes_px[pick, 2:]) / 2
        angle = rng.uniform(0, 2 * np.pi)
        here = (across - x) * np.cos(angle) + (down - y) * np.sin(angle) > 0
        other = scene.masks[sum(scene.pair) - pick] & ~here if scene.pair and pick in scene.pair else np.zeros_like(here)
        part = (scene.masks[pick] & here) | other
        cut.append(part if part.any() else scene.masks[pick])
    return cut


def _within(rng: np.random.Generator, mask: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A box (4,) in pixels around a place on a thing's mask (H, W), and the mask's part in it."""
    height, width = mask.shape
    middle = click_on(rng, mask)
    low, high = np.log(WITHIN_SIDES)
    sides = np.exp(rng.uniform(low, high, 2)) * np.array([width, height])
    box_px = np.concatenate([middle - sides / 2, middle + sides / 2]).clip(0, [width, height, width, height]).astype(np.float32)
    x1, y1, x2, y2 = np.concatenate([np.floor(box_px[:2]), np.ceil(box_px[2:])]).astype(int)
    part = np.zeros_like(mask)
    part[y1:y2, x1:x2] = mask[y1:y2, x1:x2]
    return box_px, part


def _boxes(rng: np.random.Generator, scene: DemoScene, picks: Sequence[int]) -> list[NDArray[np.float32]]:
    """A shaken box for each pick; the pair's two have one box in some scenes."""
    shaken = {pick: _shaken(rng, scene.boxes_px[pick]) for pick in picks}
    if scene.pair and rng.random() < SHARED_BOX_SHARE:
        shaken[scene.pair[0]] = shaken[scene.pair[1]] = shaken[scene.pair[rng.integers(2)]]
    return [shaken[pick] for pick in picks]


def _shaken(rng: np.random.Generator, box_px: NDArray[np.float32]) -> NDArray[np.float32]:
    sides = np.tile(box_px[2:] - box_px[:2], 2)
    noise = np.clip(rng.normal(0, BOX_NOISE * (rng.random() < SHAKEN_SHARE), 4), -MAX_BOX_NOISE, MAX_BOX_NOISE)
    return (box_px + noise * sides).astype(np.float32)


def _prompt(
    rng: np.random.Generator, mask: NDArray[np.bool_], box_px: NDArray[np.float32], start: Start, count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Points (P, 2) in pixels of the scene and labels (P,): a click on the thing, or the box's corners after ``count`` points in it."""
    if start == "click":
        return click_on(rng, mask)[None], np.ones(1, np.int64)
    points = rng.uniform(box_px[:2], box_px[2:], (count, 2)).astype(np.float32)
    rows, columns = (np.clip(points[:, axis].astype(int), 0, mask.shape[1 - axis] - 1) for axis in (1, 0))
    labels = mask[rows, columns]
    return np.concatenate([points, box_px.reshape(2, 2)]), np.concatenate([labels.astype(np.int64), np.array(BOX_LABELS)])


def click_on(rng: np.random.Generator, region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A place (2,) in a region (H, W) that is not empty, in pixels: half of the time anywhere, half of the time far from its edge."""
    if rng.random() < 0.5:
        rows, columns = np.nonzero(region)
    else:
        depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        rows, columns = np.nonzero(depth >= 0.8 * depth.max())
    pick = rng.integers(len(rows))
    return np.array([columns[pick] + 0.5, rows[pick] + 0.5], np.float32)


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    square = np.full((side, side, 3), 127, np.uint8)
    square[: image.shape[0], : image.shape[1]] = image[:side, :side]
    return square


def _soft_mask(mask: NDArray[np.bool_], cells: int) -> NDArray[np.float32]:
    """The covered share of each cell of the mask grid, for (H, W) padded to a square."""
    side = max(mask.shape)
    square = np.zeros((side, side), np.float32)
    square[: mask.shape[0], : mask.shape[1]] = mask
    return np.asarray(cv2.resize(square, (cells, cells), interpolation=cv2.INTER_AREA), dtype=np.float32)
