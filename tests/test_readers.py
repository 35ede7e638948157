"""Readers of public data sets, each on its own layout in small: counts, masks, splits, and what is said of what lacks."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sam4mllm.cli.main import make_app
from sam4mllm.data.coco import is_fit
from sam4mllm.data.examples import Example
from sam4mllm.data.pairs import Prepared, write_pairs
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.data.readers import READERS
from sam4mllm.errors import DatasetError
from sam4mllm.run_lengths import to_rle
from tests.public_sets import (
    FAR,
    HEIGHT,
    NAMES,
    SQUARE,
    TRAIN2014,
    WIDTH,
    annotation,
    coco_file,
    picture,
    refer_root,
    reference,
    square,
)


@pytest.fixture
def refer(tmp_path: Path) -> Path:
    return refer_root(tmp_path / "refer")


def prepare(name: str, root: Path, out: Path) -> tuple[list[Example], Prepared]:
    prepared = write_pairs(READERS[name].read(root), out)
    return read_examples(out), prepared


def lines(examples: list[Example]) -> list[tuple[str, int, str]]:
    return [(one.phrase, len(one.instances), one.split) for one in examples]


# -- REFER ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["refcoco", "refcoco+"])
def test_refcoco_gives_each_sentence_with_its_mask_and_split(name: str, refer: Path, tmp_path: Path) -> None:
    examples, prepared = prepare(name, refer, tmp_path / "out")
    assert lines(examples) == [("the left cup", 1, "train"), ("cup left", 1, "train"), ("right cup", 1, "val")]
    assert [(one.source, one.origin) for one in examples] == [
        (f"{name}:1:10", "coco:1"),
        (f"{name}:1:11", "coco:1"),
        (f"{name}:2:20", "coco:2"),
    ]
    assert (examples[0].union() == square()).all()
    assert examples[0].boxes_px.tolist() == [[10, 10, 30, 30]]
    assert examples[2].boxes_px.tolist() == [[50, 10, 60, 20]]
    assert (prepared.read, prepared.images) == ({"train": 2, "val": 1}, 2)


def test_refcocog_of_python_2_is_read(refer: Path, tmp_path: Path) -> None:
    assert lines(prepare("refcocog", refer, tmp_path / "out")[0]) == [("a cup", 1, "train")]


def test_grefcoco_has_several_objects_and_none(refer: Path, tmp_path: Path) -> None:
    examples, _ = prepare("grefcoco", refer, tmp_path / "out")
    assert lines(examples) == [("both cups", 2, "train"), ("the dog", 0, "testA")]
    assert examples[0].union().sum() == 400 + 100


def test_pictures_are_not_copied_where_they_can_be_linked(refer: Path, tmp_path: Path) -> None:
    examples, _ = prepare("refcoco", refer, tmp_path / "out")
    assert (tmp_path / "out" / examples[0].image).samefile(refer / TRAIN2014 / NAMES[0])
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2


@pytest.mark.parametrize(
    ("folder", "prefix"), [("images/train2014", "COCO_train2014_"), ("images/train2017", "")], ids=["shorter folder", "pictures of 2017"]
)
def test_pictures_may_lie_elsewhere(folder: str, prefix: str, refer: Path, tmp_path: Path) -> None:
    (refer / folder).mkdir()
    for name in NAMES:
        (refer / TRAIN2014 / name).rename(refer / folder / name.replace("COCO_train2014_", prefix))
    (refer / TRAIN2014).rmdir()
    assert len(prepare("refcoco", refer, tmp_path / "out")[0]) == 3


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_a_malicious_refer_file_is_refused_and_not_run(refer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (refer / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([reference(1, 1, ["x"]), Malice()]))
    result = CliRunner().invoke(make_app(), ["data", "prepare", "refcoco", str(refer), "out"])
    assert isinstance(result.exception, DatasetError)
    assert re.search(r"refs\(unc\)\.p holds the instruction \w+, .* was not run$", str(result.exception))
    assert not Path("pwned").exists()
    assert not Path("out").exists()


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"ann_id": "1"}, id="a text for a number"),
        pytest.param({"ann_id": None}, id="no annotation"),
        pytest.param({"image_id": nested(60)}, id="lists that take for ever to print"),
        pytest.param({"sentences": [{"sent_id": 1, "sent": nested(60)}]}, id="the same for a sentence"),
        pytest.param({"sentences": {}}, id="no list of sentences"),
        pytest.param({"split": 1}, id="no split"),
    ],
)
def test_a_reference_is_checked_to_the_last_text(change: dict[str, Any], refer: Path) -> None:
    (refer / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([reference(1, 1, ["x"]), {**reference(2, 1, ["y"]), **change}]))
    with pytest.raises(DatasetError, match=r"refs\(unc\)\.p: reference 1 has not .*; fetch it again"):
        READERS["refcoco"].read(refer)


# -- what lacks ----------------------------------------------------------------------------------------------------------------------------


def lacking_pictures(root: Path) -> None:
    for name in NAMES:
        (root / TRAIN2014 / name).unlink()


def without(*parts: str) -> Any:
    return lambda root: root.joinpath(*parts).unlink()


def changed(path: str, **tables: Any) -> Any:
    return lambda root: (root / path).write_text(json.dumps({**json.loads((root / path).read_text()), **tables}))


LACKING: dict[str, tuple[Any, str]] = {
    "all pictures": (
        lacking_pictures,
        rf"2 of 2 pictures are missing, the first is {NAMES[0]}; put it into .*images/mscoco/images/train2014$",
    ),
    "a picture": (without(*TRAIN2014.parts, NAMES[1]), rf"a picture is missing: {NAMES[1]}; put it into .*train2014$"),
    "references": (
        without("refcoco", "refs(unc).p"),
        r"refcoco/refs\(unc\)\.p cannot be read .*; refcoco has it in refcoco/ of its folder",
    ),
    "instances": (without("refcoco", "instances.json"), r"refcoco/instances\.json cannot be read"),
    "an annotation": (changed("refcoco/instances.json", annotations=[annotation(1, [SQUARE])]), "has no annotation 2 with an outline"),
    "an image": (changed("refcoco/instances.json", images=[]), "has no image [12]"),
    "tables": (changed("refcoco/instances.json", images={}, annotations=7), "is no COCO file"),
}


@pytest.mark.parametrize(("break_it", "said"), LACKING.values(), ids=LACKING.keys())
def test_what_lacks_is_said_in_a_line_and_nothing_is_written(break_it: Any, said: str, refer: Path, tmp_path: Path) -> None:
    break_it(refer)
    result = CliRunner().invoke(make_app(), ["data", "prepare", "refcoco", str(refer), str(tmp_path / "out")])
    assert isinstance(result.exception, DatasetError)
    assert re.search(said, str(result.exception))
    assert "\n" not in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["refer"]


@pytest.mark.parametrize("name", READERS)
def test_a_folder_of_something_else_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(DatasetError, match=r"name the folder|has it in|cannot be read"):
        READERS[name].read(tmp_path)


@pytest.mark.parametrize("name", ["../secret.jpg", "/secret.jpg", "a/../../secret.jpg", ""], ids=["up", "root", "up later", "none"])
def test_a_picture_name_does_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "secret.jpg")
    coco_file(tmp_path / "coco" / "annotations" / "instances_val2017.json", [annotation(1, [SQUARE])], ["cup"], [name])
    with pytest.raises(DatasetError, match="a picture is missing"):
        READERS["coco"].read(tmp_path / "coco")


# -- COCO's layout -------------------------------------------------------------------------------------------------------------------------


def test_coco_gives_each_category_with_all_its_objects(tmp_path: Path) -> None:
    picture(tmp_path / "val2017" / "000000000001.jpg")
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    annotations = [annotation(1, [SQUARE]), annotation(2, [FAR]), annotation(3, [FAR], category=2), annotation(4, crowd, iscrowd=1)]
    annotations += [annotation(10 + number, [FAR], category=3) for number in range(6)]
    small = annotation(20, [FAR], category=4, bbox=[50, 10, 1, 10])
    path = tmp_path / "annotations" / "instances_val2017.json"
    coco_file(path, [*annotations, small], ["cup", "trash_can", "book", "pin"], ["000000000001.jpg"])
    examples, _ = prepare("coco", tmp_path, tmp_path / "out")
    assert lines(examples) == [("cup", 2, "val"), ("trash can", 1, "val")]
    assert examples[0].origin == "coco:1"
    assert (examples[0].masks()[0] == square()).all()


TOLERATED: dict[str, dict[str, Any]] = {
    "no box": {"bbox": None},
    "an empty box": {"bbox": []},
    "a box of NaN": {"bbox": [float("nan")] * 4},
    "a box of text": {"bbox": ["10", "10", "20", "20"]},
    "ids as text": {"image_id": "1", "category_id": "1"},
    "no word on crowds": {"iscrowd": None},
    "no box of run lengths": {"bbox": None, "segmentation": to_rle(square())},
}


@pytest.mark.parametrize("change", TOLERATED.values(), ids=TOLERATED.keys())
def test_coco_rows_of_other_tools_are_read(change: dict[str, Any], tmp_path: Path) -> None:
    picture(tmp_path / "val2017" / "a.jpg")
    coco_file(tmp_path / "annotations" / "instances_val2017.json", [annotation(1, [SQUARE]) | change], ["cup"], ["a.jpg"])
    examples, prepared = prepare("coco", tmp_path, tmp_path / "out")
    assert (lines(examples), prepared.left_out) == ([("cup", 1, "val")], {})
    assert (examples[0].union() == square()).all()


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "no outline": ({"segmentation": None}, "one of its objects has no outline"),
    "no outline, nor box": ({"segmentation": None, "bbox": None}, "one of its objects has no outline"),
    "a category that is not there": ({"category_id": 7}, "its category is not in the file"),
    "no category": ({"category_id": None}, "its category is not in the file"),
    "NaN for a category": ({"category_id": float("nan")}, "its category is not in the file"),
    "an image that is not there": ({"image_id": 7}, "its image is not in the file"),
    "no image": ({"image_id": None}, "its image is not in the file"),
    "a point of NaN": ({"segmentation": [[float("nan")] * 6], "bbox": None}, "a polygon's coordinates are finite"),
    "text for a polygon": ({"segmentation": ["abc"], "bbox": None}, "a polygon is a list"),
    "run lengths of nothing": ({"segmentation": {}, "bbox": None}, "an encoded mask is an object with size and counts"),
}


@pytest.mark.parametrize(("change", "reason"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
@pytest.mark.parametrize("name", ["coco", "partimagenet"])
def test_coco_rows_that_say_too_little_are_left_out_alone(name: str, change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    for file in ("a.jpg", "b.jpg"):
        picture(tmp_path / "val2017" / file)
        picture(tmp_path / "images" / file)
    rows = [annotation(1, [SQUARE]) | change, annotation(2, [SQUARE], image=2)]
    for path in ("annotations/instances_val2017.json", "val.json"):
        coco_file(tmp_path / path, rows, ["cup"], ["a.jpg", "b.jpg"])
    examples, prepared = prepare(name, tmp_path, tmp_path / "out")
    assert lines(examples) == [("cup", 1, "val")]
    [said] = prepared.left_out
    assert said.startswith(reason)


@pytest.mark.parametrize("rows", [[7], [{"id": None}], [{"id": float("inf")}], [{"id": "x"}]], ids=["no row", "null", "infinite", "text"])
def test_coco_rows_without_a_number_are_one_line(rows: list[Any], tmp_path: Path) -> None:
    coco_file(tmp_path / "annotations" / "instances_val2017.json", rows, ["cup"], ["a.jpg"])
    with pytest.raises(DatasetError, match="is no COCO file"):
        READERS["coco"].read(tmp_path)


SIZES = [
    pytest.param(78, 78, False, id="1.98 % of the area"),
    pytest.param(79, 79, True, id="2.03 % of the area"),
    pytest.param(640, 9, False, id="as wide as the picture, 1.9 % of its area"),
    pytest.param(640, 10, True, id="as wide as the picture, 2.1 % of its area"),
    pytest.param(8, 480, False, id="as high as the picture, 1.3 % of its area"),
    pytest.param(13, 479, True, id="as high as the picture, 2.03 % of its area"),
]
"""Boxes in a picture of 640 x 480, and whether the released preparation keeps their class."""


@pytest.mark.parametrize(("wide", "high", "kept"), SIZES)
def test_a_class_is_kept_by_the_area_of_its_boxes(wide: int, high: int, kept: bool) -> None:
    image = {"id": 1, "width": 640, "height": 480}
    large = {"bbox": [0, 0, 300, 300]}
    assert is_fit([{"bbox": [0, 0, wide, high]}], image) is kept
    assert is_fit([large, {"bbox": [3, 3, wide, high]}], image) is kept
