"""Readers of public data sets, each on its own layout in small: counts, masks, splits, and what is said of what lacks."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sam4mllm.cli.main import make_app
from sam4mllm.data.ade20k import _is_large
from sam4mllm.data.coco import as_phrase, is_fit
from sam4mllm.data.examples import Example
from sam4mllm.data.pairs import Prepared, Reading, write_pairs
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.data.readers import PICTURES, READERS, SENTENCES, Reader, compare
from sam4mllm.data.reasonseg import paint
from sam4mllm.errors import DatasetError
from sam4mllm.evaluation.run import measure
from sam4mllm.run_lengths import to_rle
from tests.public_sets import (
    FAR,
    HEIGHT,
    NAMES,
    SQUARE,
    TRAIN2014,
    WIDTH,
    ade20k,
    ade_thing,
    annotation,
    coco_file,
    picture,
    reasonseg,
    refcoco_m,
    refer_root,
    reference,
    square,
)

SQUARE_POINTS = [[10, 10], [30, 10], [30, 30], [10, 30]]


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


@pytest.mark.parametrize(("wide", "high", "kept"), SIZES)
def test_ade20k_keeps_a_class_by_the_same_area(wide: int, high: int, kept: bool) -> None:
    assert _is_large([5.0, 1.0, 5.0 + wide, 1.0, 5.0, 1.0 + high], 640, 480) is kept


@pytest.mark.parametrize(
    ("name", "file"), [("paco-lvis", "annotations/paco_lvis_v1_train.json"), ("partimagenet", "annotations/train.json")]
)
def test_parts_are_kept_by_the_same_area(name: str, file: str, tmp_path: Path) -> None:
    """A handle as high as 95 of 4,800 px, 1.98 %, and one of 100; a strip thinner than 2 % of a side, but large enough."""
    picture(tmp_path / "train2017" / "a.jpg")
    picture(tmp_path / "images" / "train" / "train2017" / "a.jpg")
    boxes = [[0, 0, 5, 19], [0, 0, 10, 10], [0, 0, 79.9, 1.21]]
    annotations = [annotation(number, [SQUARE], category=number, bbox=box) for number, box in enumerate(boxes, 1)]
    coco_file(tmp_path / file, annotations, ["mug:handle", "mug:rim", "mug:foot"], ["train2017/a.jpg"])
    phrases = [phrase for phrase, *_ in lines(prepare(name, tmp_path, tmp_path / "out")[0])]
    assert phrases == ["rim of mug", "foot of mug"]


def test_coco_of_one_year_alone_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "val2017" / "a.jpg")
    for year, name in ((2017, "a.jpg"), (2014, "b.jpg")):
        coco_file(tmp_path / "annotations" / f"instances_val{year}.json", [annotation(1, [SQUARE])], ["cup"], [name])
    coco_file(tmp_path / "annotations" / "instances_train2014.json", [annotation(1, [SQUARE])], ["cup"], ["b.jpg"])
    assert lines(prepare("coco", tmp_path, tmp_path / "out")[0]) == [("cup", 1, "val")]


def test_paco_gives_parts_only_of_run_lengths(tmp_path: Path) -> None:
    picture(tmp_path / "train2017" / "000000000001.jpg")
    counts: Any = np.flatnonzero(np.diff(square().T.ravel().astype(int), prepend=0, append=1)) if square().any() else []
    rle = {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *counts]).tolist()}
    annotations = [annotation(1, rle), annotation(2, rle, category=2, obj_ann_id=1)]
    names = ["mug", "mug:handle"]
    coco_file(tmp_path / "annotations" / "paco_lvis_v1_train.json", annotations, names, ["train2017/000000000001.jpg"])
    examples, _ = prepare("paco-lvis", tmp_path, tmp_path / "out")
    assert lines(examples) == [("handle of mug", 1, "train")]
    assert examples[0].origin == "coco:1"
    assert (examples[0].union() == square()).all()


@pytest.mark.parametrize("form", ["annotations/train/train.json", "annotations/train.json", "train.json"])
def test_partimagenet_is_read(form: str, tmp_path: Path) -> None:
    picture(tmp_path / "images" / "train" / "n02101006_4345.JPEG")
    coco_file(tmp_path / form, [annotation(1, [SQUARE])], ["Quadruped Head"], ["n02101006_4345.JPEG"])
    [example] = prepare("partimagenet", tmp_path, tmp_path / "out")[0]
    assert (example.phrase, example.origin) == ("Quadruped Head", "imagenet:n02101006_4345")


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("trash_can", "trash can"),
        ("mug:handle", "handle of mug"),
        ("car_(automobile):runningboard", "runningboard of car"),
        ("glass_(drink_container):inner_body", "inner body of glass"),
    ],
)
def test_a_category_in_words(name: str, phrase: str) -> None:
    assert as_phrase(name) == phrase


# -- the others ----------------------------------------------------------------------------------------------------------------------------


def test_reasonseg_is_trained_on_all_questions_and_tested_on_the_first(tmp_path: Path) -> None:
    shapes = [("target", SQUARE_POINTS), ("flag", [[0, 0], [70, 0], [70, 50]])]
    for split in ("train", "val", "test"):
        reasonseg(tmp_path / "set", split, shapes, ["what’s hot?", "the one to drink from"], "cp1252")
    reading = READERS["reasonseg"].read(tmp_path / "set")
    write_pairs(reading, tmp_path / "out")
    assert lines(read_examples(tmp_path / "out")) == [
        *(("what’s hot?", 1, "train"), ("the one to drink from", 1, "train")),
        *(("what’s hot?", 1, "val"), ("what’s hot?", 1, "test")),
    ]
    assert reading.pictures == {"train": 1, "val": 1, "test": 1}


def test_reasonseg_without_a_picture_is_refused(tmp_path: Path) -> None:
    (reasonseg(tmp_path, "val", [("target", SQUARE_POINTS)], ["what is hot?"]) / "val" / "a.jpg").unlink()
    with pytest.raises(DatasetError, match=r"val/a\.jpg is missing; a\.json is of that picture"):
        READERS["reasonseg"].read(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {"text": "one", "shapes": []},
        {"text": ["one"], "shapes": [{"label": 7, "points": []}]},
        {"text": ["a"], "shapes": [{"label": "", "points": [[1]]}]},
    ],
)
def test_reasonseg_is_checked(fields: object, tmp_path: Path) -> None:
    (reasonseg(tmp_path, "val", [], []) / "val" / "a.json").write_text(json.dumps(fields))
    with pytest.raises(DatasetError, match=r"a\.json has not text and shapes as it should"):
        READERS["reasonseg"].read(tmp_path)


def test_reasonseg_without_a_target_means_nothing(tmp_path: Path) -> None:
    reasonseg(tmp_path / "set", "val", [("ignore", SQUARE_POINTS)], ["what flies?"])
    assert lines(prepare("reasonseg", tmp_path / "set", tmp_path / "out")[0]) == [("what flies?", 0, "val")]


def test_reasonseg_is_painted_the_largest_first_with_its_border() -> None:
    large, small = [[10, 10], [50, 10], [50, 50], [10, 50]], [[20, 20], [30, 20], [30, 30], [20, 30]]
    shapes = [("target", small), ("ignore", large), ("Target", [[22, 22], [24, 22], [24, 24], [22, 24]]), ("ignore", [[26, 26]])]
    mask = paint([{"label": label, "points": points} for label, points in shapes], HEIGHT, WIDTH)
    truth = np.zeros((HEIGHT, WIDTH), np.bool_)
    truth[20:31, 20:31] = True
    truth[26, 26] = False
    assert (mask == truth).all()


def test_reasonseg_as_its_authors_paint_it() -> None:
    """The published definition, step by step: one canvas, values 1 and 255, largest area first."""
    random = np.random.default_rng(5)
    for _ in range(20):
        shapes = [
            {"label": str(random.choice(["target", "ignore"])), "points": (random.random((5, 2)) * [WIDTH, HEIGHT]).tolist()}
            for _ in range(4)
        ]
        canvases = []
        for shape in shapes:
            alone = np.zeros((HEIGHT, WIDTH), np.uint8)
            corners = np.array([shape["points"]], dtype=np.int32)
            cv2.fillPoly(cv2.polylines(alone, corners, True, 1, 1), corners, 1)
            canvases.append(int(alone.sum()))
        canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
        for index in np.argsort(canvases)[::-1]:
            value = 255 if shapes[index]["label"] == "ignore" else 1
            corners = np.array([shapes[index]["points"]], dtype=np.int32)
            cv2.fillPoly(cv2.polylines(canvas, corners, True, value, 1), corners, value)
        assert (paint(shapes, HEIGHT, WIDTH) == (canvas == 1)).all()
        assert (paint(shapes, HEIGHT, WIDTH, ignored=True) == (canvas == 255)).all()


def test_of_shapes_of_one_area_the_first_in_the_file_is_painted_last() -> None:
    """As by an argsort of the areas, turned round (LISA)."""
    target, ignored = ({"label": label, "points": SQUARE_POINTS} for label in ("target", "ignore"))
    assert paint([target, ignored], HEIGHT, WIDTH).any()
    assert not paint([target, ignored], HEIGHT, WIDTH, ignored=True).any()
    assert not paint([ignored, target], HEIGHT, WIDTH).any()
    assert paint([ignored, target], HEIGHT, WIDTH, ignored=True).any()


@pytest.mark.parametrize("split", ["val", "test", "train"])
def test_a_target_wholly_under_ignore_is_tested_on_and_not_learned_from(split: str, tmp_path: Path) -> None:
    """LISA's IoU of it is 1 if nothing is predicted elsewhere, else 0. It is no phrase without a target, so nothing is learned of it."""
    reasonseg(tmp_path / "set", split, [("ignore", SQUARE_POINTS), ("target", SQUARE_POINTS)], ["what is hot?"])
    examples, prepared = prepare("reasonseg", tmp_path / "set", tmp_path / "out")
    if split == "train":
        assert examples == []
        assert sum(prepared.left_out.values()) == 1
        return
    [example] = examples
    predicted = np.zeros((HEIGHT, WIDTH), np.bool_)
    predicted[15:20, 15:20] = True
    assert measure(predicted, example).iou == 1
    predicted[40:50, 40:50] = True
    assert measure(predicted, example).iou == 0


