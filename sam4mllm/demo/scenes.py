"""Scenes: the demo's images with exact masks and referring expressions. A seed gives the same scene anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sam4mllm.closeup import Window
from sam4mllm.demo.backgrounds import draw_background
from sam4mllm.demo.glyphs import known_nouns, rotate_hue
from sam4mllm.demo.layout import Thing, choose_glyphs, crowd_glyphs, draw_size, place
from sam4mllm.demo.pair_phrases import of_pair
from sam4mllm.demo.pairs import PAIR_KINDS, draw_pair, pool_for
from sam4mllm.demo.phrases import KINDS, RELATIONAL_KINDS, SHARES, expressions
from sam4mllm.demo.shifts import Look, look_of
from sam4mllm.demo.wording import Expression
from sam4mllm.geometry import box_iou

PHRASES_PER_SCENE = 5
MIN_VISIBLE = 0.5
"""Least visible share of each thing in a scene of :func:`make_scene`; a layout that hides more is drawn again. For scenes with a pair
`PAIR_VISIBLE` holds instead, for crowded ones `CROWD_VISIBLE`."""

PAIR_IOU, PAIR_VISIBLE, PAIR_SHARES = 0.60, 0.30, (0.20, 0.80)
"""Of a scene with a pair: the least IoU of the pair's boxes, the least visible share of every thing in the scene (the whole of a ``part``
counts as visible), and the range of each one's share of the pixels of both."""

NAMELESS_PARTNER_SHARE = 0.4
"""How often, in an ambiguous scene with phrases, one of the pair is drawn from all glyphs that training shows, nameless ones among them.
Pairs of the kind ``part`` have one glyph, so that it does not apply to them."""
RELATIONAL_PHRASES = 3
REPEATING = {"plural", "position", *RELATIONAL_KINDS}
"""Kinds of phrases that need, or are helped by, several things with one noun."""

CROWD, CROWD_SIZES, CROWD_VISIBLE = 16, (0.10, 0.36), 0.25


@dataclass(frozen=True, eq=False)
class DemoScene:
    """An image with its things and phrases.

    ``image`` is (H, W, 3) uint8; ``masks`` (N, H, W) bool, the visible pixels of each thing; ``boxes_px`` (N, 4) float32 around them.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    boxes_px: NDArray[np.float32]
    things: tuple[Thing, ...]
    expressions: tuple[Expression, ...]
    pair: tuple[int, int] | None = None
    """In an ambiguous scene, the indices of the two things whose boxes nearly coincide. In a pair of the kind ``part`` the whole comes
    first, and its mask includes the part's.
    """
    pair_kind: str = ""
    """The pair's kind, one of :data:`~sam4mllm.demo.pairs.PAIR_KINDS`; empty if the scene is not ambiguous."""


def make_scene(
    seed: Sequence[int],
    nouns: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    kinds: Sequence[str] | None = None,
    look: Look | None = None,
) -> DemoScene:
    """Return the scene of a seed.

    Args:
        seed: integers that identify the scene, (run seed, index) say.
        nouns: the nouns that phrases may ask for; all known ones if None.
        size: (height, width) of the image instead of a drawn one.
        kinds: the kinds of its phrases instead of five drawn ones.
        look: how the scene is painted; if None, as training shows it.
    """
    rng = np.random.default_rng(list(seed))
    asked = known_nouns() if nouns is None else list(nouns)
    drawn_kinds = [KINDS[index] for index in rng.choice(len(KINDS), PHRASES_PER_SCENE, p=SHARES)]
    kinds = drawn_kinds if kinds is None else kinds
    drawn = draw_size(rng)
    height, width = size or drawn
    extent = (height / max(height, width), width / max(height, width))
    while True:
        things = place(rng, choose_glyphs(rng, nouns, repeat=not REPEATING.isdisjoint(kinds)), extent)
        if len(things) < 3:
            continue
        if look is not None:
            things = [look.retell(thing) for thing in things]
        said = expressions(rng, things, kinds, asked)
        if said is None:
            continue
        image, masks, visible = render(np.random.default_rng([*seed, 1]), things, height, width, look)
        if visible.min() >= MIN_VISIBLE:
            return DemoScene(image, masks, _boxes(masks), tuple(things), tuple(said))


def make_relational(seed: Sequence[int], nouns: Sequence[str] | None = None, size: tuple[int, int] | None = None) -> DemoScene:
    """A scene whose phrases compare things or find one by way of others (RELATIONAL_KINDS)."""
    kinds = np.random.default_rng([*seed, 4]).choice(RELATIONAL_KINDS, RELATIONAL_PHRASES).tolist()
    return make_scene(seed, nouns, size, kinds)


