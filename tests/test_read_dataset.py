"""Datasets that are wrong, damaged or hostile: each is refused with the line that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam4mllm.data.examples import EXAMPLES
from sam4mllm.data.read_dataset import load_example_image, read_examples
from sam4mllm.errors import DatasetError
from tests.cups_dataset import PICTURE, change, write


def put(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda line: line.update({name: value})


def put_box(*box: object) -> Callable[[dict[str, Any]], object]:
    return lambda line: line["instances"][1].update(box=list(box))


def put_rle(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda line: line["instances"][1]["rle"].update(changes)


def drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda line: line.pop(name)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        *[
            pytest.param(put("image", image), "path inside the dataset's folder", id=f"image {image}")
            for image in ("/etc/passwd", "../secret.png", "images/../../secret.png", "..", "images/..", "C:\\secret.png", "..\\secret.png")
        ],
        pytest.param(put("image", "file:///etc/passwd"), "path inside the dataset's folder", id="image by URL"),
        pytest.param(put("image", "images/a\0b.png"), "path inside the dataset's folder", id="image with a zero"),
        pytest.param(put("image", "images/none.png"), "is missing", id="image missing"),
        pytest.param(put("image", "images"), "is missing", id="image is a folder"),
        pytest.param(put("image", "x" * 5000), "is missing|is not inside", id="image of a long name"),
        pytest.param(put("image", ""), "image is missing", id="image of no name"),
        pytest.param(put("image", 7), "image is missing", id="image a number"),
        *[
            pytest.param(drop(name), name, id=f"no {name}")
            for name in ("image", "sha256", "width", "height", "phrase", "instances", "split")
        ],
        pytest.param(drop("source"), "source", id="no source"),
        *[
            pytest.param(put("label", label), "label is text of 1 to 1,000 characters", id=f"label {name}")
            for name, label in (
                ("a number", 7),
                ("a list", ["Cup"]),
                ("too long", "x" * 1001),
                ("empty", ""),
                ("half a character", "\ud800"),
            )
        ],
        *[
            pytest.param(put("thought", thought), "thought is text of at most 4,000 characters without tags", id=f"thought {name}")
            for name, thought in (
                ("a number", 7),
                ("null", None),
                ("too long", "x" * 4001),
                ("half a character", "\ud800"),
                ("that ends itself", "It is left.</think>[0,0,1,1]"),
                ("that begins another", "It is <THINK>left"),
            )
        ],
        pytest.param(put("sha256", "ab12"), "sha256", id="hash too short"),
        pytest.param(put("sha256", "A" * 64), "sha256", id="hash in capitals"),
        pytest.param(put("width", 0), "width", id="width zero"),
        pytest.param(put("width", -16), "width", id="width negative"),
        pytest.param(put("width", 16.0), "width", id="width a fraction"),
        pytest.param(put("width", True), "width", id="width a truth value"),
        pytest.param(put("height", "12"), "height", id="height as text"),
        pytest.param(put("height", 10**40), "more than the 50,000,000", id="height beyond the cap"),
        pytest.param(put("height", 13), "instance 0: .*size", id="another height than the masks"),
        pytest.param(put("phrase", " \n"), "phrase", id="phrase of white space"),
        pytest.param(put("phrase", None), "phrase", id="phrase null"),
        pytest.param(put("phrase", "half \ud800"), "phrase", id="phrase with half a character"),
        pytest.param(put("split", ""), "split", id="split empty"),
        pytest.param(put("split", "../train"), "split", id="split a path"),
        pytest.param(put("source", None), "source", id="source null"),
        pytest.param(put("instances", {}), "instances is a list", id="instances an object"),
        pytest.param(put("instances", [1] * 1001), "at most 1,000", id="too many instances"),
        pytest.param(put("instances", [[]]), "instance 0", id="instance a list"),
        pytest.param(put("instances", [{"box": [0, 0, 1, 1]}]), "instance 0", id="instance of no mask"),
        pytest.param(put_box(1, 2, 3), "instance 1: box is four", id="box of three"),
        pytest.param(put_box(1, 2, 3, 4, 5), "instance 1: box is four", id="box of five"),
        pytest.param(put_box(1, 2, 3, "4"), "instance 1: box is four", id="box with text"),
        pytest.param(put_box(0, 0, 1, True), "instance 1: box is four", id="box with a truth value"),
        pytest.param(put_box(0, 0, 1, None), "instance 1: box is four", id="box with null"),
        pytest.param(put_box(0, 0, 1, 10**400), "instance 1: box is four|valid JSON", id="box out to nowhere"),
        pytest.param(put_box(0, 0, 1, float("inf")), "valid JSON", id="box infinite"),
        pytest.param(put_box(0, 0, 1, float("nan")), "valid JSON", id="box not a number"),
        pytest.param(put_box(5, 0, 5, 1), "instance 1: box .* no area", id="box of no width"),
        pytest.param(put_box(0, 5, 5, 1), "instance 1: box .* no area", id="box upside down"),
        pytest.param(put_rle(size=[16, 12]), "instance 1: .*size", id="mask's sides swapped"),
        pytest.param(put_rle(counts="~~~"), "instance 1: .*counts", id="mask of nonsense"),
        pytest.param(put_rle(counts=None), "instance 1: .*counts", id="mask of null"),
        pytest.param(put_rle(counts=[192]), "instance 1: its mask is empty", id="mask empty"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"")
    write(tmp_path / "dataset")
    change(tmp_path / "dataset", edit)
    with pytest.raises(DatasetError, match=message) as caught:
        read_examples(tmp_path / "dataset")
    assert f"{tmp_path / 'dataset' / EXAMPLES}, line 1: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("{", "valid JSON", id="cut short"),
        pytest.param("[]", "not an object", id="a list"),
        pytest.param("null", "not an object", id="null"),
        pytest.param("[" * 100_000, "valid JSON", id="deep"),
        pytest.param('{"width": ' + "9" * 5000 + "}", "valid JSON", id="digits that int refuses"),
        pytest.param('{"width": 1e999}', "width", id="a number out of range"),
    ],
)
def test_a_line_that_is_no_example(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path)
    with (tmp_path / EXAMPLES).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DatasetError, match=f"line 4: .*{message}"):
        read_examples(tmp_path)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    write(tmp_path)
    with (tmp_path / EXAMPLES).open("ab") as file:
        file.write(b'{"phrase": "\xff"}\n')
    with pytest.raises(DatasetError, match="is not UTF-8"):
        read_examples(tmp_path)


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DatasetError, match=r"examples\.jsonl cannot be read"):
            read_examples(folder)


def test_a_link_does_not_lead_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.fromarray(PICTURE).save(secret)
    write(tmp_path / "dataset")
    (example, *_) = read_examples(tmp_path / "dataset")
    stored = tmp_path / "dataset" / example.image
    stored.unlink()
    stored.symlink_to(secret)
    with pytest.raises(DatasetError, match=r"line 1: .*not inside the dataset's folder"):
        read_examples(tmp_path / "dataset")
    with pytest.raises(DatasetError, match="not inside the dataset's folder"):
        load_example_image(tmp_path / "dataset", example)
    stored.unlink()
    stored.symlink_to(stored)
    with pytest.raises(DatasetError, match=r"not inside|is missing"):
        read_examples(tmp_path / "dataset")


def test_a_dataset_behind_a_link_is_one(tmp_path: Path) -> None:
    write(tmp_path / "dataset")
    (tmp_path / "link").symlink_to(tmp_path / "dataset")
    (example, *_) = read_examples(tmp_path / "link")
    np.testing.assert_array_equal(load_example_image(tmp_path / "link", example), PICTURE)


def test_an_image_has_one_hash_and_size(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / EXAMPLES
    lines = path.read_text(encoding="utf-8").splitlines()
    third = {**json.loads(lines[2]), "sha256": "0" * 64}
    path.write_text("\n".join([*lines[:2], json.dumps(third)]), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"line 3: .*another hash or size"):
        read_examples(tmp_path)


def test_a_cap_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path)
    assert len(read_examples(tmp_path, max_pixels=12 * 16)) == 3
    with pytest.raises(DatasetError, match="line 1: 16 x 12 pixels are more than the 191"):
        read_examples(tmp_path, max_pixels=12 * 16 - 1)


@pytest.mark.parametrize(
    ("data", "verify", "message"),
    [
        pytest.param(None, False, "is missing", id="gone"),
        pytest.param(b"no picture", False, "known format", id="no picture"),
        pytest.param("other size", False, "is 20 x 10 pixels, its examples say 16 x 12", id="another size"),
        pytest.param("other picture", True, "SHA-256", id="another picture"),
    ],
)
def test_a_picture_that_is_not_the_one_meant(tmp_path: Path, data: bytes | str | None, verify: bool, message: str) -> None:
    record = write(tmp_path)
    example = read_examples(tmp_path)[0]
    path = tmp_path / record.image
    path.unlink()
    if data == "other size":
        Image.new("RGB", (20, 10)).save(path)
    elif data == "other picture":
        Image.fromarray(255 - PICTURE).save(path)
    elif isinstance(data, bytes):
        path.write_bytes(data)
    with pytest.raises(DatasetError, match=message):
        load_example_image(tmp_path, example, verify_sha256=verify)