def test_what_reasonseg_does_not_count_counts_neither_way(tmp_path: Path) -> None:
    small = [[22.0, 22.0], [24.0, 22.0], [24.0, 24.0], [22.0, 24.0]]
    reasonseg(tmp_path / "set", "val", [("target", SQUARE_POINTS), ("ignore", small)], ["what is hot?"])
    (example,), _ = prepare("reasonseg", tmp_path / "set", tmp_path / "out")
    truth = np.zeros((HEIGHT, WIDTH), np.bool_)
    truth[22:25, 22:25] = True
    ignored = example.ignored()
    assert ignored is not None
    assert (ignored == truth).all()
    assert not (example.union() & truth).any()


def test_ade20k_shows_what_is_not_hidden_and_leaves_stuff_parts_crowds_and_specks_out(tmp_path: Path) -> None:
    wide = [10.0, 30.0, 30.0, 10.0]
    things = [
        ade_thing("cup", 600, wide),
        ade_thing("sky", 2, wide),
        ade_thing("handle", 3, wide, 1),
        ade_thing("pin", 4, [10, 11, 11, 10]),
    ]
    things += [ade_thing("book", 5, wide)] * 6
    shown = np.full((HEIGHT, WIDTH), 600)
    shown[:, 20:] = 2  # something stands before the cup's right half
    examples, _ = prepare("ade20k", ade20k(tmp_path / "set", things, shown, "validation"), tmp_path / "out")
    assert lines(examples) == [("cup", 1, "val")]
    assert examples[0].boxes_px.tolist() == [[10, 10, 20, 30]]
    assert examples[0].origin == "ade20k:ADE_train_00000001"


