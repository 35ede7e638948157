"""``sam4mllm export``: every mask in every format as others read it, what is lost is told, and what is no truth is left out."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from backend import brush
from sam4mllm.cli.main import make_app
from sam4mllm.images import load_image
from sam4mllm.masks import mask_iou
from sam4mllm.one_polygon import LEAST_IOU, fill
from sam4mllm.polygons import from_polygons
from tests.public_sets import picture
from tests.test_exports import annotation, as_min, bitmask

Mask = NDArray[np.bool_]
HEIGHT, WIDTH = 120, 160
CONFIG = (
    '<View><Image name="photo" value="$image"/><BrushLabels name="ink" toName="photo"><Label value="Cup" alias="mug, beaker"/>'
    '<Label value="Dog"/></BrushLabels><BitmaskLabels name="bits" toName="photo"><Label value="Dog"/></BitmaskLabels>'
    '<PolygonLabels name="poly" toName="photo"><Label value="Tree"/></PolygonLabels><EllipseLabels name="oval" toName="photo">'
    '<Label value="Plate"/></EllipseLabels><RectangleLabels name="frame" toName="photo"><Label value="Door"/></RectangleLabels>'
    '<RectangleLabels name="ask" toName="photo" smart="true"><Label value="Cup"/></RectangleLabels></View>'
)
CATEGORIES = ["Cup", "Dog", "Tree", "Door", "Plate", "unlabelled"]


def drawn(
    *boxes: tuple[int, int, int, int], holes: tuple[tuple[int, int, int, int], ...] = (), size: tuple[int, int] = (HEIGHT, WIDTH)
) -> Mask:
    mask = np.zeros(size, np.bool_)
    for inside, some in ((True, boxes), (False, holes)):
        for x1, y1, x2, y2 in some:
            mask[y1:y2, x1:x2] = inside
    return mask


def region(number: str, kind: str, value: dict[str, Any], label: str | None, size: tuple[int, int] = (HEIGHT, WIDTH), **more: Any) -> Any:
    control = {"brushlabels": "ink", "bitmasklabels": "bits", "polygonlabels": "poly", "ellipselabels": "oval", "rectanglelabels": "frame"}[
        kind
    ]
    named = {**value, **({} if label is None else {kind: [label]})}
    sizes = {"original_height": size[0], "original_width": size[1], "image_rotation": 0}
    return {"id": number, "type": kind, "from_name": control, "to_name": "photo", "origin": "manual", **sizes, "value": named, **more}


def ink(number: str, mask: Mask, label: str | None = "Cup", alpha: int = 255, **more: Any) -> Any:
    value = {"format": "rle", "rle": brush.encode(mask * np.uint8(alpha))}
    return region(number, "brushlabels", value, label, (mask.shape[0], mask.shape[1]), **more)


SHAPES: dict[str, tuple[Mask, str]] = {
    "hole": (drawn((10, 10, 60, 60), holes=((20, 20, 30, 40), (40, 30, 42, 32))), "Cup"),
    "pieces": (drawn((70, 10, 100, 40), (104, 12, 140, 60)), "Cup"),
    "piece in a hole": (drawn((5, 65, 50, 110)) & ~drawn((9, 69, 45, 105)) | drawn((11, 71, 43, 103)), "Dog"),
    "overlapping": (drawn((12, 12, 58, 58)), "Dog"),
    "a pixel": (drawn((150, 100, 151, 101)), "Dog"),
    "thin": (drawn((60, 115, 150, 116)), "Cup"),
}


def all_kinds() -> tuple[list[Any], dict[str, tuple[Mask, str]]]:
    """A region of each kind beside brushes, and what each shows, by its number."""
    masks = dict(SHAPES)
    regions = [ink(name, mask, label) for name, (mask, label) in SHAPES.items()]
    masks["faint"], masks["bare"] = (drawn((70, 70, 90, 90)), "Cup"), (drawn((95, 70, 115, 90)), "unlabelled")
    regions += [ink("faint", masks["faint"][0], "mug,beaker", 100), ink("bare", masks["bare"][0], None)]
    masks["bits"] = (drawn((120, 70, 140, 90), holes=((125, 75, 130, 80),)), "Dog")
    regions.append(region("bits", "bitmasklabels", {"imageDataURL": bitmask(masks["bits"][0])}, "Dog"))
    corners = [[10.0, 10.0], [40.0, 15.0], [20.0, 60.0]]
    masks["outline"] = (from_polygons([np.array(corners) * [WIDTH / 100, HEIGHT / 100]], HEIGHT, WIDTH), "Tree")
    regions.append(region("outline", "polygonlabels", {"points": corners, "closed": True}, "Tree"))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    masks["oval"] = (((columns - 80) / 16) ** 2 + ((rows - 60) / 12) ** 2 <= 1, "Plate")
    regions.append(region("oval", "ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 0}, "Plate"))
    masks["box"] = (drawn((16, 12, 48, 36)), "Door")
    regions.append(region("box", "rectanglelabels", {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0}, "Door"))
    prompt = region("asked", "rectanglelabels", {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0}, "Cup")
    return [*regions, {**prompt, "from_name": "ask"}], masks


def task(*annotations: Any, number: int = 1, image: object = "/data/upload/3/ab12-cup.png") -> dict[str, Any]:
    return {"id": number, "project": 3, "data": {"image": image}, "annotations": list(annotations), "predictions": []}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "export" / "images" / "ab12-cup.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT), (9, 0, 0)).save(path)
    (tmp_path / "export" / "label_config.xml").write_text(CONFIG)
    return tmp_path / "export"


def run(folder: Path, tasks: list[Any], form: str, *options: str, code: int = 0) -> dict[str, Any]:
    (folder / "export.json").write_text(json.dumps(tasks))
    result = CliRunner().invoke(make_app(), ["export", str(folder), str(folder.parent / "out"), "--format", form, "--json", *options])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def read_coco(out: Path) -> tuple[COCO, dict[str, tuple[Mask, str]]]:
    """As anybody reads it, with pycocotools: masks and categories by region."""
    coco = COCO(out / "annotations.json")
    names = {one["id"]: one["name"] for one in coco.loadCats(coco.getCatIds())}
    rows = coco.loadAnns(coco.getAnnIds())
    warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' own, of numpy
    return coco, {row["region"]: (coco.annToMask(row).astype(np.bool_), names[row["category_id"]]) for row in rows}


def read_yolo(out: Path, name: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> list[tuple[str, Mask]]:
    """As Ultralytics reads it: shares times the size, decimals cut off, filled by OpenCV."""
    classes = (out / "classes.txt").read_text().splitlines()
    found = []
    for line in (out / "labels" / f"{name}.txt").read_text().splitlines():
        number, *shares = line.split()
        assert len(shares) >= 6
        points = np.array(shares, np.float32).reshape(-1, 2)
        assert (points >= 0).all()
        assert (points <= 1).all()
        found.append((classes[int(number)], fill((points * np.array(size[::-1], np.float32)).astype(np.int32), *size)))
    return found


# -- what is drawn comes out ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minimal", [False, True], ids=["JSON", "JSON_MIN"])
def test_coco_has_every_region_pixel_by_pixel(minimal: bool, folder: Path) -> None:
    regions, masks = all_kinds()
    one = task(annotation(*regions, number=5))
    summary = run(folder, as_min(one) if minimal else [one], "coco")
    assert (summary["objects"], summary["pictures"], summary["lost"]) == (len(masks), 1, [])
    assert sorted(summary["categories"]) == sorted(CATEGORIES)
    assert summary["left_out"] == {"rectangles of a smart control, drawn to ask the model": 1}
    coco, found = read_coco(folder.parent / "out")
    if minimal:  # without the regions' numbers
        assert sorted((label, mask.tobytes()) for mask, label in found.values()) == sorted(
            (label, m.tobytes()) for m, label in masks.values()
        )
        return
    for number, (mask, label) in masks.items():
        assert found[number][1] == label
        assert (found[number][0] == mask).all(), number
    for row in coco.loadAnns(coco.getAnnIds()):
        mask = masks[row["region"]][0]
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert (row["area"], row["bbox"], row["iscrowd"], row["task"], row["annotation"]) == (mask.sum(), box, 0, 1, 5)
    [image] = coco.loadImgs(coco.getImgIds())
    assert (image["file_name"], image["width"], image["height"]) == ("ab12-cup.png", WIDTH, HEIGHT)
    assert (folder.parent / "out" / "images" / "ab12-cup.png").read_bytes() == (folder / "images" / "ab12-cup.png").read_bytes()


def test_yolo_has_a_polygon_for_every_region(folder: Path) -> None:
    regions, masks = all_kinds()
    summary = run(folder, [task(annotation(*regions))], "yolo-seg")
    found = read_yolo(folder.parent / "out", "ab12-cup")
    assert [label for label, _ in found] == [label for _, label in masks.values()]
    for (_, mask), (number, (truth, _)) in zip(found, masks.items(), strict=True):
        assert mask_iou(mask, truth) >= LEAST_IOU, number
        if number not in ("pieces", "piece in a hole"):
            assert (mask == truth).all(), number
    assert [*summary["notes"].values()] == [2]  # the pixel and the thin line have no area
    yaml = (folder.parent / "out" / "data.yaml").read_text().splitlines()
    assert yaml[1:4] == ["train: images", "val: images", "names:"]
    assert yaml[4:] == [f'  {number}: "{name}"' for number, name in enumerate(summary["categories"])]


def test_pieces_far_apart_are_a_line_each_and_counted(folder: Path) -> None:
    far = drawn((0, 0, 4, 4), (150, 110, 154, 114))
    summary = run(folder, [task(annotation(ink("far", far)))], "yolo-seg")
    found = read_yolo(folder.parent / "out", "ab12-cup")
    assert len(found) == 2
    assert (found[0][1] | found[1][1] == far).all()
    assert [*summary["notes"].values()] == [1]


def test_png_has_a_mask_for_every_region_and_a_map(folder: Path) -> None:
    regions, masks = all_kinds()
    summary = run(folder, [task(annotation(*regions))], "png")
    out = folder.parent / "out"
    with (out / "objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["region"]: row["category"] for row in rows} == {number: label for number, (_, label) in masks.items()}
    for row in rows:
        pixels = np.asarray(Image.open(out / row["mask"]))
        assert (pixels == masks[row["region"]][0] * np.uint8(255)).all()
    painted = np.asarray(Image.open(out / "labels" / "ab12-cup.png"))
    assert painted[0, 0] == 0
    assert painted[100, 150] == summary["categories"].index("Dog") + 1


@pytest.mark.parametrize("form", ["coco", "yolo-seg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_its_exif_data_turns_is_written_upright(orientation: int, form: str, folder: Path) -> None:
    pixels = np.random.default_rng(orientation).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / "images" / "turned.jpg"
    Image.fromarray(pixels).save(path, exif=exif)
    shown = load_image(path)
    size = shown.shape[:2]
    assert size == ((WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH))
    mask = drawn((5, 7, 40, 90), holes=((10, 20, 20, 50),), size=(size[0], size[1]))
    run(folder, [task(annotation(ink("r", mask)), image="/data/upload/3/turned.jpg")], form)
    out = folder.parent / "out"
    [written] = (out / "images").iterdir()
    assert (np.asarray(Image.open(written).convert("RGB")) == shown).all()
    assert written.name == ("turned.jpg" if orientation == 1 else "turned.png")
    if form == "coco":
        coco, found = read_coco(out)
        [image] = coco.loadImgs(coco.getImgIds())
        assert (image["file_name"], (image["height"], image["width"])) == (written.name, size)
        assert (found["r"][0] == mask).all()
    elif form == "yolo-seg":
        assert (read_yolo(out, "turned", (size[0], size[1]))[0][1] == mask).all()
    else:
        assert (np.asarray(Image.open(out / "masks" / "turned" / "0001.png")) == mask * np.uint8(255)).all()


@pytest.mark.parametrize("form", ["coco", "yolo-seg", "png"])
def test_a_picture_without_an_object_is_one_of_the_set(form: str, folder: Path) -> None:
    summary = run(folder, [task(annotation())], form)
    assert (summary["pictures"], summary["objects"], summary["lost"]) == (1, 0, [])
    out = folder.parent / "out"
    assert (out / "images" / "ab12-cup.png").is_file()
    if form == "yolo-seg":
        assert (out / "labels" / "ab12-cup.txt").read_text() == ""
    elif form == "coco":
        assert len(json.loads((out / "annotations.json").read_text())["images"]) == 1


def test_without_a_config_labels_and_pictures_are_found_in_the_regions(folder: Path) -> None:
    (folder / "label_config.xml").unlink()
    regions, masks = all_kinds()
    summary = run(folder, [task(annotation(*regions))], "coco")
    assert summary["objects"] == len(masks) + 1  # nothing says that one of the rectangles was a prompt
    _, found = read_coco(folder.parent / "out")
    assert all((found[number][0] == mask).all() for number, (mask, _) in masks.items())


# -- what counts ---------------------------------------------------------------------------------------------------------------------------


def test_of_several_annotations_one_counts_unless_all_are_asked_for(folder: Path) -> None:
    later = {"updated_at": "2026-11-02T10:00:00Z"}
    several = [
        annotation(ink("a", drawn((1, 1, 20, 20))), number=1),
        annotation(ink("b", drawn((1, 1, 21, 21))), number=2, **later),
        annotation(ink("c", drawn((1, 1, 22, 22))), number=3, was_cancelled=True),
    ]
    truth = [
        annotation(ink("d", drawn((1, 1, 23, 23))), number=4, ground_truth=True),
        annotation(ink("e", drawn((5, 5, 9, 9))), number=5, **later),
    ]
    tasks = [task(*several), task(*truth, number=2, image="images/ab12-cup.png"), task(number=3)]
    summary = run(folder, tasks, "coco")
    assert {*read_coco(folder.parent / "out")[1]} == {"b", "d"}
    assert summary["left_out"] == {
        "skipped annotations": 1,
        "annotations of tasks that have a ground truth or a newer one": 2,
        "tasks without an annotation": 1,
    }
    (folder.parent / "out").rename(folder.parent / "first")
    run(folder, tasks, "coco", "--all-annotations")
    assert {*read_coco(folder.parent / "out")[1]} == {"a", "b", "d", "e"}


def test_tasks_of_one_picture_are_one_picture_and_the_same_mask_is_there_once(folder: Path) -> None:
    cup, dog = drawn((1, 1, 20, 20)), drawn((30, 30, 60, 60))
    tasks = [task(annotation(ink("a", cup))), task(annotation(ink("b", cup), ink("c", dog, "Dog")), number=2)]
    for form in ("coco", "yolo-seg", "png"):
        summary = run(folder, tasks, form)
        assert (summary["pictures"], summary["objects"], summary["repeated"]) == (1, 2, 1)
        (folder.parent / "out").rename(folder.parent / form)
    assert len(read_yolo(folder.parent / "yolo-seg", "ab12-cup")) == 2


# -- what is lost --------------------------------------------------------------------------------------------------------------------------

LOST: dict[str, tuple[Any, str]] = {
    "an empty mask": (ink("x", drawn()), "a region covers no pixel of its image"),
    "cut short": (region("x", "brushlabels", {"rle": [0, 0, 1]}, "Cup"), "a mask's rle is cut short"),
    "two points": (region("x", "polygonlabels", {"points": [[1, 1], [5, 5]]}, "Tree"), "a polygon has 2 of the 3 points"),
    "of another size": (ink("x", drawn((1, 1, 5, 5), size=(50, 60))), "it was drawn on 60 x 50 pixels"),
    "turned": (ink("x", drawn((1, 1, 5, 5)), image_rotation=90), "a region was drawn on a turned image"),
    "on no page": (ink("x", drawn((1, 1, 5, 5)), item_index=3), "the task's data has no picture for a region"),
}


@pytest.mark.parametrize("form", ["coco", "yolo-seg", "png"])
@pytest.mark.parametrize(("bad", "reason"), LOST.values(), ids=LOST.keys())
def test_what_cannot_be_written_is_named_and_all_else_is_there(bad: Any, reason: str, form: str, folder: Path) -> None:
    summary = run(folder, [task(annotation(ink("good", drawn((1, 1, 20, 20))), bad, number=7))], form, code=1)
    [lost] = summary["lost"]
    assert (lost["task"], lost["annotation"], lost["region"]) == (1, 7, "x")
    assert lost["reason"].startswith(reason)
    assert summary["objects"] == 1


@pytest.mark.parametrize("reference", ["/data/upload/3/none.png", "https://example.com/a.png", "../secret.png"])
def test_masks_of_a_picture_that_is_not_there_are_written_all_the_same(reference: str, folder: Path) -> None:
    picture(folder.parent / "secret.png")
    mask = drawn((1, 1, 20, 20))
    summary = run(folder, [task(annotation(ink("a", mask)), image=reference)], "coco", code=1)
    assert [one["reason"].startswith("the picture is not there: ") for one in summary["lost"]] == [True]
    assert (read_coco(folder.parent / "out")[1]["a"][0] == mask).all()
    assert not list((folder.parent / "out" / "images").iterdir())


def test_without_pictures_none_is_looked_for(folder: Path) -> None:
    summary = run(
        folder, [task(annotation(ink("a", drawn((1, 1, 20, 20)))), image="https://example.com/p/a.png?x=1")], "coco", "--no-images"
    )
    coco, _ = read_coco(folder.parent / "out")
    [image] = coco.loadImgs(coco.getImgIds())
    assert (image["file_name"], image["width"], image["height"], summary["lost"]) == ("a.png", WIDTH, HEIGHT, [])
    assert not (folder.parent / "out" / "images").exists()


def test_the_command_says_what_is_lost_and_exits_with_1(folder: Path) -> None:
    (folder / "export.json").write_text(json.dumps([task(annotation(ink("x\n", drawn()), number=7))]))
    result = CliRunner().invoke(make_app(), ["export", str(folder), str(folder.parent / "out")])
    assert result.exit_code == 1
    assert "  1 LOST: a region covers no pixel of its image" in result.stdout
    assert "(first: task 1, annotation 7, region 'x\\n')" in result.stdout


def test_wrong_usage_and_folders_in_use_are_one_line(folder: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(make_app(), ["export", str(folder), "out", "--format", "voc"]).exit_code == 2
    assert runner.invoke(make_app(), ["export", str(folder)]).exit_code == 2
    assert "Example: " in runner.invoke(make_app(), ["export", "--help"]).output
    (folder / "export.json").write_text(json.dumps([task(annotation())]))
    used = runner.invoke(make_app(), ["export", str(folder), str(folder)])
    assert (used.exit_code, "already holds something" in str(used.exception)) == (1, True)
    none = runner.invoke(make_app(), ["export", str(folder / "no"), str(folder.parent / "out")])
    assert (none.exit_code, "cannot be read" in str(none.exception)) == (1, True)


# -- a project -----------------------------------------------------------------------------------------------------------------------------
