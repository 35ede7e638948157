"""The dataset format: what is written is read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from sam4mllm.data.examples import EXAMPLES
from sam4mllm.data.read_dataset import load_example_image, read_examples
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.errors import ImageError
from sam4mllm.images import image_sha256
from sam4mllm.run_lengths import to_rle
from tests.cups_dataset import CUPS, PICTURE, block, change, write


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    record = write(tmp_path / "new" / "dataset")
    cups, left, dog = read_examples(tmp_path / "new" / "dataset")

    assert (cups.image, cups.sha256, cups.width, cups.height) == (record.image, record.sha256, 16, 12)
    assert (cups.phrase, cups.split, cups.source) == ("the cups", "train", "made up")
    np.testing.assert_array_equal(cups.masks(), CUPS)
    np.testing.assert_array_equal(cups.union(), CUPS[0] | CUPS[1])
    assert cups.boxes_px.dtype == np.float32
    assert cups.boxes_px.tolist() == [[2, 1, 6, 5], [8, 6, 15, 10]]

    assert (left.phrase, left.split, left.source) == ("die linke Tasse – 左", "testA", "")
    assert left.boxes_px.tolist() == [[2.5, 1.25, 6, 5]]
    assert (cups.label, left.label) == (None, "Tasse: 左")

    assert not dog.has_target
    assert dog.masks().shape == (0, 12, 16)
    assert dog.boxes_px.shape == (0, 4)
    assert not dog.union().any()
    assert dog.union().shape == (12, 16)


def test_the_file_is_the_format_of_the_design(tmp_path: Path) -> None:
    record = write(tmp_path)
    first = json.loads((tmp_path / EXAMPLES).read_text(encoding="utf-8").splitlines()[0])
    assert first == {
        "image": f"images/{record.sha256[:16]}.png",
        "sha256": image_sha256(tmp_path / record.image),
        "width": 16,
        "height": 12,
        "phrase": "the cups",
        "instances": [
            {"box": [2, 1, 6, 5], "rle": to_rle(CUPS[0])},
            {"box": [8, 6, 15, 10], "rle": to_rle(CUPS[1])},
        ],
        "split": "train",
        "label": None,
        "source": "made up",
    }
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["images", EXAMPLES, f"{record.sha256[:16]}.png"])


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1).filter(lambda text: text.strip()), st.lists(st.binary(min_size=192, max_size=192).filter(any), max_size=3))
def test_any_phrase_and_masks_come_back(tmp_path_factory: pytest.TempPathFactory, phrase: str, bits: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    masks = np.array([np.frombuffer(mask, np.uint8) % 2 for mask in bits], np.bool_).reshape(-1, 12, 16)
    masks = masks[masks.any(axis=(1, 2))]
    with ExampleWriter(folder) as writer:
        writer.add(writer.add_image(PICTURE), phrase, masks, "train", phrase)
    (example,) = read_examples(folder)
    assert example.phrase == example.source == phrase
    np.testing.assert_array_equal(example.masks(), masks)


def test_the_picture_comes_back(tmp_path: Path) -> None:
    write(tmp_path)
    for example in read_examples(tmp_path):
        np.testing.assert_array_equal(load_example_image(tmp_path, example, verify_sha256=True), PICTURE)


def test_a_picture_is_stored_once(tmp_path: Path) -> None:
    with ExampleWriter(tmp_path) as writer:
        record = writer.add_image(PICTURE)
        written = (tmp_path / record.image).stat().st_mtime_ns
        assert writer.add_image(PICTURE.copy()) == record
        assert writer.add_image(255 - PICTURE) != record
    assert (tmp_path / record.image).stat().st_mtime_ns == written
    assert len(list((tmp_path / "images").iterdir())) == 2


def test_a_stored_picture_that_was_cut_short_is_written_again(tmp_path: Path) -> None:
    with ExampleWriter(tmp_path) as writer:
        record = writer.add_image(PICTURE)
        (tmp_path / record.image).write_bytes(b"\x89PNG")
        writer.add_image(PICTURE)
    assert image_sha256(tmp_path / record.image) == record.sha256


def test_a_photo_keeps_its_file_and_is_measured_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo = tmp_path / "Photo.JPG"
    Image.fromarray(PICTURE).save(photo, exif=exif)
    with ExampleWriter(tmp_path / "dataset") as writer:
        record = writer.add_image_file(photo)
        writer.add(record, "all of it", np.ones((1, 16, 12), np.bool_), "train", "")
        with pytest.raises(ImageError, match="is not a file"):
            writer.add_image_file(tmp_path / "missing.jpg")
    assert (record.width, record.height) == (12, 16)
    assert record.image == f"images/{image_sha256(photo)[:16]}.jpg"
    (example,) = read_examples(tmp_path / "dataset")
    assert load_example_image(tmp_path / "dataset", example, verify_sha256=True).shape == (16, 12, 3)


def test_blank_lines_and_other_keys_do_no_harm(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / EXAMPLES
    lines = [json.dumps({**json.loads(line), "added": {"later": 1}}) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("\r\n\r\n".join(lines) + "\n\n  \n", encoding="utf-8")
    assert len(read_examples(tmp_path)) == 3


def test_plain_counts_are_read(tmp_path: Path) -> None:
    write(tmp_path)
    change(tmp_path, lambda line: line["instances"][0]["rle"].update(counts=[12, 12 * 15]))
    (example,) = read_examples(tmp_path)
    np.testing.assert_array_equal(example.masks()[0], block(0, 1, 12, 16))


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("label-studio:1:2:3:edited:Cup", "Cup"),
        ("label-studio:0:1:-4:drawn:Coffee: cup\nlarge", "Coffee: cup\nlarge"),
        ("label-studio:1:2:3:accepted:", None),
        ("label-studio:1:2:3:drawn", None),
        ("label-studio:1:2:3:drawn:" + "x" * 2000, "x" * 1000),
        ("label-studio:one:2:3:drawn:Cup", None),
        ("scenes:7:0:noun:color:size:Cup", None),
        ("", None),
    ],
)
def test_a_label_that_was_written_before_labels_had_a_key_is_known(tmp_path: Path, source: str, label: str | None) -> None:
    write(tmp_path / "old")
    change(tmp_path / "old", lambda line: (line.pop("label"), line.update(source=source)))
    [old] = read_examples(tmp_path / "old")
    assert (old.source, old.label) == (source, label)
    with ExampleWriter(tmp_path / "new") as writer:
        writer.copy(tmp_path / "old", old)
    assert [one.label for one in read_examples(tmp_path / "new")] == [label]


def test_a_label_in_its_place_is_the_label(tmp_path: Path) -> None:
    write(tmp_path)
    change(tmp_path, lambda line: line.update(source="label-studio:1:2:3:edited:Cup"))
    assert [one.label for one in read_examples(tmp_path)] == [None]
