"""The dataset format: what is written is read back the same, what is wrong is named by file and line, a kill leaves nothing half done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from sam4mllm.data import examples as module
from sam4mllm.data.examples import EXAMPLES, ImageRecord
from sam4mllm.data.read_dataset import load_example_image, read_examples
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.errors import DatasetError, ImageError, Sam4mllmError
from sam4mllm.images import image_sha256
from sam4mllm.run_lengths import to_rle

PICTURE = np.random.default_rng(5).integers(0, 256, (12, 16, 3), np.uint8)


def block(top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((12, 16), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


CUPS = np.array([block(1, 2, 5, 6), block(6, 8, 10, 15)])


def write(folder: Path) -> ImageRecord:
    """A dataset of three examples on one picture."""
    with ExampleWriter(folder) as writer:
        record = writer.add_image(PICTURE)
        writer.add(record, "the cups", CUPS, "train", "made up")
        writer.add(record, "die linke Tasse – 左", CUPS[:1], "testA", "", boxes=[[2.5, 1.25, 6, 5]])
        writer.add(record, "the dog", [], "val", "made up")
    return record


# -- round trips ---------------------------------------------------------------------------------------------------------------------------


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


# -- what is not in the format -------------------------------------------------------------------------------------------------------------


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Leave only the first line, edited."""
    path = folder / EXAMPLES
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    edit(line)
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")


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


# -- the writer ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"phrase": ""}, "phrase", id="no phrase"),
        pytest.param({"phrase": "\ud800"}, "phrase", id="half a character"),
        pytest.param({"phrase": 7}, "phrase", id="a number"),
        pytest.param({"split": "a b"}, "split", id="split with a space"),
        pytest.param({"source": None}, "source", id="no source"),
        pytest.param({"masks": CUPS[:, :11]}, "masks are", id="masks of another height"),
        pytest.param({"masks": CUPS[0]}, "masks are", id="one mask of two sides"),
        pytest.param({"masks": np.zeros((1, 12, 16), np.bool_)}, "no area|empty", id="empty mask"),
        pytest.param({"masks": np.zeros((1, 12, 16), np.bool_), "boxes": [[0, 0, 1, 1]]}, "mask is empty", id="box of an empty mask"),
        pytest.param({"boxes": [[0, 0, 1, 1]]}, "boxes are", id="boxes too few"),
        pytest.param({"boxes": [[0, 0, 1], [0, 0, 1]]}, "boxes are", id="boxes of three"),
        pytest.param({"boxes": [[0, 0, 1, np.nan], [0, 0, 1, 1]]}, "box is four finite", id="box not a number"),
        pytest.param({"masks": [], "boxes": [[0, 0, 1, 1]]}, "boxes are", id="box of no mask"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with ExampleWriter(tmp_path) as writer:
        record = writer.add_image(PICTURE)
        with pytest.raises(DatasetError, match=message):
            writer.add(record, **{"phrase": "the cups", "masks": CUPS, "split": "train", "source": "", **arguments})
        writer.add(record, "nothing", np.zeros((0, 12, 16), np.bool_), "train", "", boxes=np.zeros((0, 4)))
    (example,) = read_examples(tmp_path)
    assert example.phrase == "nothing"


def test_masks_may_be_made_as_they_are_asked_for(tmp_path: Path) -> None:
    def failing() -> Iterator[NDArray[np.bool_]]:
        yield CUPS[0]
        raise Sam4mllmError("the second is damaged")

    for name, masks in (("array", CUPS), ("one by one", iter(CUPS))):
        with ExampleWriter(tmp_path / name) as writer:
            record = writer.add_image(PICTURE)
            writer.add(record, "the cups", masks, "train", "")
            with pytest.raises(Sam4mllmError, match="the second is damaged"):
                writer.add(record, "the cups", failing(), "train", "")
    assert (tmp_path / "one by one" / EXAMPLES).read_bytes() == (tmp_path / "array" / EXAMPLES).read_bytes()


def test_a_dataset_is_not_written_over(tmp_path: Path) -> None:
    write(tmp_path)
    before = (tmp_path / EXAMPLES).read_bytes()
    with pytest.raises(DatasetError, match="already holds a dataset"), ExampleWriter(tmp_path):
        pass
    assert (tmp_path / EXAMPLES).read_bytes() == before


def test_a_writer_writes_inside_its_block_only(tmp_path: Path) -> None:
    writer = ExampleWriter(tmp_path)
    with pytest.raises(RuntimeError, match="with block"):
        writer.add_image(PICTURE)


def test_an_array_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    with ExampleWriter(tmp_path) as writer, pytest.raises(ImageError):
        writer.add_image(PICTURE[..., 0])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DatasetError, match="cannot be written"), ExampleWriter(tmp_path / "file" / "dataset"):
        pass


def write_then(folder: Path, happens: Callable[[ExampleWriter], None]) -> None:
    """Write an example, and then something happens before the block ends."""
    with ExampleWriter(folder) as writer:
        writer.add(writer.add_image(PICTURE), "the cups", CUPS, "train", "")
        happens(writer)


def test_an_error_leaves_no_dataset_and_a_second_run_writes_one(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise Sam4mllmError("midway")

    with pytest.raises(Sam4mllmError, match="midway"):
        write_then(tmp_path, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    write(tmp_path)
    assert len(read_examples(tmp_path)) == 3


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DatasetError, match="No space left on device"):
        write_then(tmp_path, lambda _: monkeypatch.setattr(os, step, full))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from sam4mllm.data.write_dataset import ExampleWriter
import sam4mllm.data.examples as module

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

step, folder = sys.argv[1], Path(sys.argv[2])
with ExampleWriter(folder) as writer:
    record = writer.add_image(np.full((12, 16, 3), 9, np.uint8))
    if step == "image":
        module.os.replace = die
        writer.add_image(np.full((12, 16, 3), 10, np.uint8))
    for number in range(2000):
        writer.add(record, f"phrase {number}", np.ones((1, 12, 16), bool), "train", "")
        if step == "line" and number == 1500:
            die()
    if step == "flush":
        module.os.fsync = die
    if step == "rename":
        module.os.replace = die
"""


@pytest.mark.parametrize("step", ["image", "line", "flush", "rename"])
def test_a_kill_leaves_no_half_written_dataset(tmp_path: Path, step: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), step, str(tmp_path)]
    died = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (tmp_path / EXAMPLES).exists()
    for image in (tmp_path / "images").glob("[!.]*"):
        assert image_sha256(image)[:16] == image.stem
    write(tmp_path)
    assert len(read_examples(tmp_path)) == 3
    assert not (tmp_path / f".{EXAMPLES}.tmp").exists()