def make_mixed(seed: Sequence[int], nouns: Sequence[str] | None = None) -> DemoScene:
    """An ambiguous scene with phrases, with a probability of one third, or a default one."""
    if np.random.default_rng([*seed, 3]).random() < 1 / 3:
        return make_ambiguous(seed, nouns, told=True)
    return make_scene(seed, nouns)


def make_shifted(seed: Sequence[int], nouns: Sequence[str] | None = None) -> DemoScene:
    """Return a scene that looks like none in training (:mod:`sam4mllm.demo.shifts`), with one phrase of each default kind (KINDS)."""
    return make_scene(seed, nouns, kinds=KINDS, look=look_of(seed))


def make_ambiguous(
    seed: Sequence[int],
    nouns: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    told: bool = False,
    shares: Mapping[str, float] | None = None,
) -> DemoScene:
    """Return a scene with a pair, two things whose boxes nearly coincide, and up to three other things.

    ``nouns`` limits what the pair may be; in a told scene one of the two may be anything that training shows. ``shares`` are the weights
    with which the pair's kind is drawn from PAIR_KINDS (None: all alike).

    The scene has phrases only if it is ``told``: up to five, at least one for each of the pair, and none that asks for a noun not in
    ``nouns`` (None: all known ones).
    """
    rng = np.random.default_rng(list(seed))
    drawn = draw_size(rng)
    height, width = size or drawn
    extent = (height / max(height, width), width / max(height, width))
    asked = known_nouns() if nouns is None else list(nouns)
    limit = asked if told else nouns
    kinds = [kind for kind in PAIR_KINDS if not told or len(pool_for(kind, limit)) > 1]
    kind = kinds[rng.integers(len(kinds))] if shares is None else _draw_kind(rng, kinds, shares)
    while True:
        partners = pool_for(kind, None) if told and rng.random() < NAMELESS_PARTNER_SHARE else None
        pair = draw_pair(rng, kind, pool_for(kind, limit), extent, partners)
        others = place(rng, crowd_glyphs(rng, int(rng.integers(4))), extent, around=pair)
        after = int(rng.integers(len(others) + 1))
        things = [*others[:after], *pair, *others[after:]]
        told_apart = of_pair(things, (after, after + 1), kind, asked) if told else None
        if told_apart and not (told_apart[0] and told_apart[1]):
            continue
        image, masks, visible = render(np.random.default_rng([*seed, 1]), things, height, width)
        if kind == "part":
            masks[after] |= masks[after + 1]
            visible[after] = 1.0
        if visible.min() >= PAIR_VISIBLE and masks.any((1, 2)).all():
            scene = DemoScene(image, masks, _boxes(masks), tuple(things), (), (after, after + 1), kind)
            if _ambiguous(scene):
                return replace(scene, expressions=_said(rng, things, *told_apart, asked)) if told_apart else scene


def _draw_kind(rng: np.random.Generator, kinds: Sequence[str], shares: Mapping[str, float]) -> str:
    weights = np.array([shares[kind] for kind in kinds])
    return kinds[rng.choice(len(kinds), p=weights / weights.sum())]


def _said(
    rng: np.random.Generator,
    things: Sequence[Thing],
    first: Sequence[Expression],
    second: Sequence[Expression],
    absent: Sequence[Expression],
    nouns: Sequence[str],
) -> tuple[Expression, ...]:
    """Draw up to five expressions in random order, at least one for each of the pair. ``first``, ``second`` and ``absent`` are what
    :func:`~sam4mllm.demo.pair_phrases.of_pair` returns.
    """
    chosen = [options[int(rng.integers(len(options)))] for options in (first, second)]
    pool = absent if absent and rng.random() < 0.5 else [*first, *second]
    chosen.append(pool[int(rng.integers(len(pool)))])
    for kind in ("none", *(KINDS[index] for index in rng.choice(len(KINDS), 6, p=SHARES))):
        chosen += expressions(rng, things, [kind], nouns) or []
    by_phrase: dict[str, Expression] = {}
    for one in chosen:
        by_phrase.setdefault(one.phrase, one)
    distinct = list(by_phrase.values())[:PHRASES_PER_SCENE]
    return tuple(distinct[index] for index in rng.permutation(len(distinct)))


def _ambiguous(scene: DemoScene) -> bool:
    """Whether the pair's boxes overlap by at least PAIR_IOU and each thing's share of the pair's pixels lies within PAIR_SHARES. The whole
    of a ``part`` may have all of them.
    """
    assert scene.pair is not None
    first, second = scene.masks[list(scene.pair)]
    union = (first | second).sum()
    shares = first.sum() / union, second.sum() / union
    low, high = PAIR_SHARES
    whole = scene.things[scene.pair[0]].glyph.index == scene.things[scene.pair[1]].glyph.index
    alike = box_iou(scene.boxes_px[[scene.pair[0]]], scene.boxes_px[[scene.pair[1]]])[0, 0] >= PAIR_IOU
    return bool(alike and all(low <= share <= high or (whole and share == 1) for share in shares))


