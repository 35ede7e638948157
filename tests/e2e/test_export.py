"""``sam4mllm export`` of a project in a real Label Studio, and what docs/exports.md says of Label Studio's own exports."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from backend.demo.launch import find_label_studio
from backend.demo.local_label_studio import LocalLabelStudio
from backend.errors import SettingsError
from sam4mllm.cli.main import make_app
from sam4mllm.data.pairs import to_mask
from sam4mllm.images import load_image
from sam4mllm.masks import mask_iou
from tests.test_export import CONFIG, HEIGHT, WIDTH, all_kinds, drawn, ink, read_coco, read_yolo, region, task
from tests.test_exports import annotation

CONVERT = """
import json, logging, os, sys
logging.disable(logging.CRITICAL)
from label_studio_sdk.converter import Converter
source, config, out = sys.argv[1:]
converter = Converter(config=open(config).read(), project_dir=None, download_resources=False)
for form in ("JSON", "JSON_MIN", "BRUSH_TO_NUMPY", "BRUSH_TO_PNG", "BRUSH_TO_COCO", "COCO", "YOLO"):
    os.makedirs(os.path.join(out, form))
    converter.convert(source, os.path.join(out, form), form, is_dir=False)
only_brush = '<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"><Label value="x"/></BrushLabels></View>'
print(json.dumps(Converter(config=only_brush, project_dir=None).supported_formats))
"""
Converted = tuple[Path, list[str]]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """All kinds of regions, and a picture that EXIF data turns, as Label Studio's converter writes them; and its formats for brushes."""
    try:
        python = find_label_studio().with_name("python")
    except SettingsError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("converted")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "turned.jpg", exif=exif)
    regions, _ = all_kinds()
    corners = {"points": [[0, 0], [100, 0], [100, 100], [0, 100]]}
    whole = region("w", "polygonlabels", corners, "Tree", (WIDTH, HEIGHT))
    tasks = [
        task(annotation(*regions, number=5), image=str(folder / "a.png")),
        task(annotation(whole, number=6), number=2, image=str(folder / "turned.jpg")),
        task(annotation(ink("c", drawn((1, 1, 9, 9))), number=7), number=3, image="/elsewhere/same.png"),
        task(annotation(whole, number=8), number=4, image="/data/one/b.png"),
        task(annotation(ink("d", drawn((1, 1, 9, 9))), number=9), number=5, image="/data/one/b.png"),
    ]
    for one in tasks:
        one["annotations"][0]["completed_by"] = {"id": 1, "email": "a@b.c"}
    (folder / "export.json").write_text(json.dumps(tasks))
    (folder / "config.xml").write_text(CONFIG)
    command = [str(python), "-c", CONVERT, *(str(folder / name) for name in ("export.json", "config.xml", "out"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "out", json.loads(done.stdout)


@pytest.mark.parametrize("form", ["BRUSH_TO_NUMPY", "BRUSH_TO_PNG"])
def test_numpy_and_png_hold_the_alpha_of_brushes_and_nothing_else(form: str, converted: Converted) -> None:
    _, masks = all_kinds()
    files = sorted((converted[0] / form).glob("task-1-*"))
    found = {file.stem.rpartition("-ink-")[2]: np.load(file) if file.suffix == ".npy" else np.asarray(Image.open(file)) for file in files}
    names = ["Cup-0", "Cup-1", "Cup-2", "Dog-0", "Dog-1", "Dog-2", "mug,beaker-0", "no_label-0"]
    kinds = ["hole", "pieces", "thin", "piece in a hole", "overlapping", "a pixel", "faint", "bare"]
    assert sorted(found) == sorted(names)
    for name, kind in zip(names, kinds, strict=True):
        assert (found[name] == masks[kind][0] * np.uint8(100 if kind == "faint" else 255)).all(), kind


def rows(path: Path, image: int) -> tuple[list[dict[str, Any]], dict[int, str]]:
    whole = json.loads(path.read_text())
    return [row for row in whole["annotations"] if row["image_id"] == image], {one["id"]: one["name"] for one in whole["categories"]}


def test_brushes_to_coco_lose_holes_pieces_labels_and_thin_shapes(converted: Converted) -> None:
    _, masks = all_kinds()
    found, names = rows(converted[0] / "BRUSH_TO_COCO" / "result_coco.json", 0)
    filled = [to_mask(row["segmentation"], HEIGHT, WIDTH) for row in found if row["segmentation"]]
    kinds = [names[row["category_id"]] for row in found]
    # three brushes of Cup (one is thin) and three of Dog (one is a pixel): a hole, two pieces, a piece in a hole, and a square
    assert kinds == ["Cup", "Cup", "Cup", "Dog", "Dog", "mug,beaker", "Tree", "Door", "Cup"]
    assert len(filled) == len(found) - 2  # rectangles have no outline; the last one is a prompt
    hole = masks["hole"][0]
    assert filled[0][20:40, 20:30].all()
    assert mask_iou(filled[0], hole) < 0.9
    assert filled[3][70, 10]
    assert not masks["piece in a hole"][0][70, 10]
    assert filled[4].sum() < masks["overlapping"][0].sum()  # the outline runs through the border's pixels


def test_coco_and_yolo_hold_polygons_and_rectangles_only(converted: Converted) -> None:
    found, names = rows(converted[0] / "COCO" / "result.json", 0)
    assert [names[row["category_id"]] for row in found] == ["Tree", "Door", "Cup"]
    assert [len(row["segmentation"]) for row in found] == [1, 0, 0]
    lines = (converted[0] / "YOLO" / "labels" / "a.txt").read_text().splitlines()
    classes = (converted[0] / "YOLO" / "classes.txt").read_text().splitlines()
    assert [(classes[int(line.split()[0])], len(line.split())) for line in lines] == [("Tree", 7), ("Door", 5), ("Cup", 5)]


def test_yolo_keeps_the_last_of_the_tasks_of_a_picture(converted: Converted) -> None:
    [labels] = (converted[0] / "YOLO" / "labels").glob("*b.txt")
    assert labels.read_text() == ""  # of a polygon and a brush


def test_coco_takes_the_size_of_a_turned_picture_from_the_file(converted: Converted) -> None:
    whole = json.loads((converted[0] / "COCO" / "result.json").read_text())
    image = next(one for one in whole["images"] if one["file_name"].endswith("turned.jpg"))
    [row] = [one for one in whole["annotations"] if one["image_id"] == image["id"]]
    assert (image["width"], image["height"]) == (WIDTH, HEIGHT)  # Label Studio shows it upright, HEIGHT wide
    assert row["bbox"][2:] == [WIDTH, HEIGHT]


def test_json_keeps_masks_and_json_min_loses_their_numbers(converted: Converted) -> None:
    regions, _ = all_kinds()
    [whole, *_] = json.loads((converted[0] / "JSON" / "result.json").read_text())
    assert whole["annotations"][0]["result"] == regions
    [record, *_] = json.loads((converted[0] / "JSON_MIN" / "result.json").read_text())
    assert [one["rle"] for one in record["ink"]] == [one["value"]["rle"] for one in regions if one["type"] == "brushlabels"]
    assert not any("id" in one for one in record["ink"])


def test_a_project_of_brushes_is_offered_neither_coco_nor_yolo(converted: Converted) -> None:
    assert {"BRUSH_TO_NUMPY", "BRUSH_TO_PNG", "BRUSH_TO_COCO"} <= {*converted[1]}
    assert not {"COCO", "YOLO"} & {*converted[1]}


@pytest.mark.parametrize("form", ["coco", "yolo-seg"])
def test_a_project_is_exported_whole(form: str, label_studio: LocalLabelStudio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    regions, masks = all_kinds()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "flat.png")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    size = (WIDTH, HEIGHT)
    upright = drawn((5, 7, 90, 140), holes=((10, 20, 20, 50),), size=size)
    project = label_studio.create_project("export", CONFIG)
    flat, turned = label_studio.upload(project, [tmp_path / "flat.png", tmp_path / "turned.jpg"])
    tasks = [
        {"data": {"image": flat}, "annotations": [{"result": regions}]},
        {"data": {"image": turned}, "annotations": [{"result": [ink("up", upright)]}]},
    ]
    label_studio.api("POST", f"/api/projects/{project}/import", json=tasks)
    monkeypatch.setenv("LABEL_STUDIO_URL", label_studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.token)
    out = tmp_path / "out"
    result = CliRunner().invoke(make_app(), ["export", str(project), str(out), "--format", form, "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["pictures"], summary["objects"], summary["lost"]) == (2, len(masks) + 1, [])
    [written] = (out / "images").glob("*turned*")
    assert (np.asarray(Image.open(written)) == load_image(tmp_path / "turned.jpg")).all()
    if form == "coco":
        _, found = read_coco(out)
        assert all((found[number][0] == mask).all() for number, (mask, _) in masks.items())
        assert (found["up"][0] == upright).all()
    else:
        [(_, mask)] = read_yolo(out, written.stem, size)
        assert (mask == upright).all()
