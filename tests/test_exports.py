"""Exports of Label Studio as datasets: every kind of region, both kinds of export, what is left out and why."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from backend import brush
from backend.errors import TaskError
from backend.label_studio.export_file import find_picture
from backend.learning.exports import label_studio_reader, read_label_studio
from backend.learning.holdout import SHARE, is_held_out
from sam4mllm.cli.main import make_app
from sam4mllm.data.examples import Example
from sam4mllm.data.pairs import LeftOut, PhrasedPicture, Prepared, to_mask, write_pairs
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.errors import DatasetError, Sam4mllmError
from sam4mllm.images import image_sha256
from tests.public_sets import FAR, HEIGHT, WIDTH, picture, square
from tests.test_wire import JSON

SIZE = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
OUTLINE = [[12.5, 100 / 6], [37.5, 100 / 6], [37.5, 50], [12.5, 50]]
CONFIG = (
    '<View><Image name="photo" value="$url"/><TextArea name="note" toName="photo"/><TextArea name="prompt" toName="photo"/>'
    '<BrushLabels name="ink" toName="photo">'
    '<Label value="Cup" alias="mug"/><Label value="Dog"/></BrushLabels><RectangleLabels name="frame" toName="photo"><Label value="Cup"/>'
    "</RectangleLabels></View>"
)


def bitmask(mask: np.ndarray[Any, Any]) -> str:
    data = io.BytesIO()
    alpha = mask.astype(np.uint8) * 255
    Image.fromarray(np.dstack([np.zeros((*mask.shape, 3), np.uint8), alpha])).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


VALUES: dict[str, dict[str, Any]] = {
    "brushlabels": {"format": "rle", "rle": brush.encode(square())},
    "bitmasklabels": {"imageDataURL": bitmask(square())},
    "polygonlabels": {"points": OUTLINE, "closed": True},
    "rectanglelabels": {"x": 12.5, "y": 100 / 6, "width": 25, "height": 100 / 3, "rotation": 0},
    "ellipselabels": {"x": 25, "y": 100 / 3, "radiusX": 12.5, "radiusY": 100 / 6, "rotation": 0},
}


def region(kind: str = "brushlabels", label: str | None = "Cup", number: str = "r1", **more: Any) -> dict[str, Any]:
    value = {**VALUES[kind], **({} if label is None else {kind: [label]})}
    return {"id": number, "type": kind, "from_name": kind[:5], "to_name": "image", "origin": "manual", **SIZE, "value": value, **more}


def text(words: str, name: str = "prompt") -> dict[str, Any]:
    return {"id": "t", "type": "textarea", "from_name": name, "to_name": "image", "origin": "manual", "value": {"text": [words]}}


def annotation(*result: object, number: int = 1, **more: Any) -> dict[str, Any]:
    when = "2026-11-01T10:00:00.000000Z"
    whole = {"id": number, "completed_by": 1, "was_cancelled": False, "ground_truth": False, "lead_time": 3.5, "parent_prediction": None}
    return {**whole, "created_at": when, "updated_at": when, "last_action": None, "result": list(result), **more}


def task(*annotations: dict[str, Any], number: int = 1, **data: Any) -> dict[str, Any]:
    shown = {"image": "/data/upload/3/ab12-cup.png", **data}
    return {"id": number, "project": 3, "data": shown, "annotations": list(annotations), "predictions": [], "file_upload": "ab12-cup.png"}


def as_min(one: dict[str, Any]) -> list[dict[str, Any]]:
    """The same task as Label Studio's converter writes it with JSON_MIN (label-studio-sdk 2.1.2): skipped ones are not there."""
    records = []
    for raw in one["annotations"]:
        if raw["was_cancelled"]:
            continue
        values: dict[str, Any] = {}
        for region in raw["result"]:
            if region["type"] == "textarea":
                values[region["from_name"]] = region["value"]["text"][0]
            else:
                sizes = {name: region[name] for name in ("original_width", "original_height")}
                values.setdefault(region["from_name"], []).append({**region["value"], **sizes})
        times = {name: raw[name] for name in ("created_at", "updated_at", "lead_time")}
        records.append({**one["data"], "id": one["id"], **values, "annotator": 1, "annotation_id": raw["id"], **times})
    return records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "export" / "images" / "ab12-cup.png")
    return tmp_path / "export"


def prepare(folder: Path, tasks: object) -> tuple[list[Example], Prepared]:
    (folder / "export.json").write_text(json.dumps(tasks))
    out = folder.parent / "out"
    prepared = write_pairs(read_label_studio(folder, "description"), out)
    return read_examples(out), prepared


def lines(examples: list[Example]) -> list[tuple[str, int]]:
    return [(one.phrase, len(one.instances)) for one in examples]


