"""Ambiguous scenes are what they are said to be, and the segmenter's training on them computes what serving does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sam4mllm.demo.layout import CLEARANCE, overlap
from sam4mllm.demo.pairs import PAIR_KINDS, axes, draw_pair, hollow, parts_of, pool_for
from sam4mllm.demo.pretrain.ahead import Ahead
from sam4mllm.demo.pretrain.loop import PretrainPlan, learning_rate, run
from sam4mllm.demo.pretrain.segmenter import corrective_clicks, decode, encode
from sam4mllm.demo.pretrain.segmenter_examples import BOX_LABELS, WINDOW, draw_example
from sam4mllm.demo.scenes import PAIR_IOU, PAIR_SHARES, make_ambiguous
from sam4mllm.geometry import box_iou
from sam4mllm.segmentation.small_sam import build_segmenter

FRAME = 384


@pytest.mark.parametrize("index", range(12))
def test_a_box_leaves_a_question(index: int) -> None:
    scene = make_ambiguous((3, index), size=(320, 420))
    assert scene.pair is not None
    first, second = scene.pair
    assert box_iou(scene.boxes_px[[first]], scene.boxes_px[[second]])[0, 0] >= PAIR_IOU
    union = (scene.masks[first] | scene.masks[second]).sum()
    whole = scene.things[first].glyph.index == scene.things[second].glyph.index
    for pick in scene.pair:
        assert PAIR_SHARES[0] <= scene.masks[pick].sum() / union <= (1.0 if whole else PAIR_SHARES[1])
        others = [thing for at, thing in enumerate(scene.things) if at not in scene.pair]
        assert all(overlap(scene.things[pick].box, other.box) <= CLEARANCE for other in others)
    assert whole == bool((scene.masks[first] & scene.masks[second]).any())


def test_kinds_of_pairs_come_in_their_shares() -> None:
    shares = {"ring": 0.7, "front": 0.3, "part": 0.0, "crossed": 0.0}
    kinds = Counter(make_ambiguous((5, index), size=(160, 200), shares=shares).pair_kind for index in range(30))
    assert set(kinds) == {"ring", "front"}
    assert kinds["ring"] > kinds["front"]


def test_a_seed_gives_the_same_scene() -> None:
    one, again, other = (make_ambiguous(seed, size=(320, 320)) for seed in ((3, 1), (3, 1), (3, 2)))
    np.testing.assert_array_equal(one.image, again.image)
    np.testing.assert_array_equal(one.masks, again.masks)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_a_pair_is_of_its_kind_and_of_the_nouns_that_are_asked_for(kind: str) -> None:
    nouns = ["carrot", "key", "hammer", "apple", "banana", "cake"]
    pool = pool_for(kind, nouns)
    assert {glyph.noun for glyph in pool} <= set(nouns)
    first, second = draw_pair(np.random.default_rng(1), kind, pool, (1.0, 0.8))
    assert (first.glyph.index == second.glyph.index) == (kind == "part")
    if kind == "crossed":
        headings = [(thing.rotation + axes(thing.glyph.index)[1]) % 180 for thing in (first, second)]
        assert 90 - 24 <= abs(headings[0] - headings[1]) <= 90 + 24


def test_a_rim_and_a_part_are_some_of_their_glyph() -> None:
    glyph = pool_for("part", None)[0]
    for rgba in (hollow(glyph).rgba, *(part.rgba for part in parts_of(glyph.index))):
        assert not (rgba[..., 3] > glyph.rgba[..., 3]).any()
        assert 0 < (rgba[..., 3] > 127).sum() < (glyph.rgba[..., 3] > 127).sum()


def test_a_window_is_encoded_and_decoded_as_in_the_frame() -> None:
    """Without the one layer of global attention and the neck's 3 x 3 convolution, which see beyond the window, nothing differs."""
    torch.manual_seed(0)
    model = build_segmenter()
    torch.nn.init.normal_(model.image_encoder.pos_embed)
    model.image_encoder.blocks = model.image_encoder.blocks[:3]
    model.image_encoder.neck = torch.nn.Identity()
    pixels = torch.randn(2, 3, FRAME, FRAME)
    corners = [(64, 128), (128, 0)]
    with torch.no_grad():
        whole = encode(model, pixels, [(0, 0)] * 2)
        views = torch.stack([pixels[at, :, y : y + WINDOW, x : x + WINDOW] for at, (x, y) in enumerate(corners)])
        windows = encode(model, views, corners)
    for at, (x, y) in enumerate(corners):
        torch.testing.assert_close(windows[at], whole[at][:, y // 8 : (y + WINDOW) // 8, x // 8 : (x + WINDOW) // 8])


def test_training_decodes_as_serving_does() -> None:
    torch.manual_seed(0)
    model = build_segmenter()
    features, former = torch.randn(1, 128, 48, 48), torch.randn(1, 1, 192, 192)
    points, box = np.array([[[40.0, 60.0], [90.0, 20.0]]], np.float32), np.array([[10.0, 12.0, 100.0, 120.0]], np.float32)
    with torch.no_grad():
        prompt = np.concatenate([points, box.reshape(1, 2, 2)], 1)
        logits, predicted = decode(model, features, (0, 0), prompt, np.array([[1, 0, *BOX_LABELS]]), former)
        sparse, dense = model.prompt_encoder((torch.from_numpy(points), torch.tensor([[1, 0]])), boxes=torch.from_numpy(box), masks=former)
        served, scores = model.mask_decoder(features, model.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True)
    torch.testing.assert_close(logits[:, 1:], served, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(predicted[:, 1:], scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("whole", [False, True], ids=["window", "frame"])
def test_examples_point_at_what_their_masks_show(index: int, whole: bool) -> None:
    example = draw_example(5, index, FRAME, whole)
    side = FRAME if whole else WINDOW
    assert example.image.shape == (side, side, 3)
    assert example.masks.shape[1:] == (side // 2, side // 2)
    right = []
    for mask, points, labels in zip(example.masks, example.points, example.labels, strict=True):
        cells = ((points - np.array(example.corner)) / 2).astype(int)
        for (x, y), label in zip(cells, labels, strict=True):
            if label in (0, 1) and 0 <= x < side // 2 and 0 <= y < side // 2 and mask[y, x] in (0.0, 1.0):
                right.append(mask[y, x] == label)
    assert not right or np.mean(right) > 0.8


def test_corrective_clicks_fall_where_the_mask_is_wrong() -> None:
    truth, drawn = np.zeros((2, 16, 16), np.bool_), np.zeros((2, 16, 16), np.bool_)
    truth[:, 2:8, 2:8] = True
    drawn[0, 2:8, 2:5] = True  # misses the right half
    drawn[1, 2:8, 2:14] = True  # spills over
    for seed in range(8):
        clicks, labels = corrective_clicks(np.random.default_rng(seed), drawn, truth)
        assert labels.tolist() == [[1], [0]]
        cells = (clicks[:, 0] / 2).astype(int)
        assert all((truth ^ drawn)[at, y, x] for at, (x, y) in enumerate(cells))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_sees_what_an_unbroken_one_would_have_seen(workers: int) -> None:
    whole, later = Ahead(_square, 4, 3, workers), Ahead(_square, 4, 3, workers)
    seen = [whole(step) for step in range(4)]
    assert seen[2] == [36, 49, 64]
    assert [later(step) for step in (2, 3)] == seen[2:]


def _square(index: int) -> int:
    return index * index


def test_a_budget_of_minutes_ends_a_run_and_its_rate(tmp_path: Path) -> None:
    plan = PretrainPlan(tmp_path, steps=10**6, batch=1, rate=1.0, warmup=1, floor=0.1, minutes=0.01)
    assert learning_rate(plan, 10, seconds=0.0) == pytest.approx(1.0)
    assert learning_rate(plan, 10, seconds=0.6) == pytest.approx(0.1)
    model = torch.nn.Linear(2, 2)
    run(plan, model, lambda _: {"loss": model(torch.ones(1, 2)).pow(2).mean()})
    [saved] = tmp_path.glob("step-*")
    steps = int(saved.name.removeprefix("step-"))
    assert 0 < steps < 10**6
    run(plan, model, lambda _: {"loss": model(torch.ones(1, 2)).pow(2).mean()})  # the budget is spent: one step, and it ends
    assert max(int(path.name.removeprefix("step-")) for path in tmp_path.glob("step-*")) <= steps + 1
