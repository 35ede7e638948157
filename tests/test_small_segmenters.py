"""The benchmark that compares kinds of segmenters: its small models are trained and served, and its figures are what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import small_segmenters
from benchmarks.segmenters import Measured, TrueClasses, as_markdown, asked_for, measure_things
from benchmarks.small_segmenters import BACKGROUND, NAMELESS, Drawn, class_map, class_names, draw
from sam4mllm.demo.scenes import DemoScene, make_ambiguous, make_scene
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.proposals import ProposalSegmenter, ProposalsEmbedding
from tests.test_proposals import proposal

SCENE = make_scene((7, 1), kinds=(), size=(96, 128))


def knowing(scene: DemoScene, *things: int) -> ProposalsEmbedding:
    """What a model would propose that sees these things as they are."""
    height, width = scene.image.shape[:2]
    return ProposalsEmbedding(width, height, 0, tuple(proposal(scene.masks[thing]) for thing in things))


def measured(scene: DemoScene, embedding: ProposalsEmbedding) -> dict[str, float | None]:
    found = Measured()
    measure_things(found, 0, scene, ProposalSegmenter(torch.nn.Linear(1, 1), None, "test"), embedding)
    return found.sums().figures()


def test_who_proposes_every_thing_is_right_by_every_prompt() -> None:
    count = len(SCENE.masks)
    found = measured(SCENE, knowing(SCENE, *range(count)))
    assert (found["box and points"], found["box"], found["best"], found["pqpp"]) == (1, 1, 1, None)
    assert found["any"] == pytest.approx(1 / count)  # visible masks of different things share no pixel


def test_what_is_not_proposed_is_found_by_no_prompt() -> None:
    count = len(SCENE.masks)
    found = measured(SCENE, knowing(SCENE, 0))
    assert [found[name] for name in ("box and points", "box", "best", "any")] == pytest.approx([1 / count] * 4)
    assert measured(SCENE, knowing(SCENE))["best"] == 0


def test_true_classes_join_what_touches_of_a_noun() -> None:
    whole = np.zeros((3, 6, 9), np.bool_)
    whole[0, 1:3, 0:3] = whole[1, 2:5, 3:6] = whole[2, 0:6, 7] = True
    cup, bowl = (next(thing for thing in SCENE.things if thing.noun == noun) for noun in _two_nouns())
    scene = replace(SCENE, image=np.zeros((6, 9, 3), np.uint8), masks=whole, things=(cup, cup, bowl))
    knowing_all = TrueClasses()
    knowing_all.scene = scene
    found = [one.mask(9, 6) for one in knowing_all.encode(scene.image).proposals]
    np.testing.assert_array_equal(found, [whole[0] | whole[1], whole[2]])


def _two_nouns() -> list[str]:
    return list(dict.fromkeys(thing.noun for thing in SCENE.things))[:2]


def test_of_an_ambiguous_scene_the_pair_is_asked_for() -> None:
    scene = make_ambiguous((7, 3), size=(96, 128))
    assert scene.pair == (2, 3)
    assert asked_for(scene) == list(scene.pair)
    assert asked_for(SCENE) == list(range(len(SCENE.masks)))


def test_a_segmenter_is_compared_with_the_first_on_the_same_scenes() -> None:
    first, second = Measured(), Measured()
    for index in range(6):
        first.add(index, box=0.5 + index / 100, box_and_points=0.5)
        second.add(index, box=0.4 + index / 100, box_and_points=0.5)
    first.seconds, second.seconds = [0.25], [0.5]
    lines = list(as_markdown(["sam", "a-folder"], [first, second]))
    assert lines[1].startswith("| sam | 0.500 (0.500–0.500) | 0.525 (0.5")
    assert lines[1].endswith("| – | – | – | 0.25 |")
    assert lines[-1] == "| a-folder | +0.0 (+0.0 to +0.0) | −10.0 (−10.0 to −10.0) | – |"


def test_a_class_map_has_each_thing_under_its_noun() -> None:
    names = class_names()
    assert (names[0], names[-1]) == (BACKGROUND, NAMELESS)
    masks = np.zeros((2, 4, 4), np.bool_)
    masks[0, :2], masks[1, 1:3, 2:] = True, True
    shown = class_map(Drawn(np.zeros((4, 4, 3), np.uint8), masks, np.array([5, 9])))
    np.testing.assert_array_equal(shown, [[5, 5, 5, 5], [5, 5, 9, 9], [0, 0, 9, 9], [0, 0, 0, 0]])


def test_a_scene_is_seen_mirrored_with_its_masks() -> None:
    drawn = draw(0)
    assert drawn.masks.any((1, 2)).all()
    assert {class_names()[number] for number in drawn.classes} <= set(class_names()) - {BACKGROUND}
    plain, mirrored = (drawn.seen(32, mirrored) for mirrored in (False, True))
    np.testing.assert_array_equal(mirrored.masks, plain.masks[:, :, ::-1])
    np.testing.assert_array_equal(mirrored.image, plain.image[:, ::-1])
    assert not np.array_equal(mirrored.image, plain.image)


@pytest.mark.parametrize("name", tuple(small_segmenters.RECIPES))
def test_what_a_recipe_writes_serves_as_a_segmenter(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_segmenters, "POOL", 8)
    folder = small_segmenters.train(name, tmp_path, steps=3)
    assert (tmp_path / "training" / name / "log.jsonl").exists()
    embedding = load_segmenter(str(folder), torch.device("cpu")).encode(SCENE.image)
    assert isinstance(embedding, ProposalsEmbedding)
    assert (embedding.height, embedding.width) == SCENE.image.shape[:2]
    assert embedding.proposals