def make_crowd(seed: Sequence[int], size: tuple[int, int]) -> DemoScene:
    """Return a scene without phrases and with more things than those that have phrases, so that the vision tower learns more from each
    image.
    """
    rng = np.random.default_rng(list(seed))
    height, width = size
    extent = (height / max(size), width / max(size))
    while True:
        things = place(rng, crowd_glyphs(rng, int(rng.integers(6, CROWD + 1))), extent, CROWD_SIZES)
        image, masks, visible = render(np.random.default_rng([*seed, 1]), things, height, width)
        if visible.min() >= CROWD_VISIBLE:
            return DemoScene(image, masks, _boxes(masks), tuple(things), ())


def close_up(scene: DemoScene, told: Sequence[tuple[Expression, int]], window: Window, side: int) -> DemoScene:
    """Return what a window shows of a scene, as a square of ``side`` pixels.

    Each entry of ``told`` is an expression and the one thing that it is to mean here; those whose thing the window shows are the close-up's
    expressions.
    """
    image = cv2.resize(window.cut(scene.image), (side, side), interpolation=cv2.INTER_AREA)
    part = scene.masks[:, window.top : window.top + window.side, window.left : window.left + window.side]
    masks = np.array([cv2.resize(mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST) for mask in part], np.bool_)
    shown = [place for place, mask in enumerate(masks) if mask.any()]
    return DemoScene(
        image=np.asarray(image, np.uint8),
        masks=masks[shown],
        boxes_px=_boxes(masks[shown]),
        things=tuple(scene.things[place] for place in shown),
        expressions=tuple(replace(expression, targets=(shown.index(index),)) for expression, index in told if index in shown),
        pair=_pair_in(shown, scene.pair),
        pair_kind=scene.pair_kind,
    )


def _pair_in(shown: Sequence[int], pair: tuple[int, int] | None) -> tuple[int, int] | None:
    return (shown.index(pair[0]), shown.index(pair[1])) if pair and pair[0] in shown and pair[1] in shown else None


def render(
    rng: np.random.Generator, things: Sequence[Thing], height: int, width: int, look: Look | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.float64]]:
    """Paint the things in their order, and return the image (H, W, 3) uint8, the masks (N, H, W) bool and the shares (N,).

    A mask has a thing's visible pixels, and a share is how much of the thing is visible, 0 to 1. Without a ``look`` the scene looks as in
    training.
    """
    canvas = draw_background(rng, height, width) if look is None else look.draw_background(rng, height, width)
    masks = np.zeros((len(things), height, width), np.bool_)
    whole = np.zeros(len(things))
    for index, thing in enumerate(things):
        (top, left), patch = _patch(thing, height, width)
        rows, columns = slice(top, top + patch.shape[0]), slice(left, left + patch.shape[1])
        alpha = patch[..., 3:]
        canvas[rows, columns] = canvas[rows, columns] * (1 - alpha) + patch[..., :3]
        opaque = alpha[..., 0] > 0.5
        masks[:index, rows, columns] &= ~opaque
        masks[index, rows, columns] = opaque
        whole[index] = opaque.sum()
    shares = masks.sum((1, 2)) / np.maximum(whole, 1)
    if look is not None:
        canvas = look.finish(rng, canvas)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), masks, shares


def _patch(thing: Thing, height: int, width: int) -> tuple[tuple[int, int], NDArray[np.float32]]:
    """The part of the canvas that a thing covers: its (top, left), and (h, w, 4) float32 with colour 0–255 premultiplied by alpha 0–1."""
    long = max(height, width)
    side = thing.scale * long
    glyph = rotate_hue(thing.glyph.rgba, thing.hue, thing.brightness).astype(np.float32)
    glyph[..., 3] /= 255.0
    glyph[..., :3] *= glyph[..., 3:]
    if side < glyph.shape[0]:
        glyph = cv2.resize(glyph, (max(2, round(side)),) * 2, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    left, top = max(0, int(thing.box[0] * long) - 2), max(0, int(thing.box[1] * long) - 2)
    right, bottom = min(width, int(thing.box[2] * long) + 3), min(height, int(thing.box[3] * long) + 3)
    zoom, angle = side / glyph.shape[0], np.deg2rad(thing.rotation)
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([thing.centre[0] * long - 0.5 - left, thing.centre[1] * long - 0.5 - top])
    origin = np.full(2, (glyph.shape[0] - 1) / 2)
    matrix = np.concatenate([turn, (centre - turn @ origin)[:, None]], axis=1)
    patch = cv2.warpAffine(glyph, matrix, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    return (top, left), np.asarray(patch, dtype=np.float32)


def _boxes(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    boxes = np.zeros((len(masks), 4), np.float32)
    for index, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes[index] = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return boxes