def test_ade20k_without_its_classes_is_refused(tmp_path: Path) -> None:
    ade20k(tmp_path, [], np.zeros((HEIGHT, WIDTH), int))
    next(tmp_path.rglob("*_seg.png")).unlink()
    with pytest.raises(DatasetError, match=r"ADE_train_00000001_seg\.png is missing"):
        READERS["ade20k"].read(tmp_path)


def test_refcoco_m_is_read_from_parquet(tmp_path: Path) -> None:
    examples, prepared = prepare("refcoco-m", refcoco_m(tmp_path / "set"), tmp_path / "out")
    assert lines(examples) == [("right cup", 1, "val"), ("cup", 1, "val")]
    assert (examples[0].union() == square()).all()
    assert (examples[0].origin, prepared.images) == ("coco:2", 1)


def test_refcoco_m_without_a_number_is_known_by_its_name(tmp_path: Path) -> None:
    from pyarrow import parquet  # noqa: PLC0415 – an extra

    path = next((refcoco_m(tmp_path / "set") / "data").iterdir())
    parquet.write_table(parquet.read_table(path).drop(["image_id"]), path)
    assert {one.origin for one in prepare("refcoco-m", tmp_path / "set", tmp_path / "out")[0]} == {"coco:2"}


def test_refcoco_m_says_which_extra_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match=r"need pyarrow: pip install 'sam4mllm\[parquet\]'"):
        READERS["refcoco-m"].read(tmp_path)


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = next((refcoco_m(tmp_path) / "data").iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=rf"{path.name} is damaged or no Parquet file; fetch it again"):
        READERS["refcoco-m"].read(tmp_path)


