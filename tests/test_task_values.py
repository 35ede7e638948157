"""What a config's values stand for in a task, on every way from a task to a picture, a phrase and a label."""

from __future__ import annotations

from typing import Any

import pytest

from backend.errors import ConfigError, TaskError
from backend.export.surfaces import read_surfaces
from backend.label_studio.config_template import offer_config
from backend.label_studio.label_config import MAX_LABELS, Label, read_label_config
from backend.label_studio.phrases import wanted
from backend.label_studio.region_parts import join_labels, page_of
from backend.label_studio.task_values import MAX_PAGES, find, resolve
from backend.label_studio.wire import Task
from backend.setup.project_checks import check_images, check_phrases
from tests.backend_fakes import FakeImages

MASK = '<BrushLabels name="mask" toName="image"><Label value="Cup"/></BrushLabels>'
PLAIN = f'<View><Image name="image" value="$image"/>{MASK}</View>'
NESTED = PLAIN.replace("$image", "$image.url")
PAGED = PLAIN.replace('value="$image"', 'valueList="$images"')
FROM_TASK = '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image" value="$labels"/></View>'
REPEATED = (
    '<View><Repeater on="$images" indexFlag="{{idx}}"><Image name="image_{{idx}}" value="$images[{{idx}}].url"/>'
    '<BrushLabels name="mask_{{idx}}" toName="image_{{idx}}"><Label value="Cup"/></BrushLabels></Repeater></View>'
)
DATA: dict[str, Any] = {
    "image": {"url": "a.png", "sides": [4, 8]},
    "pages": ["p0.png", {"file": "p1.png"}],
    "meta.title": "a literal key",
    "meta": {"title": "a nested key"},
    "folder": "2026",
    "number": 7,
    "bild-url": "b.png",
    "yes": True,
}


@pytest.mark.parametrize(
    ("template", "value"),
    [
        pytest.param("$folder", "2026", id="key"),
        pytest.param("$image.url", "a.png", id="nested key"),
        pytest.param("$image", DATA["image"], id="structure"),
        pytest.param("$pages[0]", "p0.png", id="index"),
        pytest.param("$pages.0", "p0.png", id="index after a dot"),
        pytest.param("$pages[1].file", "p1.png", id="key of an entry"),
        pytest.param("$meta.title", "a literal key", id="a key with a dot comes first"),
        pytest.param("$folder/$image.url", "2026/a.png", id="template"),
        pytest.param("https://h/$folder/p?n=$number&y=$yes", "https://h/2026/p?n=7&y=true", id="text around"),
        pytest.param("$bild-url", "b.png", id="a key that is no variable in Label Studio"),
        pytest.param("$pages[2]", None, id="beyond the list"),
        pytest.param("$pages[-1]", None, id="before the list"),
        pytest.param("$pages[99999999999999999999]", None, id="a number of many digits"),
        pytest.param("$image.url.more", None, id="inside of a text"),
        pytest.param("$folder/$nothing", None, id="template without its value"),
        pytest.param("$folder/$image", None, id="template of a structure"),
    ],
)
def test_values(template: str, value: object) -> None:
    assert resolve(template, DATA) == value


def test_a_path_without_a_dollar_is_found_too() -> None:
    assert (find(DATA, "image.sides[1]"), find(DATA, "nothing.here"), find({}, "")) == (8, None, None)


@pytest.mark.parametrize(
    ("xml", "data", "pictures"),
    [
        pytest.param(PLAIN, {"image": "a.png"}, ("a.png",), id="plain"),
        pytest.param(PLAIN, {"image": ["a.png"]}, ("a.png",), id="list of one"),
        pytest.param(NESTED, {"image": {"url": "a.png"}}, ("a.png",), id="nested"),
        pytest.param(PLAIN.replace("$image", "http://h/$a/$b"), {"a": 1, "b": "c.png"}, ("http://h/1/c.png",), id="template"),
        pytest.param(PAGED, {"images": ["a.png", "b.png"]}, ("a.png", "b.png"), id="pages"),
        pytest.param(PAGED, {"images": "a.png"}, ("a.png",), id="one page"),
        pytest.param(PAGED.replace("valueList", "valuelist"), {"images": ["a.png"]}, ("a.png",), id="in small letters"),
        pytest.param(PAGED.replace("$images", "$doc.pages"), {"doc": {"pages": ["a"]}}, ("a",), id="nested pages"),
    ],
)
def test_pictures_of_a_task(xml: str, data: dict[str, Any], pictures: tuple[str, ...]) -> None:
    assert read_label_config(xml).pictures(data) == pictures


