"""The images and lessons of each step of the language stage, drawn from its seed and number alone, so that other processes can do it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.closeup import window_around
from sam4mllm.demo.architecture import MAX_PIXELS
from sam4mllm.demo.layout import draw_size
from sam4mllm.demo.phrases import KINDS
from sam4mllm.demo.pretrain.dense import DenseTargets, batch_size_px, dense_targets
from sam4mllm.demo.pretrain.lessons import Lesson, Teacher
from sam4mllm.demo.pretrain.look_back import outlined, suggest
from sam4mllm.demo.scenes import PHRASES_PER_SCENE, DemoScene, close_up, make_ambiguous, make_crowd, make_relational, make_scene
from sam4mllm.demo.tokenizer import build_tokenizer
from sam4mllm.demo.wording import Expression
from sam4mllm.training.collate import shake_box

Session = Literal["crowd", "whole", "close", "look"]
CYCLE: tuple[Session, ...] = ("crowd", "whole", "close", "look", "close", "whole", "close", "look", "whole", "close")
"""The kinds of the steps, in turn. Crowded scenes teach the tower more per image; close-ups ask about points alone, in windows like those
of serving; a look back asks about an outlined mask.
"""
BOXES_ONLY = 500
"""Steps before the first questions about points or outlined masks, in a run whose language model starts from random weights."""
AMBIGUOUS_SHARE, AMBIGUOUS_CLOSE, RELATIONAL_SHARE = 0.4, 0.75, 0.15
"""`AMBIGUOUS_SHARE` (whole images and looks back) and `AMBIGUOUS_CLOSE` (close-ups) are the shares of the scenes that have a pair.
`RELATIONAL_SHARE`, of all of these, is the share that has relational phrases. The rest are default scenes.
"""
PAIR_KIND_SHARES = {"ring": 0.4, "front": 0.3, "part": 0.2, "crossed": 0.1}
"""Shares of the kinds of pairs in whole images and close-ups. A model that was trained on all kinds alike found nearly all crossed things,
but missed the hollow thing of a ring in one of two phrases and the thing behind in one of four; and of the points in close-ups it judged
seven in ten right in rings, more than eight in crossed pairs.
"""
SHARES = (0.215, 0.215, 0.215, 0.215, 0.14)
"""Shares of :data:`~sam4mllm.demo.phrases.KINDS` in default scenes. Plural phrases are more frequent than in other default scenes
(:data:`~sam4mllm.demo.phrases.SHARES`), as the first weights missed some of several instances. With as many "none" phrases as of each
other kind, the model said "none" to one in five of the phrases about pairs; with a share of .12 to one in seven, but then two in a
hundred more of the phrases that mean nothing got a box.
"""
CLOSE_ZOOM, CLOSE_SHAKE = (1.2, 1.8), 0.05
"""`CLOSE_ZOOM` is the range of a close-up's side, in long sides of the box, around that of serving
(:data:`~sam4mllm.closeup.ZOOM`). `CLOSE_SHAKE` is the standard deviation of the error of that box, as a share of its width or height; the
MLLM's boxes have such errors.
"""
CLOSE_PER_SCENE = 2
CLOSE_SIDE = math.isqrt(MAX_PIXELS)


@dataclass(frozen=True, eq=False)
class Sitting:
    """Data of one step: ``images`` (B, H, W, 3) uint8, and for each its dense targets and its lesson (no lessons for crowds)."""

    images: NDArray[np.uint8]
    dense: list[DenseTargets]
    lessons: list[Lesson]


@functools.cache
def _teacher() -> Teacher:
    return Teacher(build_tokenizer())


def session_of(step: int, boxes_only: int = BOXES_ONLY) -> Session:
    """Return a step's kind from CYCLE. The first ``boxes_only`` steps are all of the kind ``whole`` instead, except those of crowded
    scenes.
    """
    session = CYCLE[step % len(CYCLE)]
    return "whole" if step < boxes_only and session != "crowd" else session


def draw_sitting(seed: int, batch: int, boxes_only: int, step: int) -> Sitting:
    """Draw the data of a step of ``batch`` images; for close-ups, of ``batch`` times CLOSE_PER_SCENE.

    In the first ``boxes_only`` steps, lessons ask for boxes alone.
    """
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, step, 5])
    session = session_of(step, boxes_only)
    if session == "close":
        scenes = draw_close_ups(rng, seed, step, batch)
        return _sit(scenes, [_teacher().close_up(scene, rng) for scene in scenes])
    size = batch_size_px(rng)
    names = [(seed, step * batch + index) for index in range(batch)]
    if session == "crowd":
        return _sit([make_crowd(name, size) for name in names], [])
    scenes = [draw_scene(name, size, kinds=PAIR_KIND_SHARES if session == "whole" else None) for name in names]
    if session == "whole":
        return _sit(scenes, [_teacher().lesson(scene, rng, step >= boxes_only) for scene in scenes])
    masks = [suggest(rng, scene) for scene in scenes]
    shown = [outlined(scene, mask) for scene, mask in zip(scenes, masks, strict=True)]
    return _sit(shown, [_teacher().look_back(scene, mask, rng) for scene, mask in zip(shown, masks, strict=True)])


def _sit(scenes: list[DemoScene], lessons: list[Lesson]) -> Sitting:
    return Sitting(np.stack([scene.image for scene in scenes]), [dense_targets(scene) for scene in scenes], lessons)


def draw_scene(
    name: tuple[int, ...], size: tuple[int, int], ambiguous: float = AMBIGUOUS_SHARE, kinds: Mapping[str, float] | None = None
) -> DemoScene:
    """Draw an ambiguous, a relational or a default scene. ``name`` is the scene's seed, and ``size`` is its (height, width) in pixels.

    ``ambiguous`` is the probability of an ambiguous scene; ``kinds`` are the weights of the pairs' kinds in it (None: all alike).
    """
    rng = np.random.default_rng([*name, 8])
    lot = rng.random()
    if lot < ambiguous:
        return make_ambiguous(name, size=size, told=True, shares=kinds)
    if lot < ambiguous + RELATIONAL_SHARE:
        return make_relational(name, size=size)
    phrases = [KINDS[index] for index in rng.choice(len(KINDS), PHRASES_PER_SCENE, p=SHARES)]
    return make_scene(name, size=size, kinds=_sayable(phrases))


def _sayable(kinds: list[str]) -> list[str]:
    """Replace the third and further phrases of one kind by noun phrases, except for "none": hardly any scene has more than two of the other
    kinds.
    """
    return [kind if kind in ("noun", "none") or kinds[:at].count(kind) < 2 else "noun" for at, kind in enumerate(kinds)]


def draw_close_ups(rng: np.random.Generator, seed: int, step: int, batch: int) -> list[DemoScene]:
    """Draw ``batch`` times CLOSE_PER_SCENE close-ups, at most CLOSE_PER_SCENE of one scene. The scenes are drawn at sizes of their own,
    like the images that come to the model.

    The close-up of one of a pair is asked about with phrases for both.
    """
    shown: list[DemoScene] = []
    index = 0
    while len(shown) < CLOSE_PER_SCENE * batch:
        scene = draw_scene((seed, step * batch + index % batch, index // batch), draw_size(rng), AMBIGUOUS_CLOSE, PAIR_KIND_SHARES)
        index += 1
        for told in _to_show(rng, scene):
            height, width = scene.image.shape[:2]
            shaken = shake_box(scene.boxes_px[told[0][1]], width, height, CLOSE_SHAKE, rng)
            window = window_around(shaken, width, height, rng.uniform(*CLOSE_ZOOM))
            if window is not None:
                view = close_up(scene, told, window, CLOSE_SIDE)
                shown += [view] if view.expressions else []
    return shown[: CLOSE_PER_SCENE * batch]


def _to_show(rng: np.random.Generator, scene: DemoScene) -> list[list[tuple[Expression, int]]]:
    """Return what each close-up of a scene is to show: phrases, each with the one thing that it means. A close-up of both things of a pair
    comes first; every other has one phrase.
    """
    single = [(expression, target) for expression in scene.expressions for target in expression.targets]
    single = [single[place] for place in rng.permutation(len(single))]
    both = [[one for one in single if one[1] == index][:1] for index in scene.pair or ()]
    pair = [one for found in both for one in found]
    rest = [[one] for one in single if scene.pair is None or one[1] not in scene.pair]
    return ([pair] if pair else []) + rest[: CLOSE_PER_SCENE - bool(pair)]