# -- counts and the command ----------------------------------------------------------------------------------------------------------------


def test_counts_are_compared_with_the_published_ones() -> None:
    reader = Reader(lambda _: Reading([]), {"train": 3, "val": 2}, {"train": 9})
    prepared = Prepared()
    prepared.read["train"] = 3
    assert compare(reader, Reading([], pictures={"train": 9}), prepared) == ["val: 0 sentences found, 2 are published"]
    assert compare(reader, Reading([]), prepared)[1:] == ["train: 0 pictures found, 9 are published"]


def test_published_counts_are_of_sets_that_are_read() -> None:
    assert {*SENTENCES, *PICTURES} == {*READERS}
    assert sum(SENTENCES["grefcoco"].values()) == 259_859
    assert sum(sum(SENTENCES[name].values()) for name in ("refcoco", "refcoco+", "refcocog")) == 142_210 + 141_564 + 95_010


def test_the_command_warns_of_other_counts_and_prints_json(refer: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(make_app(), ["data", "prepare", "refcoco", str(refer), str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["written"], summary["images"], summary["merged"]) == ({"train": 2, "val": 1}, 2, 0)
    assert "warning: refcoco train: 2 sentences found, 120,624 are published" in result.stderr
    again = CliRunner().invoke(make_app(), ["data", "prepare", "refcoco", str(refer), str(tmp_path / "out")])
    assert "already holds something" in str(again.exception)


def test_the_command_prints_what_was_left_out(refer: Path, tmp_path: Path) -> None:
    Image.new("RGB", (HEIGHT, WIDTH)).save(refer / TRAIN2014 / NAMES[0])
    result = CliRunner().invoke(make_app(), ["data", "prepare", "refcoco", str(refer), str(tmp_path / "out")])
    assert "1 val; 1 pictures, 0 repetitions merged" in result.stdout
    assert "2 left out: its picture is not of the size that was outlined (first: refcoco:1:10)" in result.stdout
