"""Held-out pictures in several views, and what a comparison makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backend.learning.snapshot import ACCEPTED
from backend.learning.trainer import _name, _pairs
from backend.learning.views import views
from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image, read_examples
from tests.test_pool import TOY, write_pictures


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    return read_examples(write_pictures(tmp_path / "toy", TOY))


def test_a_pictures_views_are_always_the_same_and_no_other_pictures(tmp_path: Path, examples: list[Example]) -> None:
    one = [example for example in examples if example.image == examples[0].image]
    image = load_example_image(tmp_path / "toy", one[0])
    first, again = list(views(image, one, 4)), list(views(image, one, 4))
    assert len(first) == 4
    assert (first[0][0] == image).all()
    assert all((a == b).all() for (a, _), (b, _) in zip(first, again, strict=True))
    assert len({view.shape for view, _ in first}) > 1
    other = list(views(image, [replace(example, sha256="5" * 64) for example in one], 4))
    assert [view.shape for view, _ in other] != [view.shape for view, _ in first]


def test_the_masks_move_with_the_view(tmp_path: Path, examples: list[Example]) -> None:
    one = [example for example in examples if example.image == examples[0].image]
    for view, moved in views(load_example_image(tmp_path / "toy", one[0]), one, 4):
        for example, was in zip(moved, one, strict=True):
            assert (example.phrase, example.source, len(example.instances)) == (was.phrase, was.source, len(was.instances))
            assert example.union().shape == view.shape[:2]
            assert example.union().any() == was.union().any()


def test_examples_of_one_picture_and_phrase_are_told_apart_by_their_tasks(examples: list[Example]) -> None:
    edited = replace(examples[0], source="label-studio:1:1:1:edited")
    accepted = replace(examples[0], source=f"label-studio:2:2:2:{ACCEPTED}")
    scores = {_name(edited): [[0.2, 0.6], [0.4, 0.8]], _name(accepted): [[1.0, 0.97], [0.5, 0.5]]}
    first, second = sorted(_pairs([edited, accepted], scores), key=lambda pair: pair["champion"])
    assert (first["champion"], first["challenger"]) == pytest.approx((0.3, 0.7))  # the mean over its views
    assert (second["champion"], second["challenger"]) == (1.0, 0.97)  # as the reviewer saw it
    assert [pair["accepted"] for pair in (first, second)] == [False, True]