@pytest.mark.parametrize("minimal", [False, True], ids=["JSON", "JSON_MIN"])
@pytest.mark.parametrize("kind", VALUES)
def test_every_kind_of_region_is_a_mask(kind: str, minimal: bool, folder: Path) -> None:
    one = task(annotation(region(kind)), description="the left cup")
    [example], prepared = prepare(folder, as_min(one) if minimal else [one])
    assert (example.phrase, example.origin) == ("the left cup", "")
    assert (example.split == "holdout") == is_held_out(image_sha256(folder / "images" / "ab12-cup.png"), SHARE)
    assert (example.source, example.label) == (f"label-studio:{0 if minimal else 3}:1:1:drawn", "Cup")
    assert not prepared.left_out
    if kind == "ellipselabels":
        rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        assert (example.union() == ((columns - 20) ** 2 + (rows - 20) ** 2 <= 100)).all()
    else:
        assert (example.union() == square()).all()


@pytest.mark.parametrize("minimal", [False, True], ids=["JSON", "JSON_MIN"])
def test_masks_of_all_kinds_in_one_annotation_are_read_and_rectangles_are_prompts(minimal: bool, folder: Path) -> None:
    far = {"points": [[100 * FAR[k] / WIDTH, 100 * FAR[k + 1] / HEIGHT] for k in range(0, 8, 2)]}
    polygon = region("polygonlabels", "Dog", "r2")
    polygon["value"] |= far
    one = task(annotation(region(), polygon, region("rectanglelabels", "Dog", "r3")))
    examples, _ = prepare(folder, as_min(one) if minimal else [one])
    assert lines(examples) == [("Cup", 1), ("Dog", 1)]
    assert (examples[1].union() == to_mask([FAR], HEIGHT, WIDTH)).all()


PHRASES: dict[str, tuple[list[Any], dict[str, Any], list[tuple[str, int]]]] = {
    "of the task": ([region()], {"description": "the left cup"}, [("the left cup", 1)]),
    "typed": ([region(), text("a mug")], {"description": "the left cup"}, [("a mug", 1)]),
    "of its label": ([region()], {}, [("Cup", 1)]),
    "of two labels": ([region(), region("polygonlabels", "Dog", "r2")], {}, [("Cup", 1), ("Dog", 1)]),
    "by label": (
        [region(), region("polygonlabels", "Dog", "r2")],
        {"description": {"Cup": "left", "Dog": "right"}},
        [("left", 1), ("right", 1)],
    ),
}


@pytest.mark.parametrize("minimal", [False, True], ids=["JSON", "JSON_MIN"])
@pytest.mark.parametrize(("result", "data", "phrases"), PHRASES.values(), ids=PHRASES.keys())
def test_the_phrase_is_found_as_in_the_learning(
    result: list[Any], data: dict[str, Any], phrases: list[tuple[str, int]], minimal: bool, folder: Path
) -> None:
    one = task(annotation(*result), **data)
    assert lines(prepare(folder, as_min(one) if minimal else [one])[0]) == phrases


@pytest.mark.parametrize("minimal", [False, True], ids=["JSON", "JSON_MIN"])
@pytest.mark.parametrize("field", [["the left cup", None], {"Cup": ["the left cup", None]}, [None, "the left cup", ""]])
def test_empty_cells_among_phrases_lose_nothing(field: object, minimal: bool, folder: Path) -> None:
    one = task(annotation(region(original_width=f"{WIDTH}.0", original_height=float(HEIGHT))), description=field)
    assert lines(prepare(folder, as_min(one) if minimal else [one])[0]) == [("the left cup", 1)]


@pytest.mark.parametrize("minimal", [False, True], ids=["JSON", "JSON_MIN"])
def test_a_faint_mask_is_read(minimal: bool, folder: Path) -> None:
    one = task(annotation(region(value={"rle": brush.encode(square() * np.uint8(100)), "brushlabels": ["Cup"]})), description="the cup")
    [example], _ = prepare(folder, as_min(one) if minimal else [one])
    assert (example.union() == square()).all()


def test_the_last_of_several_typed_lines_is_the_phrase_in_both_forms(folder: Path) -> None:
    record = as_min(task(annotation(region(), text("a mug"))))[0] | {"prompt": ["a cup", "a mug"]}
    assert lines(prepare(folder, [record])[0]) == [("a mug", 1)]


def test_many_labels_are_phrases_each(folder: Path) -> None:
    tasks = [task(annotation(region(label=f"thing {number}"), number=number), number=number) for number in range(1, 41)]
    examples, _ = prepare(folder, tasks)
    assert [one.phrase for one in examples] == [f"thing {number}" for number in range(1, 41)]


