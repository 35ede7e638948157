"""What is drawn: labels by the square root of how many there are, replay in its share, and the same again from the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sam4mllm.data.conversations import Conversation, Turn
from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image, read_examples
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.errors import DatasetError, TrainingError
from sam4mllm.training import pool
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.pool import Pool

SIDES = (90, 120)
Box = tuple[int, int, int, int]


def write_pictures(folder: Path, pictures: Sequence[dict[str, list[Box]]], split: str = "train") -> Path:
    """A dataset: each picture is its phrases with the boxes that they mean, drawn in a colour of the phrase."""
    width, height = SIDES
    with ExampleWriter(folder) as writer:
        for index, phrases in enumerate(pictures):
            image = np.random.default_rng(index).integers(0, 60, (height, width, 3)).astype(np.uint8)
            masks = {phrase: np.zeros((len(boxes), height, width), np.bool_) for phrase, boxes in phrases.items()}
            for place, (phrase, boxes) in enumerate(phrases.items()):
                for mask, (x1, y1, x2, y2) in zip(masks[phrase], boxes, strict=True):
                    mask[y1:y2, x1:x2] = True
                    image[mask] = np.roll([250, 120, 60], place)
            record = writer.add_image(image)
            for phrase, stack in masks.items():
                writer.add(record, phrase, stack, split, f"toy:{phrase}")
    return folder


TOY: list[dict[str, list[Box]]] = [
    {"the left cup": [(5, 10, 40, 60)], "all dogs": [(50, 20, 85, 50), (10, 70, 45, 110)], "the zebra": []},
    {"the left cup": [(10, 40, 44, 100)], "the car below the dog": [(46, 60, 80, 100)]},
    {"all dogs": [(30, 30, 60, 60)]},
]


def make_pool(folder: Path, replay: Path | None = None) -> Pool:
    return Pool([(folder, read_examples(folder))], [] if replay is None else [(replay, read_examples(replay))])


def draws(found: Pool, count: int, replay_share: float = 0.0, seed: int = 0) -> list[tuple[str, ...]]:
    """The phrases of each drawn image."""
    rng = np.random.default_rng(seed)
    return [tuple(example.phrase for example in shown.examples) for shown in found.draw(rng, count, replay_share)]


def test_a_rare_label_is_drawn_more_often_than_its_share(tmp_path: Path) -> None:
    common: list[dict[str, list[Box]]] = [{"the left cup": [(5, 10, 40 + index, 60)]} for index in range(9)]
    folder = write_pictures(tmp_path / "data", [*common, {"the zebra": [(5, 10, 40, 60)]}])
    counts = Counter(draws(make_pool(folder), 1000))
    assert counts["the zebra",] == pytest.approx(250, abs=45)  # 1 of 10 pictures: 1 / (√1 + √9)
    labelled = Pool([(folder, read_examples(folder))], label=lambda example: "one")
    assert Counter(draws(labelled, 1000))["the zebra",] == pytest.approx(100, abs=40)


def test_an_image_comes_with_all_that_is_asked_about_it(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", TOY)
    assert set(draws(make_pool(folder), 100)) == {tuple(phrases) for phrases in TOY}
    for shown in make_pool(folder).draw(np.random.default_rng(0), 20, 0.0):
        assert shown.image.shape == (SIDES[1], SIDES[0], 3)
        for example in shown.examples:
            for mask in example.masks():
                assert shown.image[mask].max() > 60


def test_replay_has_its_share(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", TOY)
    replay = write_pictures(tmp_path / "replay", [{"the cat": []}, {"the bus": []}])
    counts = Counter(draws(make_pool(folder, replay), 1000, 0.4))
    assert counts["the cat",] + counts["the bus",] == pytest.approx(400, abs=60)
    assert counts["the cat",] == pytest.approx(200, abs=50)
    assert not {("the cat",), ("the bus",)} & set(draws(make_pool(folder, replay), 200, 0.0))
    assert set(draws(make_pool(folder), 200, 0.9)) == {tuple(phrases) for phrases in TOY}  # nothing to replay


def test_the_same_numbers_draw_the_same_images(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", TOY)
    found = make_pool(folder)
    first = draws(found, 50, seed=3)
    assert draws(found, 50, seed=3) == first == draws(make_pool(folder), 50, seed=3)
    assert draws(found, 50, seed=4) != first


def test_images_in_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "data", TOY)
    read = Counter[str]()

    def counting(where: Path, example: Example) -> np.ndarray:
        read[example.image] += 1
        return load_example_image(where, example)

    monkeypatch.setattr(pool, "load_example_image", counting)
    draws(make_pool(folder), 60)
    assert set(read.values()) == {1}
    monkeypatch.setattr(pool, "BYTES_KEPT", 3 * SIDES[0] * SIDES[1] + 1)  # one image
    found = make_pool(folder)
    draws(found, 60)
    assert sum(read.values()) > 20
    assert len(found._images) == 1
    assert found._bytes == 3 * SIDES[0] * SIDES[1]


def test_the_hash_follows_what_is_learned_from_and_not_where_it_lies(tmp_path: Path) -> None:
    def sha256(name: str, pictures: Sequence[dict[str, list[Box]]], **options: object) -> str:
        folder = write_pictures(tmp_path / name, pictures)
        return Pool([(folder, read_examples(folder))], **options).sha256  # type: ignore[arg-type]

    first = sha256("a", TOY)
    assert sha256("b", TOY) == first
    moved = [*TOY[:2], {"all dogs": [(30, 30, 60, 61)]}]
    renamed = [*TOY[:2], {"all cats": [(30, 30, 60, 60)]}]
    others = {sha256("c", moved), sha256("d", renamed), sha256("e", TOY[:2]), sha256("f", TOY, label=lambda example: 1)}
    replay = write_pictures(tmp_path / "replay", TOY[2:])
    others |= {sha256("g", TOY, replay=[(replay, read_examples(replay))]), sha256("h", TOY[:2], replay=[(replay, read_examples(replay))])}
    assert len(others | {first}) == 7


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no example to learn from"):
        Pool([(tmp_path, [])])


# -- in turn -------------------------------------------------------------------------------------------------------------------------------


def dealt(found: Pool, places: Iterable[int], replay: float = 0.0, conversations: float = 0.0, seed: int = 0) -> list[tuple[str, ...]]:
    shown = found.deal(seed, places, replay, conversations)
    return [tuple(example.phrase for example in one.examples) or (one.turns[0].answer,) for one in shown]


def test_each_pass_deals_every_image_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    pictures: list[dict[str, list[Box]]] = [{f"the {name}": []} for name in ("cup", "dog", "car", "cat", "bus", "zebra")]
    folder = write_pictures(tmp_path / "data", pictures)
    found = make_pool(folder)
    passes = [dealt(found, range(start, start + 6)) for start in range(0, 30, 6)]
    for one in passes:
        assert sorted(one) == sorted(tuple(picture) for picture in pictures)
    assert len({tuple(one) for one in passes}) > 3
    assert dealt(make_pool(folder), range(30)) == [phrases for one in passes for phrases in one]
    assert dealt(make_pool(folder), range(1, 30, 2)) == [phrases for one in passes for phrases in one][1::2]  # a process's share
    assert dealt(found, range(6), seed=1) != passes[0]
    assert found.count_steps(3, 4, 0.5) == 5  # nothing to replay


def test_what_is_mixed_in_has_its_share_exactly(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", TOY)
    replay = write_pictures(tmp_path / "replay", [{"the cat": []}, {"the bus": []}])
    talks = [Conversation(next((folder / "images").iterdir()), (Turn("what?", answer),)) for answer in ("left", "right")]
    found = Pool([(folder, read_examples(folder))], [(replay, read_examples(replay))], conversations=talks)
    count = found.count_steps(2, 5, 0.5, 0.25) * 5
    assert count == 20  # two passes over three images, and of 20 a quarter and then half of the others: 7 or 8 of their own
    counts = Counter(dealt(found, range(400), 0.5, 0.25))
    assert counts["left",] == counts["right",] == 50
    assert counts["the cat",] == counts["the bus",] == 75
    assert [counts[tuple(phrases)] for phrases in TOY] == [50, 50, 50]
    with pytest.raises(TrainingError, match="would never end"):
        found.count_steps(1, 5, 1.0)
    drawn = found.draw(np.random.default_rng(0), 1000, 0.5, 0.25)
    assert sum(bool(shown.turns) for shown in drawn) == pytest.approx(250, abs=50)
    assert found.sha256 != make_pool(folder, replay).sha256


def test_an_image_with_many_phrases_is_several(tmp_path: Path) -> None:
    pictures: list[dict[str, list[Box]]] = [{f"the {name}": [] for name in ("cup", "dog", "car", "cat", "bus")}]
    folder = write_pictures(tmp_path / "data", pictures)
    found = Pool([(folder, read_examples(folder))], phrases=2)
    assert sorted(dealt(found, range(3))) == [("the bus",), ("the car", "the cat"), ("the cup", "the dog")]
    assert found.sha256 != make_pool(folder).sha256


def test_a_conversation_s_broken_picture(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", TOY)
    (tmp_path / "broken.png").write_bytes(b"x")
    talks = [Conversation(tmp_path / "broken.png", (Turn("what?", "left"),))]
    found = Pool([(folder, read_examples(folder))], conversations=talks)
    with pytest.raises(DatasetError, match=r"broken\.png"):
        found.draw(np.random.default_rng(0), 1, 0.0, 1.0)


@pytest.mark.parametrize(
    ("plan", "steps"),
    [
        (TrainingPlan(steps=7), 7),
        (TrainingPlan(steps=7, least_epochs=2, batch=1, replay_share=0), 20),
        (TrainingPlan(steps=30, least_epochs=2, batch=1, replay_share=0), 30),
        (TrainingPlan(epochs=3, batch=4, replay_share=0), 8),
    ],
)
def test_a_large_corpus_gets_more_steps(tmp_path: Path, plan: TrainingPlan, steps: int) -> None:
    pictures: list[dict[str, list[Box]]] = [{"the cup": [(5, 10, 40 + index, 60)]} for index in range(10)]
    assert make_pool(write_pictures(tmp_path / "data", pictures)).steps_of(plan) == steps
