"""Reviews as a dataset: the side of an image is its content's, for ever, and what does not fit is left out with its reason."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.corrections.reviews import Review
from backend.errors import FetchError
from backend.learning.holdout import Holdout
from backend.learning.snapshot import HOLDOUT, TRAIN, how_made, newest, write_snapshot
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.errors import DatasetError
from sam4mllm.run_lengths import to_rle


def picture(grey: int, width: int = 40, height: int = 30) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), grey, np.uint8)).save(file, "PNG")
    return file.getvalue()


class Files:
    """A grey picture by its number; ``dead`` cannot be had."""

    def read(self, reference: object, task_id: int | None) -> bytes:
        if reference == "dead":
            raise FetchError("the image host does not answer")
        return picture(int(str(reference)))


def review(annotation: int, image: str, width: int = 40, height: int = 30, **changes: Any) -> Review:
    mask = np.zeros((height, width), np.bool_)
    mask[5:20, 5:20] = True
    fields: dict[str, Any] = {
        "annotation": annotation,
        "project": 1,
        "task": annotation,
        "phrase": "the cup",
        "label": "Cup",
        "instances": (to_rle(mask),),
        "width": width,
        "height": height,
        "outcome": "drawn",
        "iou": None,
        "version": "",
        "features": {},
        "lead_time": None,
        "reviewer": None,
        "updated": 0.0,
        "image": image,
        "unassisted": False,
    }
    return Review(**{**fields, **changes})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    none = review(2, "20", instances=(), outcome="none", phrase="the dog", label=None)
    snapshot = write_snapshot([review(1, "10"), none], Files(), tmp_path / "data", Holdout(tmp_path))
    examples = read_examples(tmp_path / "data")
    assert [(one.phrase, len(one.instances)) for one in examples] == [("the cup", 1), ("the dog", 0)]
    assert (examples[0].source, examples[0].label) == ("label-studio:1:1:1:drawn", "Cup")
    assert sum(snapshot.counts.values()) == 2
    assert snapshot.refused == []


def test_the_same_picture_is_on_one_side_whatever_its_address(tmp_path: Path) -> None:
    class Same(Files):
        def read(self, reference: object, task_id: int | None) -> bytes:
            return picture(7)

    write_snapshot([review(number, f"{number}") for number in range(20)], Same(), tmp_path / "data", Holdout(tmp_path))
    assert len({one.split for one in read_examples(tmp_path / "data")}) == 1


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"outcome": "accepted"}, "accepted"),
        ({"outcome": "drawn", "unassisted": True}, "unassisted"),
        ({"outcome": "edited", "unassisted": True}, "edited"),
        ({"outcome": "drawn"}, "drawn"),
    ],
)
def test_an_example_says_how_it_came_about(tmp_path: Path, changes: dict[str, Any], how: str) -> None:
    """Where help was asked for after all, the mask was not drawn without."""
    write_snapshot([review(1, "10", **changes)], Files(), tmp_path / "data", Holdout(tmp_path))
    [example] = read_examples(tmp_path / "data")
    assert how_made(example.source) == how
    assert how_made("scenes:1:2:3:accepted") == ""


def test_ten_of_twenty_five_pictures_are_held_out(tmp_path: Path) -> None:
    twice = [review(number, f"{number % 25}") for number in range(50)]
    snapshot = write_snapshot(twice, Files(), tmp_path / "data", Holdout(tmp_path))
    assert snapshot.counts == {TRAIN: 30, HOLDOUT: 20}
    splits = [one.split for one in read_examples(tmp_path / "data")]
    assert (splits.count(TRAIN), splits.count(HOLDOUT)) == (30, 20)


def test_of_very_many_pictures_the_last_ones_are_taken_with_all_their_phrases() -> None:
    reviews = [review(number, f"{number}", changed=float(100 - number)) for number in range(10)]
    reviews += [review(20, "3", phrase="the dog", changed=200.0), review(21, "0", phrase="the dog", project=2, changed=1.0)]
    assert [(one.image, one.phrase, one.project) for one in newest(reviews, 3)] == [
        ("3", "the cup", 1),
        ("3", "the dog", 1),
        ("0", "the cup", 1),
        ("1", "the cup", 1),
    ]
    assert len(newest(reviews)) == len(reviews)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        pytest.param(review(9, "dead"), "does not answer", id="no image"),
        pytest.param(review(9, "10", width=41), "41 x 30", id="a mask of another size"),
        pytest.param(review(9, "10", phrase="half \ud800"), "phrase", id="a phrase that no file can hold"),
        pytest.param(review(9, "10", label="half \ud800"), "label", id="a label that no file can hold"),
        pytest.param(review(9, "10", label="x" * 1_001), "label", id="a label without end"),
        pytest.param(review(9, "10", instances=(to_rle(np.zeros((30, 40), np.bool_)),)), "no area", id="an empty mask"),
        pytest.param(review(9, "10", instances=({"size": [30, 40], "counts": "~"},)), "counts", id="a damaged mask"),
    ],
)
def test_what_does_not_fit_is_left_out_with_its_reason(tmp_path: Path, bad: Review, says: str) -> None:
    snapshot = write_snapshot([bad, review(1, "10")], Files(), tmp_path / "data", Holdout(tmp_path))
    assert len(read_examples(tmp_path / "data")) == 1
    [(number, reason)] = snapshot.refused
    assert number == 9
    assert says in reason
    assert sum(snapshot.counts.values()) == 1


def test_masks_are_in_memory_one_at_a_time(tmp_path: Path) -> None:
    """A photo's two hundred would be gigabytes."""
    side, masks = 1_000, []
    for row in range(40):
        mask = np.zeros((side, side), np.bool_)
        mask[row * 20 : row * 20 + 15, 10:500] = True
        masks.append(to_rle(mask))

    class Large(Files):
        def read(self, reference: object, task_id: int | None) -> bytes:
            return picture(7, side, side)

    tracemalloc.start()
    write_snapshot([review(1, "7", side, side, instances=tuple(masks))], Large(), tmp_path / "data", Holdout(tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * side * side
    [example] = read_examples(tmp_path / "data")
    assert [one.rle for one in example.instances] == masks


def test_a_disk_that_is_full_refuses_no_annotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sam4mllm.data.write_dataset.replace_file", full)
    with pytest.raises(DatasetError, match="No space left on device"):
        write_snapshot([review(1, "10")], Files(), tmp_path / "data", Holdout(tmp_path))


def test_a_snapshot_that_is_broken_off_leaves_no_dataset(tmp_path: Path) -> None:
    def stop() -> None:
        if (tmp_path / "data" / "images").is_dir() and any((tmp_path / "data" / "images").iterdir()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_snapshot([review(number, f"{number}") for number in range(5)], Files(), tmp_path / "data", Holdout(tmp_path), stop)
    assert not (tmp_path / "data" / "examples.jsonl").exists()
    assert sum(write_snapshot([review(1, "1")], Files(), tmp_path / "data", Holdout(tmp_path)).counts.values()) == 1
