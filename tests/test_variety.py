"""Images changed as no phrase minds, and things pasted from one picture on another: the masks go with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sam4mllm.data.examples import Example, ExampleInstance
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.masks import box_of
from sam4mllm.run_lengths import to_rle
from sam4mllm.training.asking import Asking
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.pool import Pool, TrainingImage
from sam4mllm.training.recipe import Trainer
from sam4mllm.training.variety import Variety, augment, paste
from tests.conftest import make_checkpoint
from tests.test_pool import make_pool, write_pictures

CPU = torch.device("cpu")
GREY, RED = (90, 90, 90), (220, 30, 30)
Boxes = Sequence[tuple[int, int, int, int]]


def example(phrase: str, masks: Sequence[NDArray[np.bool_]], shape: tuple[int, int]) -> Example:
    instances = tuple(ExampleInstance(box_of(mask), to_rle(mask)) for mask in masks)
    return Example("a.png", "00", shape[1], shape[0], phrase, instances, "train", "test", thought="a thought")


def shown(
    phrase: str = "the cup", boxes: Sequence[tuple[int, int, int, int]] = ((10, 20, 40, 60),), replayed: bool = False
) -> TrainingImage:
    """A grey picture of 120 × 90 pixels with red things (x1, y1, x2, y2)."""
    image = np.full((90, 120, 3), GREY, np.uint8)
    masks = []
    for x1, y1, x2, y2 in boxes:
        mask = np.zeros((90, 120), np.bool_)
        mask[y1:y2, x1:x2] = True
        image[mask] = RED
        masks.append(mask)
    return TrainingImage(image, (example(phrase, masks, (90, 120)),), replayed=replayed)


def redness(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    return float((image[mask].astype(int) @ (2, -1, -1)).mean())


@given(st.integers(0, 2**32 - 1))
def test_an_augmented_mask_lies_on_its_thing(seed: int) -> None:
    found = augment(shown(boxes=((10, 20, 40, 60), (100, 5, 118, 30))), np.random.default_rng(seed))
    [one] = found.examples
    assert (one.height, one.width) == found.image.shape[:2]
    assert redness(found.image, one.union()) > 150
    assert abs(redness(found.image, ~one.union())) < 40
    for instance, mask in zip(one.instances, one.masks(), strict=True):
        assert np.abs(instance.box_px - box_of(mask)).max() <= 1


def test_what_is_left_stays_left_and_nothing_is_cut_off() -> None:
    boxes = ((0, 0, 12, 12), (50, 40, 70, 60), (108, 78, 120, 90))
    for seed in range(30):
        [one] = augment(shown(boxes=boxes), np.random.default_rng(seed)).examples
        assert (np.diff(one.boxes_px[:, 0]) > 0).all()
        share = one.masks().sum((1, 2)) / one.masks()[1].sum()
        assert share[0] == pytest.approx(12 * 12 / 400, rel=0.35)


def test_a_thing_too_small_to_be_seen_is_not_learned_as_absent() -> None:
    small = shown(boxes=((10, 20, 11, 21), (50, 40, 70, 60)))
    found = [augment(small, np.random.default_rng(seed)) for seed in range(200)]
    assert all(one.examples[0].masks().any((1, 2)).all() for one in found)
    assert 0 < sum(one is small for one in found) < 100


def test_a_phrase_without_a_target_stays_without() -> None:
    nothing = augment(shown(boxes=()), np.random.default_rng(0))
    assert not nothing.examples[0].has_target
    assert nothing.image.shape != (90, 120, 3)


def pasted(onto: TrainingImage, donor: TrainingImage, seed: int) -> TrainingImage:
    return paste(onto, donor.image, donor.examples[0], np.random.default_rng(seed))


def test_a_pasted_thing_is_asked_for_beside_what_was_asked() -> None:
    onto, donor = shown("the dog", ((60, 10, 110, 80),)), shown("the cup")
    onto.image[...] = GREY
    found = pasted(onto, donor, 1)
    assert [one.phrase for one in found.examples] == ["the dog", "the cup"]
    dog, cup = found.examples
    assert dog.instances is onto.examples[0].instances
    assert cup.thought == ""
    assert not (dog.union() & cup.union()).any()
    assert redness(found.image, cup.union()) > 300
    assert abs(redness(found.image, ~cup.union())) < 1
    assert (onto.image == GREY).all()


@pytest.mark.parametrize(
    ("thing", "boxes"),
    [
        pytest.param((10, 20, 40, 60), ((0, 0, 120, 90),), id="no room"),
        pytest.param((0, 0, 120, 90), ((45, 30, 75, 60),), id="it would cover something wherever it lies"),
        pytest.param((10, 20, 10, 20), (), id="an empty mask"),
    ],
)
def test_what_has_no_room_is_not_pasted(thing: tuple[int, int, int, int], boxes: Boxes) -> None:
    onto, donor = shown("the dog", boxes), shown("the cup", (thing,))
    for seed in range(10):
        assert pasted(onto, donor, seed) is onto


class FixedPool(Pool):
    """These corrections, beside a replay that names dogs and lamps."""

    def __init__(self, *corrections: TrainingImage) -> None:
        self.corrections = corrections

    def replay_phrases(self) -> set[str]:
        return {"the dog", "all lamps below the Cup", "berries"}

    def asked_of_corrections(self) -> list[tuple[Example, ...]]:
        return [correction.examples for correction in self.corrections]

    def correction(self, place: int) -> TrainingImage:
        return self.corrections[place]


def kinds(donor: TrainingImage, replayed: bool = True, share: float = 1.0) -> set[tuple[str, bool]]:
    """What is asked of the picture of a dog beside the dog, and whether it is there."""
    vary, onto = Variety(TrainingPlan(paste_share=share), FixedPool(donor)), shown("the dog", ((60, 10, 110, 80),), replayed)
    drawn = [vary(onto, np.random.default_rng(seed)) for seed in range(40)]
    return {(one.phrase, one.has_target) for found in drawn for one in found.examples[1:]}


@pytest.mark.parametrize(
    ("donor", "replayed", "share", "asked"),
    [
        pytest.param(shown("the bird"), True, 1.0, {("the bird", True), ("the bird", False)}, id="new"),
        pytest.param(
            shown("the small bird"),
            True,
            0.5,
            {("the small bird", True), ("the small bird", False), ("the bird", True)},
            id="by its noun alone",
        ),
        pytest.param(
            shown("the birds", ((10, 20, 40, 60), (60, 10, 70, 30))),
            True,
            0.5,
            {("the birds", True), ("the birds", False)},
            id="several of it",
        ),
        pytest.param(
            shown("the bird by the dog"),
            True,
            0.5,
            {("the bird by the dog", False), ("the bird", True)},
            id="it holds in its own picture alone",
        ),
        pytest.param(shown("the bird"), True, 0.5, {("the bird", True), ("the bird", False)}, id="on fewer pictures"),
        pytest.param(shown("the leftmost bird"), True, 1.0, {("the leftmost bird", False), ("the bird", True)}, id="it says where"),
        pytest.param(shown("all cups"), True, 1.0, set(), id="the replay shows one"),
        pytest.param(shown("the striped lamp"), True, 1.0, set(), id="the replay shows several"),
        pytest.param(shown("the berry"), True, 1.0, set(), id="the replay shows more than one"),
        pytest.param(shown("左边的杯子"), True, 1.0, set(), id="nobody knows what it is about"),
        pytest.param(shown("the bird", ()), True, 1.0, set(), id="a correction that means nothing"),
        pytest.param(shown("the bird"), False, 1.0, set(), id="a correction gets nothing pasted on it"),
        pytest.param(shown("the bird"), True, 0.0, set(), id="not asked for"),
    ],
)
def test_what_is_new_to_the_replay(donor: TrainingImage, replayed: bool, share: float, asked: set[tuple[str, bool]]) -> None:
    assert kinds(donor, replayed, share) == asked


def test_a_second_new_thing_is_another_one() -> None:
    small = ((10, 20, 20, 30),)
    pool, onto = FixedPool(shown("the bird", small), shown("the zebra", small)), shown("the dog", ((60, 10, 110, 80),), replayed=True)
    vary = Variety(TrainingPlan(paste_share=1.0), pool)
    drawn = [vary(onto, np.random.default_rng(seed)).examples[1:] for seed in range(60)]
    both = [{one.phrase: one for one in found} for found in drawn if len(found) == 2]
    assert all(set(found) == {"the bird", "the zebra"} for found in both)
    assert {(found["the bird"].has_target, found["the zebra"].has_target) for found in both} == set(product((False, True), repeat=2))
    for bird, zebra in (found.values() for found in both):
        assert not (bird.union() & zebra.union()).any()


def test_a_thing_that_was_corrected_once_is_pasted_as_often_as_every_other() -> None:
    small = ((10, 20, 20, 30),)
    pool = FixedPool(*[shown("the birds", small)] * 9, shown("the bird", small), shown("the zebra", small))
    vary, onto = Variety(TrainingPlan(paste_share=1.0), pool), shown("the dog", ((60, 10, 110, 80),), replayed=True)
    asked = Counter(one.phrase for seed in range(300) for one in vary(onto, np.random.default_rng(seed)).examples[1:])
    assert asked["the bird"] + asked["the birds"] == pytest.approx(asked["the zebra"], rel=0.2)


def test_a_part_of_what_is_pasted_is_not_asked_for_in_vain() -> None:
    man, hat = shown("the man", ((10, 20, 20, 40),)), shown("the hat", ((10, 20, 20, 25),))
    both = replace(man, examples=(*man.examples, *hat.examples))
    vary, onto = Variety(TrainingPlan(paste_share=1.0), FixedPool(both)), shown("the dog", ((60, 10, 110, 80),), replayed=True)
    drawn = [vary(onto, np.random.default_rng(seed)).examples[1:] for seed in range(80)]
    assert any(len(found) == 2 for found in drawn)
    assert all(len({one.has_target for one in found}) < 2 for found in drawn)


def test_nouns_that_share_a_word_are_one_kind() -> None:
    small = ((10, 20, 20, 30),)
    pool = FixedPool(shown("the tennis racket", small), shown("the racket", small), shown("all rackets", small))
    vary, onto = Variety(TrainingPlan(paste_share=1.0), pool), shown("the dog", ((60, 10, 110, 80),), replayed=True)
    assert {len(vary(onto, np.random.default_rng(seed)).examples[1:]) for seed in range(40)} <= {0, 1}


def test_a_word_that_may_be_a_colour_keeps_its_colour() -> None:
    donor, onto = shown("the magenta bird"), shown("the dog", ((60, 10, 110, 80),), replayed=True)
    vary = Variety(TrainingPlan(paste_share=1.0), FixedPool(donor))
    found = [
        one for seed in range(60) if (one := vary(onto, np.random.default_rng(seed))).examples[-1].has_target and len(one.examples) > 1
    ]
    assert {tuple(np.median(one.image[one.examples[1].union()], axis=0).astype(int)) for one in found} == {RED}


def test_a_thing_asked_for_by_its_noun_alone_may_have_another_colour() -> None:
    donor, onto = shown("the cup"), shown("the dog", ((60, 10, 110, 80),))
    for recolour, least in ((False, 1), (True, 10)):
        found = [paste(onto, donor.image, donor.examples[0], np.random.default_rng(seed), recolour) for seed in range(60)]
        colours = {tuple(np.median(one.image[one.examples[1].union()], axis=0).astype(int)) for one in found}
        assert RED in colours
        assert least <= len(colours) <= (1 if not recolour else 60)
        assert all((np.ptp(colour) > 150) for colour in colours)


def test_a_picture_is_not_made_smaller_than_a_picture_may_be() -> None:
    tiny = TrainingImage(np.full((8, 60, 3), GREY, np.uint8), (example("the cup", [np.ones((8, 60), np.bool_)], (8, 60)),))
    assert all(augment(tiny, np.random.default_rng(seed)).image.shape[0] >= 8 for seed in range(60))


def test_a_plan_without_variety_changes_nothing_not_even_the_generator() -> None:
    rng, one = np.random.default_rng(5), shown(replayed=True)
    assert Variety(TrainingPlan(), FixedPool(one))(one, rng) is one
    assert rng.random() == np.random.default_rng(5).random()
    assert Variety(TrainingPlan(augment_share=1.0), FixedPool(one))(one, rng) is not one


def trained(source: Path, data: Path, folder: Path, stop_at: Sequence[int]) -> tuple[list[Tensor], list[TrainingImage]]:
    """The weights after a run that was stopped at these steps, and its images as they were learned."""
    plan = TrainingPlan(steps=8, batch=2, rate=1e-2, rank=4, alpha=8, replay_share=0.6, augment_share=0.5, paste_share=1.0)
    seen: list[TrainingImage] = []
    for step in (*stop_at, plan.steps):
        trainer = Trainer(load_checkpoint(str(source), CPU), make_pool(data / "own", data / "replay"), plan, folder, Asking(points=2))
        vary = trainer._gradients._vary

        def spy(shown: TrainingImage, rng: np.random.Generator, vary: Variety = vary) -> TrainingImage:
            seen.append(vary(shown, rng))
            return seen[-1]

        trainer._gradients._vary = spy  # type: ignore[assignment]
        trainer.train(lambda progress, at=step, trainer=trainer: trainer.stop() if progress.step == at else None)  # type: ignore[misc]
    return [weight.detach().clone() for weight in trainer.model.parameters() if weight.requires_grad], seen


def test_a_run_varies_its_images_and_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    source = make_checkpoint("qwen3_vl", tmp_path / "model")
    write_pictures(tmp_path / "own", [{"the bird": [(5, 10, 40, 60)]}, {"the zebra": [(10, 40, 44, 100)]}])
    write_pictures(tmp_path / "replay", [{"the dog": [(50, 20, 85, 50)], "the cup": []}])
    whole, seen = trained(source, tmp_path, tmp_path / "whole", ())
    broken, again = trained(source, tmp_path, tmp_path / "broken", (3, 5))
    for one, other in zip(whole, broken, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert [one.image.shape for one in seen] == [one.image.shape for one in again]
    new = {added.has_target for one in seen for added in one.examples[2:]}
    assert {True, False} == new
    assert all(one.replayed for one in seen if len(one.examples) > 1)
    assert len({one.image.shape for one in seen}) > 3
    assert not all(one.varied for one in seen)