def test_of_several_annotations_the_ground_truth_counts_then_the_newest(folder: Path) -> None:
    later = {"updated_at": "2026-11-02T10:00:00Z"}
    polygon = region("polygonlabels")
    tasks = [
        task(annotation(region(), number=1, ground_truth=True), annotation(polygon, number=2, **later), description="the cup"),
        task(annotation(region(), number=3), annotation(polygon, number=4, **later), number=2, description="the cup"),
    ]
    examples, prepared = prepare(folder, tasks)
    assert [one.source.split(":")[3] for one in examples] == ["1", "4"]
    assert prepared.left_out == {"another annotation of its task, a ground truth or a newer one, has its phrases": 2}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "skipped": (task(annotation(region(), was_cancelled=True)), "it was skipped"),
    "empty": (task(annotation(), description="the cup"), "it has no mask, which does not say that there is no such object"),
    "another label": (
        task(annotation(region(label="Dog"), number=9), description="Cup"),
        "a region's label 'Dog' fits none of the task's phrases",
    ),
    "without a label": (task(annotation(region(label=None)), description="the cup"), "a region has no label that would tell its phrase"),
    "turned": (task(annotation(region(image_rotation=90))), "a region was drawn on a turned image"),
    "of another size": (task(annotation(region("polygonlabels", original_width=81))), "its picture is not of the size that was outlined"),
    "a picture that is not there": (task(annotation(region()), image="/data/upload/3/no.png"), "its picture is not beside the export"),
    "a picture elsewhere": (
        task(annotation(region()), image="https://example.com/a.png"),
        "its picture is neither an upload nor a local file",
    ),
    "no picture": (task(annotation(region()), image=7), "the task's data has int at '$image'"),
    "faint to nothing": (
        task(annotation(region(value={"rle": brush.encode(square() * False), "brushlabels": ["Cup"]})), description="the cup"),
        "a region covers no pixel of its image",
    ),
    "one of two empty": (
        task(annotation(region(), region(number="r2", value={"rle": brush.encode(square() * False)})), description="the cup"),
        "a region covers no pixel of its image",
    ),
    "without its mask": (task(annotation(region(), region(number="r2", value={"brushlabels": ["Cup"]}))), "a mask's rle is a list"),
    "a polygon of two points": (task(annotation(region("polygonlabels", value={"points": [[5, 5], [50, 5]]}))), "a polygon has 2 of the 3"),
    "of half a pixel": (task(annotation(region(original_width=80.5))), "a region's original_width is 80.5"),
    "damaged": (task(annotation(region("polygonlabels", value={"points": [[1]]}))), "a polygon is a list of x, y pairs"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_used_is_left_out_with_its_reason(bad: dict[str, Any], reason: str, folder: Path) -> None:
    good = task(annotation(region(), number=8), number=8, description="the cup")
    examples, prepared = prepare(folder, [bad, good])
    assert lines(examples) == [("the cup", 1)]
    [said] = prepared.left_out
    assert said.startswith(reason)


def test_a_config_beside_the_export_is_followed(folder: Path) -> None:
    (folder / "label_config.xml").write_text(CONFIG)
    other = region(number="r2", to_name="another photo")
    said = annotation(region(label="mug", to_name="photo"), other, text("never mind", "note"), text("the mug"), text("blurry", "note"))
    one = task(said, url="/data/upload/3/ab12-cup.png", image="/data/upload/3/else.png")
    [example], _ = prepare(folder, [one])
    assert (example.phrase, len(example.instances), example.label) == ("the mug", 1, "Cup")


REMARKS = ("comment first", "prompt first", "no prompt", "no config")


@pytest.mark.parametrize("kind", REMARKS)
@pytest.mark.parametrize("minimal", [False, True], ids=["JSON", "JSON_MIN"])
def test_a_remark_is_no_phrase(kind: str, minimal: bool, folder: Path) -> None:
    """Whatever TextArea comes first: the phrase is what was typed into the prompt, else the task's own."""
    areas = {"comment first": ("note", "prompt"), "prompt first": ("prompt", "note"), "no prompt": ("note",), "no config": ()}[kind]
    if areas:
        shown = "".join(f'<TextArea name="{name}" toName="image"/>' for name in areas)
        mask = '<BrushLabels name="brush" toName="image"><Label value="Cup"/><Label value="Dog"/></BrushLabels>'
        (folder / "label_config.xml").write_text(f'<View><Image name="image" value="$image"/>{shown}{mask}</View>')
    typed = [] if kind == "no prompt" else [text("the mug")]
    one = task(annotation(region(), text("edge is blurry, please check", "note"), *typed), description="the cup")
    [example], _ = prepare(folder, as_min(one) if minimal else [one])
    assert example.phrase == ("the mug" if typed else "the cup")


@pytest.mark.parametrize("configured", [False, True], ids=["no config", "config"])
def test_the_prompt_of_an_export_is_the_one_that_the_setting_names(configured: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if configured:
        (folder / "label_config.xml").write_text(CONFIG)
    monkeypatch.setenv("SAM4MLLM_PROMPT_CONTROL", "note")
    said = annotation(region(to_name="photo" if configured else "image"), text("never mind"), text("the mug", "note"))
    (folder / "export.json").write_text(json.dumps([task(said, url="/data/upload/3/ab12-cup.png")]))
    [pair] = label_studio_reader().read(folder).pairs
    assert isinstance(pair, PhrasedPicture)
    assert pair.phrase == "the mug"


REFUSED: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "is no JSON; export the project as JSON or JSON_MIN"),
    "no list": ("{}", "is no list of tasks"),
    "no annotations": ('[{"id": 1, "data": {"image": "a.png"}}]', "has tasks without annotations"),
    "two pictures": (json.dumps([task(annotation(region()), image=1, a="a.png", b="b.png")]), "does not say which picture is labelled"),
    "no tasks": ("[]", "does not say which picture is labelled"),
}