BAD_PICTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "nothing": (PLAIN, {"pic": "a"}, "no image address at '$image'"),
    "blank": (PLAIN, {"image": " "}, "no image address at '$image'"),
    "an object": (PLAIN, {"image": {"url": "a"}}, "an object at '$image', and the <Image> tag needs an address"),
    "a number": (PLAIN, {"image": 7}, "int at '$image'"),
    "several": (PLAIN, {"image": ["a", "b"]}, "2 pictures at '$image'; for pages write valueList=\"$image\""),
    "a nested key that is not there": (NESTED, {"image": "a.png"}, "no image address at '$image.url'"),
    "no page": (PAGED, {"images": []}, "no image address at '$images'"),
    "a page without address": (PAGED, {"images": ["a", None]}, "NoneType at entry 2 of '$images'"),
    "a blank page": (PAGED, {"images": ["a", ""]}, "no image address at '$images'"),
    "too many pages": (PAGED, {"images": ["a"] * (MAX_PAGES + 1)}, "101 pages"),
}


@pytest.mark.parametrize(("xml", "data", "says"), BAD_PICTURES.values(), ids=BAD_PICTURES.keys())
def test_what_is_no_picture_is_said_in_words_that_are_true(xml: str, data: dict[str, Any], says: str) -> None:
    config = read_label_config(xml)
    with pytest.raises(TaskError) as caught:
        config.pictures(data)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    [finding] = check_images(config, [{"id": 5, "data": data}], FakeImages())  # type: ignore[arg-type]
    assert says.partition(";")[0] in finding.problem


def test_doctor_looks_at_the_pictures_that_label_studio_shows() -> None:
    store = FakeImages()
    tasks = [{"id": 1, "data": {"images": ["/data/upload/1/a-4x4.png", "http://h/b-4x4.png", "http://dead/c.png"]}}]
    [finding] = check_images(read_label_config(PAGED), tasks, store)  # type: ignore[arg-type]
    assert (store.loads, finding.problem) == (3, "task 1: the image host does not answer")


def test_a_phrase_may_be_inside_of_an_object() -> None:
    config = read_label_config(NESTED)
    task = Task(1, {"image": {"url": "a"}, "meta": {"say": ["the left cup", "a cup"]}})
    assert [one.phrase for one in wanted(task, config, "", "meta.say", "")] == ["the left cup", "a cup"]
    assert [one.phrase for one in wanted(task, config, "", "meta.say[1]", "")] == ["a cup"]
    assert check_phrases(config, [{"id": 1, "data": dict(task.data)}], "meta.say") == []


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        pytest.param(["Cup", "Dog"], (Label("Cup"), Label("Dog")), id="texts"),
        pytest.param([{"value": "Cup", "alias": "mug, beaker", "background": "red"}], (Label("Cup", ("mug", "beaker")),), id="objects"),
        pytest.param([{"value": "A", "children": [{"value": "B"}]}], (Label("A"), Label("B")), id="children"),
        pytest.param([{"value": 7}, 8, None, ["Cup"], {"alias": "x"}, {"value": " "}], (), id="what is no label"),
        pytest.param("Cup", (), id="a text is no list"),
        pytest.param(None, (), id="nothing"),
    ],
)
def test_labels_of_a_task(value: object, labels: tuple[Label, ...]) -> None:
    assert read_label_config(FROM_TASK).for_task({"labels": value}).mask.labels == labels


def test_labels_of_a_task_come_after_the_configs_own() -> None:
    xml = FROM_TASK.replace("/></View>", '><Label value="Cup"/></BrushLabels></View>').replace("$labels", "$meta.labels")
    own = read_label_config(xml).for_task({"meta": {"labels": ["Dog", "Cup"]}})
    assert [label.value for label in own.mask.labels] == ["Cup", "Dog"]
    assert own.label_for("the dog") == "Dog"


def test_too_many_labels_of_a_task_are_refused() -> None:
    with pytest.raises(TaskError, match="more than 10,000 labels"):
        read_label_config(FROM_TASK).for_task({"labels": [str(number) for number in range(MAX_LABELS + 1)]})


