"""Kinds of demo scenes: default ones stay as they were, pairs are told apart, comparisons hold, shifted ones look different."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from sam4mllm.cli.main import make_app
from sam4mllm.cli.options import SceneKind
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.demo.comparisons import by_comparison, by_hops
from sam4mllm.demo.dataset import MAKERS, write_scenes
from sam4mllm.demo.glyphs import glyphs_of, known_nouns, novel_nouns, rotate_hue
from sam4mllm.demo.layout import Thing
from sam4mllm.demo.pair_phrases import PAIR
from sam4mllm.demo.pairs import PAIR_KINDS
from sam4mllm.demo.scenes import DemoScene, make_ambiguous, make_mixed, make_relational, make_scene
from sam4mllm.demo.shifts import SHIFTS, Look, look_of
from sam4mllm.demo.wording import Expression, stands, the_one

SIZE = (320, 400)
DEFAULT_DIGESTS = {
    (2026, 0): ("known", "3aec07facfac629f"),
    (4242, 1): ("known", "4575e3af799c93f0"),
    (990003, 7): ("known", "7389f1e98435dc2f"),
    (4243, 2): ("novel", "becca45d2584627a"),
}
"""Of pixels, masks and phrases, as they were when there was one kind of scene."""


@pytest.fixture(scope="module")
def told() -> list[DemoScene]:
    return [make_ambiguous((61, index), size=SIZE, told=True) for index in range(40)]


def digest(scene: DemoScene) -> str:
    said = [(one.phrase, one.targets, one.kind, one.nouns) for one in scene.expressions]
    found = hashlib.sha256(scene.image.tobytes())
    found.update(scene.masks.tobytes())
    found.update(repr(said).encode())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("seed", DEFAULT_DIGESTS, ids=str)
def test_default_scenes_are_what_they_were(seed: tuple[int, int]) -> None:
    nouns, expected = DEFAULT_DIGESTS[seed]
    assert digest(make_scene(seed, novel_nouns() if nouns == "novel" else None)) == expected


def test_scenes_without_phrases_are_what_they_were() -> None:
    assert digest(make_ambiguous((3, 0), size=(320, 420))) == "9a5e266fbeb9d19e"


# -- pairs ---------------------------------------------------------------------------------------------------------------------------------


def test_each_of_a_pair_is_asked_for(told: list[DemoScene]) -> None:
    assert {scene.pair_kind for scene in told} == set(PAIR_KINDS)
    for scene in told:
        assert scene.pair is not None
        meant = [one.targets for one in scene.expressions]
        assert all((index,) in meant for index in scene.pair)
        assert len({one.phrase for one in scene.expressions}) == len(scene.expressions) <= 5
        assert any(not one.targets for one in scene.expressions)


def test_a_seed_gives_the_same_phrases(told: list[DemoScene]) -> None:
    assert make_ambiguous((61, 0), size=SIZE, told=True).expressions == told[0].expressions


def test_phrases_about_a_pair_are_true(told: list[DemoScene]) -> None:
    said = [(scene, one) for scene in told for one in scene.expressions]
    for scene, one in said:
        assert scene.pair is not None
        first, second = scene.pair
        if " in front of " in one.phrase and one.kind == PAIR:
            assert one.targets == (second,)
        if " behind " in one.phrase and one.kind == PAIR:
            assert one.targets == (first,)
        if " part of " in one.phrase and one.targets:
            assert one.targets == (second,)
            assert scene.pair_kind == "part"
        if "whole" in one.phrase:
            assert one.targets == (first,)
        if ("hollow" in one.phrase and one.targets) or one.phrase.startswith("the ring"):
            assert (one.targets, scene.pair_kind) == ((second,), "ring")
    for words in (" in front of ", " behind ", " part of ", "the whole ", "the ring", "the hollow ", " across "):
        assert any(words in one.phrase for _, one in said), words


@pytest.mark.parametrize("word", ["dark", "light"])
def test_a_part_is_darker_or_lighter_than_the_rest(word: str) -> None:
    found = [
        (scene, one.targets[0])
        for index in range(60)
        if (scene := make_ambiguous((63, index), size=SIZE, told=True)).pair_kind == "part"
        for one in scene.expressions
        if one.targets and f"the {word} part" in one.phrase
    ]
    assert found
    for scene, target in found:
        grey = cv2.cvtColor(scene.image, cv2.COLOR_RGB2GRAY)
        assert scene.pair is not None
        part = scene.masks[target]
        rest = scene.masks[scene.pair[0]] & ~part
        assert (grey[part].mean() < grey[rest].mean()) == (word == "dark")


def test_novel_nouns_have_pairs_too() -> None:
    for index in range(6):
        scene = make_ambiguous((64, index), novel_nouns(), SIZE, told=True)
        assert {noun for one in scene.expressions if one.kind == PAIR for noun in one.nouns} <= set(novel_nouns())


def test_one_scene_in_three_is_ambiguous() -> None:
    kinds = [make_mixed((65, index)).pair is not None for index in range(60)]
    assert 0.15 < np.mean(kinds) < 0.5


# -- comparisons and hops ------------------------------------------------------------------------------------------------------------------


def thing(noun: str, x: float, y: float, size: float = 0.1, colour: str = "") -> Thing:
    glyph = next(glyph for glyph in glyphs_of("known") if glyph.noun == noun)
    half = size / 2
    return Thing(glyph, 0.0, 1.0, colour, 0.0, size, (x, y), (x - half, y - half, x + half, y + half))


ROOM = [
    thing("dog", 0.2, 0.2, 0.30, "red"),
    thing("dog", 0.8, 0.2, 0.12, "blue"),
    thing("cup", 0.5, 0.22, 0.20),
    thing("shoe", 0.8, 0.8, 0.05),
    thing("shoe", 0.5, 0.05, 0.055),
]
"""A large dog, a cup and a small dog in a row; a small shoe below and one above."""
HOLDS: dict[str, tuple[int, ...]] = {
    "the dog smaller than the cup": (1,),
    "the dog larger than the cup": (0,),
    "the largest thing": (0,),
    "the cup right of the larger dog": (2,),
    "the cup left of the smaller dog": (2,),
    "the cup left of the blue dog": (2,),
    "the cup right of the left dog": (2,),
    "the shoe below the smaller dog": (3,),
}
NEVER_SAID = ("the smallest thing", "the shoe larger than the cup", "the dog closest to the cup", "the cup left of the larger dog")
"""In doubt (sizes or distances too alike), or not true."""


def all_said(maker: Callable[..., list[Expression]]) -> dict[str, tuple[int, ...]]:
    return {one.phrase: one.targets for seed in range(60) for one in maker(np.random.default_rng(seed), ROOM, known_nouns())}


def test_comparisons_and_hops_of_a_known_room() -> None:
    said = all_said(by_comparison) | all_said(by_hops)
    for phrase, targets in HOLDS.items():
        assert said.get(phrase) == targets, phrase
    for phrase in NEVER_SAID:
        assert not said.get(phrase), phrase
    assert said["the shoe larger than the cup"] == ()  # clearly none of them is: asked for now and then


def test_between() -> None:
    room = [thing("dog", 0.2, 0.5), thing("shoe", 0.8, 0.5), thing("cup", 0.5, 0.52), thing("key", 0.5, 0.95)]
    said = {one.phrase: one for seed in range(20) for one in by_hops(np.random.default_rng(seed), room, known_nouns())}
    assert {one.targets for one in said.values()} == {(2,)}
    assert "the thing between the dog and the shoe" in said or "the thing between the shoe and the dog" in said
    assert all({index for _, index in one.steps} == {0, 1} for one in said.values())
    moved = [*room[:2], replace(room[2], box=(0.45, 0.68, 0.55, 0.78))]  # neither between nor clearly not
    assert not by_hops(np.random.default_rng(0), moved, known_nouns())


def test_relational_scenes_ask_for_what_is_there() -> None:
    relational = [make_relational((62, index), size=SIZE) for index in range(30)]
    assert {one.kind for scene in relational for one in scene.expressions} == {"comparison", "hops"}
    for scene in relational:
        assert len(scene.expressions) == 3
        for one in scene.expressions:
            assert len(one.targets) <= 1
            assert all(phrase in one.phrase and 0 <= index < len(scene.things) for phrase, index in one.steps)
    assert any(len(one.steps) == 2 for scene in relational for one in scene.expressions)


@pytest.mark.parametrize(
    ("relation", "x", "y", "expected"),
    [("left of", 0.2, 0.5, True), ("left of", 0.8, 0.5, False), ("left of", 0.45, 0.5, None), ("above", 0.5, 0.1, True)],
)
def test_a_relation_holds_or_is_in_doubt(relation: str, x: float, y: float, expected: bool | None) -> None:
    assert stands(thing("cup", x, y), relation, thing("dog", 0.5, 0.5)) is expected


def test_the_one_is_none_in_doubt() -> None:
    assert the_one([False, True]) == 1
    assert the_one([True, None]) is None
    assert the_one([True, True]) is None


# -- shifted scenes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_changes_pixels_alone(shift: str) -> None:
    plain = make_scene((66, 1), size=SIZE, kinds=("noun",))
    shifted = make_scene((66, 1), size=SIZE, kinds=("noun",), look=Look(shift))
    np.testing.assert_array_equal(plain.masks, shifted.masks)
    assert plain.expressions == shifted.expressions
    assert not np.array_equal(plain.image, shifted.image)
    if shift == "sketch":
        assert all(not thing.colour for thing in shifted.things)
        spread = shifted.image[shifted.masks.any(0)].astype(int)
        assert np.abs(spread - spread.mean(1, keepdims=True)).mean() < 3


def test_every_shift_comes_up() -> None:
    assert {look_of((67, index)).shift for index in range(60)} == set(SHIFTS)


def test_a_sketch_keeps_its_shape() -> None:
    glyph = glyphs_of("known")[0]
    told = Look("sketch").retell(thing(glyph.noun, 0.5, 0.5, colour="red"))
    np.testing.assert_array_equal(told.glyph.rgba[..., 3], glyph.rgba[..., 3])
    np.testing.assert_array_equal(rotate_hue(told.glyph.rgba, told.hue, told.brightness), told.glyph.rgba)


# -- as datasets ---------------------------------------------------------------------------------------------------------------------------


def test_the_option_names_every_kind() -> None:
    assert [kind.value for kind in SceneKind] == list(MAKERS)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_is_a_dataset(kind: str, tmp_path: Path) -> None:
    written = write_scenes(tmp_path / "scenes", 2, 68, kind=kind)
    examples = read_examples(tmp_path / "scenes")
    assert len(examples) == written >= 2
    assert len({example.image for example in examples}) == 2


def test_the_command_writes_a_kind(tmp_path: Path) -> None:
    result = CliRunner().invoke(make_app(), ["scenes", str(tmp_path / "s"), "--count", "1", "--seed", "3", "--kind", "ambiguous"])
    assert result.exit_code == 0, result.output
    assert any(example.source.endswith(":pair") for example in read_examples(tmp_path / "s"))
    assert CliRunner().invoke(make_app(), ["scenes", str(tmp_path / "t"), "--kind", "other"]).exit_code == 2