@pytest.mark.parametrize(("written", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_an_export_that_cannot_be_read_is_one_line(written: str, said: str, folder: Path) -> None:
    (folder / "export.json").write_text(written)
    with pytest.raises(DatasetError, match=said):
        read_label_studio(folder / "export.json", "description")


def test_the_export_is_named_if_there_are_several(folder: Path) -> None:
    with pytest.raises(DatasetError, match="holds 0 JSON files"):
        read_label_studio(folder, "description")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_label_studio(folder / "none.json", "description")


FOUND: dict[str, tuple[str, str]] = {
    "upload by its name": ("/data/upload/3/ab12-cup.png", "images/ab12-cup.png"),
    "upload as it is kept": ("/data/upload/4/x.png", "upload/4/x.png"),
    "upload in the media folder": ("/data/upload/5/y.png", "media/upload/5/y.png"),
    "upload with Label Studio's address": ("http://ls:8080/label/data/upload/3/ab12-cup.png", "images/ab12-cup.png"),
    "upload beside the export": ("/data/upload/3/z.png", "z.png"),
    "quoted": ("/data/upload/3/a%20cup.png", "images/a cup.png"),
    "local file": ("/data/local-files/?d=photos/one.png", "photos/one.png"),
    "local file under images": ("http://ls:8080/data/local-files/?d=photos%2Fone.png", "images/photos/one.png"),
    "relative path": ("photos/one.png", "photos/one.png"),
}


@pytest.mark.parametrize(("reference", "place"), FOUND.values(), ids=FOUND.keys())
def test_a_picture_is_found(reference: str, place: str, tmp_path: Path) -> None:
    picture(tmp_path / place)
    assert find_picture(reference, tmp_path) == tmp_path / place


@pytest.mark.parametrize(
    "reference",
    [
        "/data/upload/../secret.png",
        "/data/local-files/?d=../secret.png",
        "../secret.png",
        "/data/local-files/?d=/secret.png",
        "http://[",
        "a\0.png",
    ],
)
def test_a_reference_does_not_lead_out_of_the_folder(reference: str, tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    (tmp_path / "export").mkdir()
    with pytest.raises(TaskError):
        find_picture(reference, tmp_path / "export")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON, field=st.sampled_from(["result", "id", "updated_at", "value", "rle", "labels", "data", "image", "project"]))
def test_foreign_values_anywhere_are_refused_or_left_out(value: Any, field: str, folder: Path) -> None:
    one = task(annotation(region()), description="the cup")
    for place in (one, one["data"], one["annotations"][0], one["annotations"][0]["result"][0], one["annotations"][0]["result"][0]["value"]):
        if field in place:
            place[field] = value
    (folder / "export.json").write_text(json.dumps([one, task(annotation(region(), number=2), number=2)]))
    with contextlib.suppress(Sam4mllmError):
        items = list(read_label_studio(folder, "description").pairs)
        assert not any("internal error" in item.reason for item in items if isinstance(item, LeftOut))


def test_the_command_reads_an_export(folder: Path) -> None:
    (folder / "export.json").write_text(json.dumps([task(annotation(region()), description="the cup")]))
    result = CliRunner().invoke(make_app(), ["data", "prepare", "label-studio", str(folder / "export.json"), str(folder.parent / "out")])
    assert result.exit_code == 0, result.output
    assert "1 pictures, 0 repetitions merged" in result.stdout
