"""From pairs to a dataset folder, and several datasets to one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from typer.testing import CliRunner

from sam4mllm.cli.main import make_app
from sam4mllm.data.examples import Example
from sam4mllm.data.merge import TESTED_ON, merge
from sam4mllm.data.pairs import LeftOut, PhrasedPicture, Prepared, Reading, coco_origin, encode, to_mask, write_pairs
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.data.readers import READERS
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.errors import DatasetError, MaskCodecError
from sam4mllm.masks import box_of
from sam4mllm.run_lengths import from_rle, to_rle
from tests.public_sets import FAR, HEIGHT, SQUARE, WIDTH, picture, refcoco_m, refer_root, square


def write(pairs: list[Any], out: Path) -> Prepared:
    return write_pairs(Reading(pairs, len(pairs)), out)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.floats(-30, 110), st.floats(-30, 90)), min_size=3, max_size=8), min_size=1, max_size=3))
def test_an_outline_is_what_pycocotools_draws(polygons: list[list[tuple[float, float]]]) -> None:
    outline = [[side for point in polygon for side in point] for polygon in polygons]
    slow = from_rle(coco.merge(coco.frPyObjects(outline, HEIGHT, WIDTH)), HEIGHT, WIDTH)
    found = encode(outline, HEIGHT, WIDTH)
    assert (to_mask(outline, HEIGHT, WIDTH) == slow).all()
    if found is not None:
        assert found.rle == to_rle(slow)
        assert (found.box_px == box_of(slow)).all()
    else:
        assert not slow.any()


@pytest.mark.parametrize(
    "outline",
    [
        pytest.param([[1, 2, 3]], id="odd"),
        pytest.param([[1, 2, 3, 4, 5, float("nan")]], id="NaN"),
        pytest.param([[1, 2, 3, 4, 5, 1e12]], id="far"),
        pytest.param([[0, 0, 1e6, 1e6] * 10], id="a line that never ends"),
        pytest.param([["1", "2", "3", "4", "5", "6"]], id="text"),
        pytest.param(["abcdef"], id="a text for a polygon"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": "h"}, id="short run lengths"),
        pytest.param({"size": [1, 1], "counts": [1]}, id="another size"),
    ],
)
def test_a_malformed_outline_is_refused(outline: Any) -> None:
    with pytest.raises(MaskCodecError):
        to_mask(outline, HEIGHT, WIDTH)


@pytest.mark.parametrize("outline", [[], [[1, 2, 3, 4]], [[]]], ids=["nothing", "a line", "an empty polygon"])
def test_an_outline_without_area_is_empty(outline: Any) -> None:
    assert not to_mask(outline, HEIGHT, WIDTH).any()


def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    broken = tmp_path / "b.png"
    broken.write_bytes(b"none")
    pairs = [
        PhrasedPicture(path, "cup", ([SQUARE],), "train", "first"),
        PhrasedPicture(path, " Cup ", ([SQUARE],), "train", "again"),
        PhrasedPicture(path, "cup", ([SQUARE],), "val", "tested"),
        PhrasedPicture(path, "cup", ([SQUARE],), "val", "tested again"),
        PhrasedPicture(path, "cup", ([[1, 1, 2, 2]],), "train", "no pixel"),
        PhrasedPicture(path, "two", ([SQUARE], [[1, 1, 2, 2]]), "train", "one without a pixel"),
        PhrasedPicture(path, "  ", ([SQUARE],), "train", "no phrase"),
        PhrasedPicture(path, "cup", ([[1, 2, 3]],), "train", "malformed"),
        PhrasedPicture(path, "cup", ([SQUARE],), "a split", "no split"),
        PhrasedPicture(path, "cup", ([SQUARE],), "train", "turned", "", (WIDTH, HEIGHT)),
        PhrasedPicture(broken, "cup", ([SQUARE],), "train", "no picture"),
        PhrasedPicture(broken, "mug", ([SQUARE],), "train", "no picture again"),
        LeftOut("train", "skipped", "it was skipped"),
    ]
    prepared = write(pairs, tmp_path / "out")
    assert [(one.source, len(one.instances)) for one in read_examples(tmp_path / "out")] == [
        *(("first", 1), ("tested", 1), ("tested again", 1), ("one without a pixel", 1)),
    ]
    assert (prepared.written, prepared.merged, prepared.images) == ({"train": 2, "val": 2}, 1, 1)
    assert prepared.read == {"train": 10, "val": 2, "a split": 1}
    assert sorted(prepared.first.values()) == ["malformed", "no phrase", "no picture", "no pixel", "no split", "skipped", "turned"]
    assert sum(prepared.left_out.values()) == 8


def test_pictures_in_memory_are_kept_once(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.png").read_bytes()
    pairs = [PhrasedPicture(bytes(bytearray(data)), phrase, ([SQUARE],), "val", phrase) for phrase in "abc"]
    assert write(pairs, tmp_path / "out").images == 1


def test_after_an_error_nothing_is_left_and_a_second_time_works(tmp_path: Path) -> None:
    pair = PhrasedPicture(picture(tmp_path / "a.png"), "cup", ([SQUARE],), "train", "")

    def broken() -> Iterator[PhrasedPicture]:
        yield pair
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pairs(Reading(broken()), tmp_path / "deep" / "out")
    assert not any((tmp_path / "deep").iterdir())
    # what a killed process leaves behind is in nobody's way
    (tmp_path / "deep" / ".out.partial" / "images").mkdir(parents=True)
    (tmp_path / "deep" / ".out.partial" / "images" / "old.png").write_bytes(b"old")
    (tmp_path / "deep" / "out").mkdir()
    write([pair], tmp_path / "deep" / "out")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert len(list((tmp_path / "deep" / "out" / "images").iterdir())) == 1


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    picture(tmp_path / "out" / "a.png")
    with pytest.raises(DatasetError, match="already holds something"):
        write([], tmp_path / "out")
    with pytest.raises(DatasetError, match=r"a\.png already holds something"):
        write([], tmp_path / "out" / "a.png")
    with pytest.raises(DatasetError, match="cannot be written"):
        write([], tmp_path / "out" / "a.png" / "below")


def test_where_a_file_cannot_be_linked_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    path = picture(tmp_path / "a.png")
    write([PhrasedPicture(path, "cup", ([SQUARE],), "train", "")], tmp_path / "out")
    [example] = read_examples(tmp_path / "out")
    assert (tmp_path / "out" / example.image).read_bytes() == path.read_bytes()
    assert not (tmp_path / "out" / example.image).samefile(path)


@pytest.mark.parametrize(
    ("name", "origin"),
    [("COCO_train2014_000000581857.jpg", "coco:581857"), ("1a2b-COCO_val2014_000000000042.jpg", "coco:42"), ("000000000042.jpg", "")],
)
def test_a_name_of_2014_tells_the_picture(name: str, origin: str) -> None:
    assert coco_origin(name) == origin


# -- merging -------------------------------------------------------------------------------------------------------------------------------


def one(folder: Path, split: str, origin: str = "", shade: int = 0, phrase: str = "cup", source: str = "s") -> Path:
    """A dataset of one example; another shade is another file."""
    image = picture(folder.parent / f"{folder.name}-{shade}.png", shade)
    write([PhrasedPicture(image, phrase, ([SQUARE],), split, source, origin)], folder)
    return folder


def written(out: Path) -> list[tuple[str, str, str]]:
    return [(example.phrase, example.split, example.origin) for example in read_examples(out)]


SETS: dict[str, tuple[list[tuple[str, str, int]], list[str]]] = {
    "the same file": ([("train", "", 0), ("val", "", 0)], ["val"]),
    "the same picture encoded anew": ([("train", "coco:1", 0), ("testA", "coco:1", 1)], ["testA"]),
    "tested on first": ([("test", "coco:1", 1), ("train", "coco:1", 0)], ["test"]),
    "known by its file in another set": ([("train", "", 0), ("train", "coco:1", 0), ("val", "coco:1", 1)], ["val"]),
    "tested by its file, named in another set": ([("train", "coco:1", 1), ("train", "coco:1", 0), ("val", "", 0)], ["val"]),
    "two pictures": ([("train", "coco:1", 0), ("val", "coco:2", 1)], ["train", "val"]),
    "no origin is no common one": ([("train", "", 0), ("val", "", 1)], ["train", "val"]),
    "repeated": ([("train", "coco:1", 0), ("train", "coco:1", 0)], ["train"]),
    "repeated, encoded anew": ([("train", "coco:1", 0), ("train", "coco:1", 1)], ["train"]),
}


@pytest.mark.parametrize(("sets", "splits"), SETS.values(), ids=SETS.keys())
def test_no_picture_that_is_tested_on_is_trained_on(sets: list[tuple[str, str, int]], splits: list[str], tmp_path: Path) -> None:
    folders = [one(tmp_path / str(index), split, origin, shade) for index, (split, origin, shade) in enumerate(sets)]
    merge(folders, tmp_path / "out")
    assert [split for _, split, _ in written(tmp_path / "out")] == splits


def test_public_sets_are_merged(tmp_path: Path) -> None:
    refer = refer_root(tmp_path / "refer")
    sources = {"refcoco": refer, "refcoco+": refer, "grefcoco": refer, "refcoco-m": refcoco_m(tmp_path / "m")}
    for name, root in sources.items():
        write_pairs(READERS[name].read(root), tmp_path / name)
    prepared = merge([tmp_path / name for name in ("refcoco", "refcoco+")], tmp_path / "two")
    # what is tested on in both stays in both: it is two questions of two sets
    assert (prepared.written, prepared.merged) == ({"train": 2, "val": 2}, 2)
    prepared = merge([tmp_path / name for name in sources], tmp_path / "all")
    assert prepared.written == {"val": 4, "testA": 1}
    assert prepared.left_out == {TESTED_ON: 5}
    assert prepared.images == 3
    [first, *_] = read_examples(tmp_path / "all")
    assert (first.union() == to_mask([FAR], HEIGHT, WIDTH)).all()


def test_the_command_merges(tmp_path: Path) -> None:
    folders = [str(one(tmp_path / split, split, "coco:1")) for split in ("train", "val")]
    result = CliRunner().invoke(make_app(), ["data", "merge", str(tmp_path / "out"), *folders])
    assert result.exit_code == 0, result.output
    assert "1 val; 1 pictures, 0 repetitions merged" in result.stdout
    assert f"1 left out: {TESTED_ON} (first: s)" in result.stdout


def test_the_same_set_twice_is_there_once(tmp_path: Path) -> None:
    write_pairs(READERS["refcoco"].read(refer_root(tmp_path / "refer")), tmp_path / "a")
    prepared = merge([tmp_path / "a", tmp_path / "a"], tmp_path / "out")
    assert (prepared.written, prepared.merged) == ({"train": 2, "val": 1}, 3)


def test_a_merged_picture_is_what_it_was(tmp_path: Path) -> None:
    write_pairs(READERS["refcoco"].read(refer_root(tmp_path / "refer")), tmp_path / "a")
    example = read_examples(tmp_path / "a")[0]
    (tmp_path / "a" / example.image).write_bytes(b"changed")
    with pytest.raises(DatasetError, match="restore it"):
        merge([tmp_path / "a"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- origins in the format -----------------------------------------------------------------------------------------------------------------


def test_an_origin_is_written_only_if_there_is_one(tmp_path: Path) -> None:
    with ExampleWriter(tmp_path) as writer:
        record = writer.add_image(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        writer.add(record, "cup", [square()], "train", "", origin="coco:7")
        writer.add(record, "cup", [square()], "train", "")
    first, second = (json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines())
    assert (first["origin"], "origin" in second) == ("coco:7", False)
    assert [example.origin for example in read_examples(tmp_path)] == ["coco:7", ""]


@pytest.mark.parametrize("origin", [7, "with space", "x" * 129, "é", None], ids=["number", "space", "long", "accent", "null"])
def test_a_malformed_origin_is_refused(origin: object, tmp_path: Path) -> None:
    one(tmp_path / "a", "train", "coco:1")
    path = tmp_path / "a" / "examples.jsonl"
    path.write_text(json.dumps({**json.loads(path.read_text()), "origin": origin}))
    with pytest.raises(DatasetError, match="line 1: origin"):
        read_examples(tmp_path / "a")


def test_an_example_of_before_has_no_origin() -> None:
    assert Example("a.png", "0" * 64, 8, 8, "cup", (), "train", "").origin == ""
