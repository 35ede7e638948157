"""Corrected objects in other pictures: what is pasted, where, and what never is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.data.examples import Example, ExampleInstance, load_example_image, read_examples
from sam4mllm.masks import box_of, to_rle
from sam4mllm.training.paste import LARGEST, MOST_OBJECTS, can_be_pasted, paste
from sam4mllm.training.pool import ABSENT_SHARE, Pool, Shown
from tests.test_pool import Box, write_pictures

RED = np.array([250, 0, 0], np.uint8)


def correction(phrase: str, boxes: list[Box], height: int = 100, width: int = 120) -> tuple[np.ndarray, Example]:
    """A grey picture with red objects."""
    image = np.full((height, width, 3), 90, np.uint8)
    instances = []
    for x1, y1, x2, y2 in boxes:
        mask = np.zeros((height, width), np.bool_)
        mask[y1:y2, x1:x2] = True
        image[mask] = RED
        instances.append(ExampleInstance(box_of(mask), to_rle(mask)))
    return image, Example("images/a.png", "0" * 64, width, height, phrase, tuple(instances), "train", "")


@given(seed=st.integers(0, 10_000), height=st.integers(20, 200), width=st.integers(20, 200), side=st.integers(5, 90))
def test_the_mask_is_where_the_object_lies(seed: int, height: int, width: int, side: int) -> None:
    image, example = correction("the cup", [(5, 5, 5 + side, 8 + side // 2)])
    background = np.zeros((height, width, 3), np.uint8)
    made = paste(image, example, background, np.random.default_rng(seed))
    assert made is not None
    picture, there = made
    assert picture.shape == background.shape == (there.height, there.width, 3)
    mask = there.union()
    assert (picture[mask] == RED).all()
    assert not picture[~mask].any()
    assert (there.boxes_px[0] == box_of(mask)).all()
    x1, y1, x2, y2 = there.boxes_px[0]
    assert max(x2 - x1, y2 - y1) <= max(12, LARGEST * min(height, width)) + 1
    assert not background.any()


def test_several_objects_stay_apart_and_an_object_that_is_covered_is_no_object() -> None:
    image, example = correction("the cups", [(0, 0, 40, 40), (50, 50, 90, 90)])
    found = [paste(image, example, np.zeros((30, 30, 3), np.uint8), np.random.default_rng(seed)) for seed in range(200)]
    kept = [made[1].masks() for made in found if made is not None]
    assert 0 < len(kept) < len(found)
    assert all(masks.shape == (2, 30, 30) and not (masks[0] & masks[1]).any() and masks.any((1, 2)).all() for masks in kept)


@pytest.mark.parametrize("sides", [(1, 1), (19, 200), (200, 19)])
def test_nothing_is_pasted_into_a_tiny_picture(sides: tuple[int, int]) -> None:
    image, example = correction("the cup", [(0, 0, 40, 40)])
    assert paste(image, example, np.zeros((*sides, 3), np.uint8), np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("phrase", "objects", "fit"),
    [
        pytest.param("the red cup", 1, True, id="a thing"),
        pytest.param("all cups", MOST_OBJECTS, True, id="some"),
        pytest.param("all cups", MOST_OBJECTS + 1, False, id="many"),
        pytest.param("the cup", 0, False, id="nothing"),
        pytest.param("the left cup", 1, False, id="a place"),
        pytest.param("cup below the dog", 1, False, id="a relation"),
        pytest.param("Left cup", 1, False, id="in capitals"),
        pytest.param("the leftover cup", 1, True, id="a longer word"),
    ],
)
def test_only_what_means_the_same_elsewhere_is_pasted(phrase: str, objects: int, fit: bool) -> None:
    boxes: list[Box] = [(10 * index, 0, 10 * index + 8, 8) for index in range(objects)]
    assert can_be_pasted(correction(phrase, boxes)[1]) is fit


def pool(folder: Path, phrase: str, replayed: str | None) -> tuple[Pool, Example]:
    """A correction, two pictures to paste it into, and the correction itself."""
    data = write_pictures(folder / "data", [{phrase: [(5, 10, 40, 60)]}])
    replay = [] if replayed is None else [write_pictures(folder / "replay", [{replayed: [(1, 1, 50, 50)]}, {replayed: []}])]
    [own] = read_examples(data)
    return Pool([(data, [own])], [(one, read_examples(one)) for one in replay]), own


def is_own(shown: Shown, own: Example) -> bool:
    """Whether it is the correction as the reviewer made it."""
    [example] = shown.examples
    assert example.phrase == own.phrase
    return example.has_target and example.instances[0].rle == own.instances[0].rle


@pytest.mark.parametrize(
    ("phrase", "replayed", "moved"),
    [
        pytest.param("the zebra", "the cup", True, id="another thing"),
        pytest.param("the zebra", "all Zebra", False, id="the same word"),
        pytest.param("the zebra", "three zebras", False, id="in the plural"),
        pytest.param("the left zebra", "the cup", False, id="a place"),
        pytest.param("the zebra", None, False, id="no replay"),
    ],
)
def test_a_picture_that_may_answer_to_the_phrase_is_none_to_paste_into(
    tmp_path: Path, phrase: str, replayed: str | None, moved: bool
) -> None:
    made, own = pool(tmp_path, phrase, replayed)
    drawn = made.draw(np.random.default_rng(0), 20, 0.0, paste_share=1.0)
    assert all(is_own(shown, own) is not moved for shown in drawn)


def test_a_phrase_is_also_shown_where_it_means_nothing(tmp_path: Path) -> None:
    made, _ = pool(tmp_path, "the zebra", "the cup")
    drawn = made.draw(np.random.default_rng(0), 300, 0.0, paste_share=1.0)
    without = [shown for shown in drawn if not shown.examples[0].has_target]
    assert len(without) == pytest.approx(300 * ABSENT_SHARE, abs=30)
    replayed = [load_example_image(tmp_path / "replay", example) for example in read_examples(tmp_path / "replay")]
    assert all(any((shown.image == picture).all() for picture in replayed) for shown in without)


def test_the_share_is_kept_and_the_same_numbers_give_the_same_pictures(tmp_path: Path) -> None:
    made, own = pool(tmp_path, "the zebra", "the cup")
    first, again = (made.draw(np.random.default_rng(3), 300, 0.0, paste_share=0.5) for _ in range(2))
    assert sum(is_own(shown, own) for shown in first) == pytest.approx(150, abs=30)
    assert all((a.image == b.image).all() for a, b in zip(first, again, strict=True))
    assert all(is_own(shown, own) for shown in made.draw(np.random.default_rng(3), 50, 0.0))