def test_doctor_reads_the_labels_of_the_tasks() -> None:
    config = read_label_config(FROM_TASK)
    good = {"id": 1, "data": {"image": "a", "labels": ["Cup", "Dog"], "description": ["the cup", "the dog"]}}
    assert check_phrases(config, [good], "description") == []
    [finding] = check_phrases(config, [{"id": 2, "data": {"image": "a", "labels": ["cls_03"]}}], "description")
    assert "'cls_03'" in finding.problem


def beside(shape: str, more: str = "") -> str:
    labels = '<Labels name="label" toName="image"><Label value="Cup" alias="mug"/><Label value="Dog"/></Labels>'
    return f'<View><Image name="image" value="$image"/>{labels}<{shape} name="shape" toName="image"/>{more}</View>'


@pytest.mark.parametrize("shape", ["Brush", "Bitmask", "Polygon", "Rectangle"])
def test_labels_beside_a_control_without(shape: str) -> None:
    found = read_label_config(beside(shape)).mask
    assert (found.tag, found.type, found.drawing, found.labelled_by) == (shape, shape.lower(), f"{shape}Labels", "label")
    assert [label.value for label in found.labels] == ["Cup", "Dog"]


def test_keypoints_and_rectangles_beside_labels_are_what_annotators_point_with() -> None:
    found = read_label_config(beside("Brush", '<KeyPoint name="k" toName="image"/><Rectangle name="r" toName="image"/>'))
    assert found.keypoint is not None
    assert found.box is not None
    assert (found.mask.name, found.keypoint.name, found.box.name) == ("shape", "k", "r")


def test_a_control_with_labels_comes_before_one_that_nothing_labels() -> None:
    brush = '<Brush name="free" toName="image"/>'
    assert read_label_config(PLAIN.replace(MASK, brush + MASK.replace("Brush", "Polygon"))).mask.name == "mask"
    assert read_label_config(PLAIN.replace(MASK, brush)).mask.labels == ()


def test_two_regions_of_one_id_are_one() -> None:
    config = read_label_config(beside("Brush"))
    drawn = {"id": "r", "type": "brush", "from_name": "shape", "value": {"rle": [1]}}
    labelled = {"id": "r", "type": "labels", "from_name": "label", "value": {"rle": [1], "labels": ["Cup"]}}
    text = {"id": "t", "type": "textarea", "from_name": "prompt", "value": {"text": ["x"]}}
    [joined, kept] = join_labels([labelled, drawn, text], config)
    assert (joined["type"], joined["value"]["labels"], joined["value"]["rle"], kept) == ("brushlabels", ["Cup"], [1], text)
    [bare] = join_labels([drawn, {"id": ["r"], "from_name": "label", "value": 7}], config)
    assert bare["value"]["labels"] == []


@pytest.mark.parametrize(("index", "page"), [(2, 2), (0, 0), (None, 0), (-1, 0), (True, 0), ("1", 0), (1.5, 0)])
def test_the_page_of_a_region(index: object, page: int) -> None:
    assert page_of({"item_index": index}) == page


def test_a_repeater_is_refused_in_words_that_are_true() -> None:
    with pytest.raises(ConfigError) as caught:
        read_label_config(REPEATED)
    assert "<Repeater>" in str(caught.value)
    assert 'valueList="$images"' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repeater_of_something_else_is_left_alone() -> None:
    more = '<Repeater on="$notes" indexFlag="{{i}}"><Text name="n{{i}}" value="$notes[{{i}}]"/></Repeater>'
    assert read_label_config(PLAIN.replace("</View>", f"{more}</View>")).mask.name == "mask"


@pytest.mark.parametrize(
    ("xml", "kept"),
    [
        pytest.param('<View><Image name="i" value="$image.url"/></View>', 'value="$image.url"', id="nested"),
        pytest.param('<View><Image name="i" valueList="$images"/></View>', 'valueList="$images"', id="pages"),
        pytest.param(FROM_TASK.replace("BrushLabels", "KeyPointLabels"), 'toName="image" value="$labels"', id="labels of tasks"),
    ],
)
def test_a_config_that_is_offered_keeps_where_pictures_and_labels_are(xml: str, kept: str) -> None:
    offered = offer_config(xml)
    assert kept in offered
    read_label_config(offered)


def test_the_export_command_finds_the_pictures_of_the_config() -> None:
    data = {"image": {"url": "a.png"}, "images": ["p0.png", "p1.png"]}
    assert read_surfaces(NESTED).picture({"to_name": "image"}, data) == "a.png"
    assert read_surfaces(PAGED).picture({"to_name": "image", "item_index": 1}, data) == "p1.png"
