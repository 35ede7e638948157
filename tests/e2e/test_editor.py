"""What an annotator sees and does in Label Studio's own editor. Screenshots are left in ``out/e2e``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from backend.corrections.log import CorrectionLog
from backend.demo.local_label_studio import LocalLabelStudio
from backend.images.store import LoadedImage
from backend.label_studio.config_template import DEMO_CONFIG
from backend.label_studio.label_config import read_label_config
from backend.label_studio.wire import Task
from backend.serving.answerer import Answerer, bulk_question
from backend.serving.edges import Edges
from backend.settings import Settings
from backend.support.metrics import Metrics
from benchmarks.waiting import wait_for
from sam4mllm.options import Options
from sam4mllm.pipeline import Pipeline
from tests.e2e.conftest import BackendServer
from tests.e2e.test_backend import Mask, Project, drawn, fill, mask_of, project, save, scene
from tests.fakes import FakeGrounder, FakeSegmenter, grounding

if TYPE_CHECKING:
    from tests.e2e.editor import Editor

__all__ = ["project"]
SHOTS = Path(__file__).parents[2] / "out" / "e2e"


@pytest.fixture(autouse=True)
def _shots() -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)


def iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_the_mask_of_a_description_is_drawn_where_it_was_served(project: Project, editor: Editor, tmp_path: Path) -> None:
    one = scene(100)
    [number] = fill(project, (save(one.image, tmp_path / "a.png"), one.expressions[0].phrase))
    project.studio.retrieve_predictions(project.id)
    [prediction] = project.predictions(number)
    served = np.any([mask_of(region) for region in drawn(prediction["result"])], axis=0)
    editor.open_task(project.id, number, regions=len(drawn(prediction["result"])))
    editor.screenshot(SHOTS / "description.png")
    assert iou(editor.drawn()[..., 3] > 0, served) > 0.85
    assert editor.blocked == []


@pytest.mark.parametrize("kind", ["turned", "large"])
def test_turned_and_large_images_have_their_masks_in_place(project: Project, editor: Editor, tmp_path: Path, kind: str) -> None:
    one = scene(101)
    path = tmp_path / f"{kind}.jpg"
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(one.image).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    else:
        Image.fromarray(one.image).resize((4000, 3000), Image.Resampling.BILINEAR).save(path, quality=90)
    [number] = fill(project, (path, one.expressions[0].phrase))
    project.studio.retrieve_predictions(project.id)
    [prediction] = project.predictions(number)
    served = np.any([mask_of(region) for region in drawn(prediction["result"])], axis=0)
    editor.open_task(project.id, number, regions=len(drawn(prediction["result"])))
    editor.screenshot(SHOTS / f"{kind}.png")
    shown = editor.drawn()[..., 3] > 0
    assert shown.shape == served.shape
    assert iou(shown, served) > 0.85


def test_an_annotator_types_clicks_boxes_accepts_and_submits(
    project: Project, editor: Editor, backend_server: BackendServer, tmp_path: Path
) -> None:
    one = scene(102)
    expression = one.expressions[0]
    target = one.masks[expression.targets[0]]
    height, width = target.shape
    [number] = fill(project, (save(one.image, tmp_path / "a.png"), ""))
    editor.open_task(project.id, number)
    editor.auto_annotate()
    typed = editor.prompt(expression.phrase)["data"]
    assert typed["result"][-1]["from_name"] == "answer"
    assert any(line.startswith(f"{expression.phrase}:") for line in editor.texts())
    editor.screenshot(SHOTS / "typed.png")
    if editor.suggestions():
        editor.reject()
    ys, xs = np.nonzero(target)
    clicked = editor.click(float(xs.mean() / width * 100), float(ys.mean() / height * 100))["data"]
    assert clicked["result"]
    editor.screenshot(SHOTS / "clicked.png")
    x1, y1, x2, y2 = one.boxes_px[expression.targets[0]] / np.array([width, height, width, height]) * 100
    boxed = editor.box(float(x1), float(y1), float(x2 - x1), float(y2 - y1))["data"]
    [mask, *_] = drawn(boxed["result"])
    assert iou(mask_of(mask), target) > 0.5
    editor.screenshot(SHOTS / "boxed.png")
    editor.accept()
    annotation = editor.submit()
    masks = [region for region in annotation["result"] if region["type"] == "brushlabels"]
    assert masks
    editor.screenshot(SHOTS / "submitted.png")

    def stored() -> bool:
        events = CorrectionLog(backend_server.home / "corrections.sqlite").events()
        return any(event.action == "ANNOTATION_CREATED" and event.body["annotation"]["id"] == annotation["id"] for event in events)

    wait_for("the event", stored, 60)


def test_an_annotator_types_several_descriptions_at_once(project: Project, editor: Editor, tmp_path: Path) -> None:
    one = scene(102)
    nouns = [thing.noun for thing in one.things]
    phrases = [f"the {noun}" for noun in nouns if nouns.count(noun) == 1][:2]
    [number] = fill(project, (save(one.image, tmp_path / "a.png"), ""))
    editor.open_task(project.id, number)
    editor.auto_annotate()
    before = {region["id"] for region in editor.regions()}  # the model may find a thing for the label's name when the task is opened
    typed = editor.prompt("; ".join(phrases))["data"]
    *regions, line = typed["result"]
    assert [part.split(":")[0] for part in line["value"]["text"][0].split("; ")] == phrases
    told = {region["meta"]["text"][0].removeprefix("for: ") for region in regions}
    assert told <= {*phrases}
    assert regions, "nothing was found for either"
    editor.screenshot(SHOTS / "several.png")
    editor.accept()
    annotation = editor.submit()
    assert [region["from_name"] for region in annotation["result"] if region["type"] != "brushlabels"] == ["prompt"]
    masks = [region for region in annotation["result"] if region["type"] == "brushlabels" and region["id"] not in before]
    assert {region["meta"]["text"][0].removeprefix("for: ") for region in masks} == told


def test_an_annotator_reads_that_nothing_was_found(project: Project, editor: Editor, tmp_path: Path) -> None:
    one = scene(103)
    [number] = fill(project, (save(one.image, tmp_path / "a.png"), ""))
    editor.open_task(project.id, number)
    editor.auto_annotate()
    asked = len(editor.asked)
    answer = editor.prompt("x" * 600)["data"]
    assert "at most 500" in answer["result"][-1]["value"]["text"][0]
    requests = [request["context"]["result"] for request in editor.asked[asked:]]
    assert len([result for result in requests if result]) == 1
    assert len(requests) <= 2, "the answer's text may make the editor ask with an empty context, once"
    wait_for("the refusal", lambda: any("at most 500" in line for line in editor.texts()), 20)
    editor.screenshot(SHOTS / "nothing.png")


def test_an_empty_prediction_is_read_and_nothing_of_it_is_saved(project: Project, editor: Editor, tmp_path: Path) -> None:
    one = scene(103)
    [number] = fill(project, (save(one.image, tmp_path / "a.png"), "the lighthouse"))
    project.studio.retrieve_predictions(project.id)
    [prediction] = project.predictions(number)
    said = "the lighthouse: no such object"
    [line] = prediction["result"]
    assert line["value"]["text"][0].startswith(said)
    editor.open_task(project.id, number)
    wait_for("the line", lambda: any(line.startswith(said) for line in editor.texts()), 20)
    editor.screenshot(SHOTS / "empty.png")
    annotation = editor.submit()
    assert annotation["result"] == []
    assert annotation["parent_prediction"] == prediction["id"]


def test_an_annotator_reads_what_was_thought_beside_a_region(label_studio: LocalLabelStudio, editor: Editor, tmp_path: Path) -> None:
    """The demo model does not think, so that a model of the test does; what it thinks has markup and a line break in it."""
    one = scene(105)
    phrase = "what the dog may drink from"
    project_id = label_studio.create_project("thoughts", DEMO_CONFIG)
    path = save(one.image, tmp_path / "a.png")
    [image] = label_studio.upload(project_id, [path])
    label_studio.import_tasks(project_id, [{"image": image, "description": phrase}])
    [number] = [task["id"] for task in label_studio.api("GET", f"/api/tasks?project={project_id}&fields=all")["tasks"]]
    thought = "A dog drinks water.\nIt is in the <b>bowl</b> on the floor, " + "and so on " * 60
    known = {phrase: dataclasses.replace(grounding(phrase, one.boxes_px[:1].tolist()), note="it was cut off", thought=thought)}
    pipeline = Pipeline(FakeGrounder(known), FakeSegmenter(), Options("reason"))
    asked = bulk_question(Task(number, {"image": image, "description": phrase}), read_label_config(DEMO_CONFIG), "description")
    answerer = Answerer(Settings(home=tmp_path), Metrics(), Edges(tmp_path))
    answer, _ = answerer.write(answerer.look(pipeline, LoadedImage(one.image, "0" * 64), asked), asked, "key", 0.0, None)
    label_studio.api("POST", "/api/predictions", json={**json.loads(answer), "task": number})
    editor.open_task(project_id, number, regions=1)
    shown = " ".join(editor.details().split())
    editor.screenshot(SHOTS / "thought.png")
    assert "it was cut off; thought: A dog drinks water. It is in the <b>bowl</b> on the floor, and so on" in shown
    annotation = editor.submit()
    [mask] = [region for region in annotation["result"] if region["type"] == "brushlabels"]
    assert (mask["origin"], mask["meta"]["text"]) == ("prediction", json.loads(answer)["result"][0]["meta"]["text"])


def test_a_task_that_was_predicted_on_opening_can_be_submitted_after_its_duplicate_is_gone(
    project: Project, editor: Editor, tmp_path: Path
) -> None:
    one = scene(104)
    [number] = fill(project, (save(one.image, tmp_path / "a.png"), one.expressions[0].phrase))
    editor.open_task(project.id, number, regions=1)
    editor.page.wait_for_timeout(8_000)
    assert len(project.predictions(number)) == 1
    annotation = editor.submit()
    assert annotation["parent_prediction"] == project.predictions(number)[0]["id"]
    assert annotation["result"]
