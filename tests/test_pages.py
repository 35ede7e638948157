"""A task of several pictures: asked on each page, pointed at on one, and learned page by page; and controls that share a Labels tag."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend.batch.work import BatchTask, ProjectWork
from backend.corrections.reviews import Reviews, read_reviews
from backend.label_studio.wire import PredictRequest
from backend.learning.exports import read_label_studio
from sam4mllm.errors import DatasetError
from tests.backend_fakes import CONFIG, FakeImages, House, house, settings, task
from tests.review_fakes import PROJECT, TASK, WIDTH, annotation, blob, event, log_of, region, served, typed
from tests.test_predictor import drawn, keypoint, mask, text

PAGED = CONFIG.replace('value="$image"', 'valueList="$images"')
SIZES = ("100x80", "90x70", "80x60")
BESIDE = (
    '<View><Image name="image" value="$image"/><Labels name="label" toName="image" value="$labels"><Label value="Cup"/></Labels>'
    '<Brush name="brush" toName="image"/><KeyPoint name="click" toName="image"/><TextArea name="prompt" toName="image"/></View>'
)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    opened = house(tmp_path)
    yield opened
    opened.service.close(5.0)


def pages(*sizes: str, **data: Any) -> dict[str, Any]:
    return {"id": TASK, "data": {"images": [f"/data/upload/{page}-{size}.png" for page, size in enumerate(sizes)], **data}}


def ask(where: House, raw: object, context: list[dict[str, Any]] | None = None, config: str = PAGED) -> Any:
    request = PredictRequest([raw], PROJECT, config, None if context is None else tuple(context))
    [answer] = where.service.predictor.predict(request)
    return json.loads(answer)


# -- served --------------------------------------------------------------------------------------------------------------------------------


def test_a_phrase_is_asked_on_each_page(home: House) -> None:
    answer = ask(home, pages(*SIZES, description="the left cup"))
    assert [(one["item_index"], one["original_width"], one["original_height"]) for one in answer["result"]] == [
        (0, 100, 80),
        (1, 90, 70),
        (2, 80, 60),
    ]
    assert len({one["id"] for one in answer["result"]}) == 3
    assert answer["score"] == min(one["score"] for one in answer["result"])
    assert all(mask(one).any() for one in answer["result"])
    noted = home.service.corrections.served(PROJECT, TASK)
    assert sorted((one.page, one.region) for one in noted) == [(page, one["id"]) for page, one in enumerate(answer["result"])]


def test_a_task_of_one_picture_says_nothing_of_pages(home: House) -> None:
    answer = ask(home, task(description="the left cup"), config=CONFIG)
    assert "item_index" not in answer["result"][0]


def test_no_such_object_is_noted_of_each_page(home: House) -> None:
    assert ask(home, pages(*SIZES, description="the moon"))["result"] == []
    noted = home.service.corrections.served(PROJECT, TASK)
    assert [(one.page, one.region, one.mask) for one in noted] == [(page, "", None) for page in range(3)]


def test_an_annotator_reads_one_line_of_all_pages(home: House) -> None:
    answer = ask(home, pages(*SIZES[:2]), [text("all cups")])
    assert [one["item_index"] for one in drawn(answer)] == [0, 0, 1, 1]
    [line] = [one for one in answer["result"] if one["type"] == "textarea"]
    assert line["value"]["text"] == ["page 1: all cups: 2 found; page 2: all cups: 2 found"]


def test_a_click_is_about_its_page(home: House) -> None:
    answer = ask(home, pages(*SIZES, description="the left cup"), [{**keypoint(20, 20), "item_index": 1}])
    assert {one["item_index"] for one in drawn(answer)} == {1}
    assert home.images.loads == 1


def test_a_page_that_cannot_be_had_is_named(home: House) -> None:
    assert ask(home, pages("100x80", "dead", description="the left cup")) == []
    assert home.service.metrics.recent[0].message == "page 2: the image host does not answer"


def test_pages_that_were_answered_are_not_worked_on_again(home: House) -> None:
    ask(home, pages("100x80", "dead", description="the left cup"))
    before = home.grounder.opened
    ask(home, pages("100x80", "dead", description="the left cup"))
    assert home.grounder.opened == before == 1


def test_a_bulk_run_answers_pages_as_the_server_does(home: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.batch.work.image_store", lambda *_: FakeImages())
    raw = pages(*SIZES, description=["the left cup", "the moon"])
    live = ask(home, raw)
    work = ProjectWork(settings(tmp_path / "other", label_studio_url="http://ls:8080"), PROJECT, PAGED)
    job = BatchTask(TASK, raw["data"])
    bulk = work.answerer()(home.service.engine.model.current, job, work.loader()(job), 0.0)  # type: ignore[union-attr]
    assert bulk.result == live
    assert sorted((one.page, one.region) for one in bulk.served) == sorted(
        (one.page, one.region) for one in home.service.corrections.served(PROJECT, TASK)
    )


def test_a_nested_key_is_served(home: House) -> None:
    raw = {"id": 1, "data": {"image": {"url": "/data/upload/1-100x80.png"}, "meta": {"say": "the dog"}, "description": "the left cup"}}
    assert len(ask(home, raw, config=CONFIG.replace("$image", "$image.url"))["result"]) == 1
    assert ask(home, raw, config=CONFIG) == []
    assert "write the key inside too, as '$image.url'" in home.service.metrics.recent[0].message


def test_labels_of_a_task_are_served(home: House) -> None:
    config = CONFIG.replace(
        '<BrushLabels name="mask" toName="image"><Label value="Cup"/><Label value="Dog"/></BrushLabels>',
        '<BrushLabels name="mask" toName="image" value="$labels"/>',
    )
    answer = ask(home, task(description=["the left cup", "the dog"], labels=[{"value": "Pet", "alias": "dog"}, "Cup"]), config=config)
    assert [one["value"]["brushlabels"] for one in answer["result"]] == [["Cup"], ["Pet"]]
    other = ask(home, task(2, labels=["Cup"]), config=config)
    assert [one["value"]["brushlabels"] for one in other["result"]] == [["Cup"]]


def test_a_mask_beside_labels_comes_in_two_regions_of_one_id(home: House) -> None:
    answer = ask(home, task(description=["the left cup", "the dog"], labels=["Dog"]), config=BESIDE)
    assert [(one["from_name"], one["type"], one["value"].get("labels")) for one in answer["result"]] == [
        ("brush", "brush", None),
        ("label", "labels", ["Cup"]),
        ("brush", "brush", None),
        ("label", "labels", ["Dog"]),
    ]
    assert [one["id"] for one in answer["result"]][::2] == [one["id"] for one in answer["result"]][1::2]
    assert "brushlabels" not in answer["result"][0]["value"]
    assert sorted(one.region for one in home.service.corrections.served(PROJECT, 1)) == sorted({one["id"] for one in answer["result"]})


def test_a_click_beside_labels_takes_the_label(home: House) -> None:
    point = {**keypoint(50, 60), "id": "k", "type": "keypoint", "value": {"x": 50, "y": 60, "width": 0.2}}
    label = {**point, "type": "labels", "from_name": "label", "value": {**point["value"], "labels": ["Dog"]}}
    answer = ask(home, task(description=["the left cup", "the dog"], labels=["Dog"]), [point, label], BESIDE)
    assert [one["value"]["labels"] for one in answer["result"] if one["type"] == "labels"] == [["Dog"]]


# -- learned -------------------------------------------------------------------------------------------------------------------------------

REVIEWED = PAGED.replace('<TextArea name="answer" toName="image"/>', "")
IMAGES = {"image": None, "images": ["/data/upload/3/a.png", "/data/upload/3/b.png"], "description": "the cup"}


def learn(folder: Path, *result: object, given: Any = (), config: str = REVIEWED, data: Any = IMAGES, **fields: Any) -> Reviews:
    log = log_of(folder, event("ANNOTATION_CREATED", annotation(*result, **fields), config, **data), served=given)
    found = read_reviews(log, "description")
    log.close()
    return found


def test_each_page_is_learned_by_itself(tmp_path: Path) -> None:
    given = [served("a", blob(4)), served("b", blob(4), page=1)]
    found = learn(
        tmp_path, region("a", blob(4), item_index=0), region("b", blob(8), origin="prediction-changed", item_index=1), given=given
    )
    assert found.refused == []
    assert [(one.page, one.image, one.phrase, one.outcome) for one in found.reviews] == [
        (0, "/data/upload/3/a.png", "the cup", "accepted"),
        (1, "/data/upload/3/b.png", "the cup", "edited"),
    ]


def test_what_was_deleted_on_one_page_is_none_there_alone(tmp_path: Path) -> None:
    given = [served("a", blob(4)), served("b", blob(4), page=1), served("", None, page=2)]
    data = {**IMAGES, "images": [*IMAGES["images"], "/data/upload/3/c.png"]}
    found = learn(tmp_path, region("a", blob(4), item_index=0), given=given, data=data)
    assert [(one.page, one.outcome, one.iou) for one in found.reviews] == [(0, "accepted", 1.0), (1, "none", 0.0), (2, "none", 1.0)]


def test_pages_may_be_of_different_sizes(tmp_path: Path) -> None:
    small = blob(4)[:12, :16]
    found = learn(tmp_path, region("a", blob(4), item_index=0), region("b", small, item_index=1))
    assert [(one.page, one.width, one.height) for one in found.reviews] == [(0, WIDTH, 24), (1, 16, 12)]


def test_a_page_that_cannot_be_read_does_not_spoil_the_others(tmp_path: Path) -> None:
    turned = region("b", blob(4), item_index=1, image_rotation=90)
    found = learn(tmp_path, region("a", blob(4), item_index=0), turned)
    assert [one.page for one in found.reviews] == [0]
    assert [one.reason for one in found.refused] == ["page 2: a region was drawn on a turned image; turn it back and draw again"]


def test_a_typed_phrase_is_about_all_pages(tmp_path: Path) -> None:
    found = learn(tmp_path, typed("the mug"), region("a", blob(4), item_index=0), region("b", blob(8), item_index=1))
    assert [(one.page, one.phrase) for one in found.reviews] == [(0, "the mug"), (1, "the mug")]


def test_labels_of_the_task_are_known_when_its_review_comes(tmp_path: Path) -> None:
    config = CONFIG.replace("<BrushLabels", '<BrushLabels value="$labels"')
    data = {"description": ["the bird", "the cup"], "labels": [{"value": "Bird", "alias": "parrot, macaw"}]}
    found = learn(tmp_path, region("h", blob(4), "parrot, macaw", "manual"), config=config, data=data)
    assert [(one.phrase, one.label) for one in found.reviews] == [("the bird", "Bird")]
    assert found.refused == []


def test_a_review_of_a_mask_beside_labels(tmp_path: Path) -> None:
    whole = region("a", blob(4), "Cup")
    value = {name: whole["value"][name] for name in ("format", "rle")}
    shape = {**whole, "type": "brush", "from_name": "brush", "value": value}
    label = {**whole, "type": "labels", "from_name": "label", "value": {**value, "labels": ["Cup"]}}
    found = learn(tmp_path, shape, label, given=[served("a", blob(4))], config=BESIDE, data={"description": "the cup"})
    assert found.refused == []
    assert [(one.phrase, one.label, one.outcome, len(one.instances)) for one in found.reviews] == [("the cup", "Cup", "accepted", 1)]


def test_a_review_without_any_label_is_of_the_only_phrase(tmp_path: Path) -> None:
    config = '<View><Image name="image" value="$image"/><Brush name="brush" toName="image"/></View>'
    shape = {**region("a", blob(4)), "type": "brush", "from_name": "brush"}
    shape["value"] = {name: shape["value"][name] for name in ("format", "rle")}
    found = learn(tmp_path, shape, config=config, data={"description": "the cup"})
    assert [(one.phrase, one.label) for one in found.reviews] == [("the cup", None)]


# -- exported ------------------------------------------------------------------------------------------------------------------------------


def export(folder: Path, config: str, *result: Any, **data: Any) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "label_config.xml").write_text(config)
    tasks = [{"id": 1, "project": 3, "data": data, "annotations": [annotation(*result)]}]
    (folder / "export.json").write_text(json.dumps(tasks))
    return read_label_studio(folder, "description")


@pytest.mark.parametrize("labelled", [True, False], ids=["with labels of the config", "without any"])
def test_an_export_of_pages_is_read_per_page(tmp_path: Path, labelled: bool) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (WIDTH, 24), (0, 0, 90 if name == "a" else 200)).save(tmp_path / "images" / f"{name}.png")
    config = REVIEWED if labelled else REVIEWED.replace('<Label value="Cup"/>', "").replace('<Label value="Dog"/>', '<Label value="X"/>')
    regions = [region("a", blob(4), item_index=0), region("b", blob(8), item_index=1)]
    reading = export(tmp_path, config, *regions, images=IMAGES["images"], description="the cup")
    assert sorted((one.image.name, one.phrase) for one in reading.pairs) == [("a.png", "the cup"), ("b.png", "the cup")]


def test_json_min_does_not_say_on_which_page_a_mask_is(tmp_path: Path) -> None:
    (tmp_path / "label_config.xml").write_text(REVIEWED)
    record = {"id": 1, "annotation_id": 2, "images": IMAGES["images"], "mask": [{"original_width": 4, "original_height": 4}]}
    (tmp_path / "export.json").write_text(json.dumps([record]))
    with pytest.raises(DatasetError, match="JSON_MIN, which does not say on which page"):
        read_label_studio(tmp_path, "description")
