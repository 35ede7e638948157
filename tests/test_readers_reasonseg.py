"""Readers of ReasonSeg, ADE20K, PartImageNet and RefCOCO-M, and the command that prepares a data set."""

from __future__ import annotations

import json
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
from sam4mllm.data.coco import as_phrase
from sam4mllm.data.pairs import Prepared, Reading, write_pairs
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.data.readers import PICTURES, READERS, SENTENCES, Reader, compare
from sam4mllm.data.reasonseg import paint
from sam4mllm.errors import DatasetError
from sam4mllm.evaluation.run import measure
from tests.public_sets import (
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
    square,
)
from tests.test_readers import SIZES, lines, prepare

SQUARE_POINTS = [[10, 10], [30, 10], [30, 30], [10, 30]]


@pytest.fixture
def refer(tmp_path: Path) -> Path:
    return refer_root(tmp_path / "refer")


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


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": {}},
        {"parts": 5},
        {"parts": {"part_level": "x"}},
        {"name_ndx": None},
        {"polygon": {"x": [1]}},
        {"polygon": {"x": ["a"], "y": [1]}},
    ],
    ids=str,
)  # fmt: skip
def test_an_object_of_ade20k_with_a_wrong_field_is_one_line(changes: dict[str, Any], tmp_path: Path) -> None:
    thing = {**ade_thing("cup", 600, [10.0, 30.0, 30.0, 10.0]), **changes}
    ade20k(tmp_path, [thing], np.zeros((HEIGHT, WIDTH), int))
    with pytest.raises(DatasetError, match=r"ADE_train_00000001\.json is no annotation of ADE20K"):
        list(READERS["ade20k"].read(tmp_path).pairs)


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
