"""The backend behind a real Label Studio, over HTTP: batch, open task, phrase, clicks, large and turned images, corrections."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image

from backend import brush
from backend.corrections.log import CorrectionLog
from backend.demo.launch import find_label_studio
from backend.demo.local_label_studio import LocalLabelStudio
from backend.label_studio.config_template import DEMO_CONFIG
from benchmarks.waiting import wait_for
from sam4mllm.demo.scenes import DemoScene, make_scene
from tests.e2e.conftest import BackendServer

SEED = 880_101
Mask = np.ndarray[Any, np.dtype[np.bool_]]
SDK_DECODE = """
import json, sys
from label_studio_sdk.converter.brush import decode_rle
json.dump([decode_rle(rle).tolist() for rle in json.load(sys.stdin)], sys.stdout)
"""


class Project(NamedTuple):
    """A project with the backend connected."""

    studio: LocalLabelStudio
    id: int
    backend: int

    def tasks(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.studio.api("GET", f"/api/tasks?project={self.id}&page_size=100&fields=all")["tasks"]
        return sorted(listed, key=lambda one: one["id"])

    def predictions(self, task: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.studio.api("GET", f"/api/predictions?task={task}")
        return found

    def interactive(self, task: int, *regions: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self.studio.api("POST", f"/api/ml/{self.backend}/interactive-annotating", json=_context(task, regions))
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


def _context(task: int, regions: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {"task": task, "context": {"result": list(regions)}}


def scene(index: int, kind: str = "noun") -> DemoScene:
    return make_scene((SEED, index), kinds=[kind])


def save(image: Any, path: Path, **options: Any) -> Path:
    Image.fromarray(image).save(path, **options)
    return path


def drawn(regions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The regions but the line for the annotator."""
    return [region for region in regions if region["type"] == "brushlabels"]


def mask_of(region: dict[str, Any]) -> Mask:
    return brush.decode(region["value"]["rle"], region["original_height"], region["original_width"]) > 127


def texts(phrase: str) -> dict[str, Any]:
    return {"id": "t", "type": "textarea", "from_name": "prompt", "to_name": "image", "value": {"text": [phrase]}, "origin": "manual"}


def keypoint(x: float, y: float, positive: bool = True) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 0.3, "keypointlabels": ["Object"], "labels": ["Object"]}
    return {"type": "keypointlabels", "from_name": "click", "to_name": "image", "is_positive": positive, "value": value}


def rectangle(box: np.ndarray[Any, Any], width: int, height: int) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(side) for side in box / np.array([width, height, width, height]) * 100)
    value = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0, "rectanglelabels": ["Object"]}
    return {"type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value}


@pytest.fixture
def project(label_studio: LocalLabelStudio, backend_server: BackendServer) -> Project:
    number = label_studio.create_project("e2e", DEMO_CONFIG)
    return Project(label_studio, number, label_studio.connect(number, backend_server.url, "SAM4MLLM"))


def fill(project: Project, *tasks: tuple[Path, str]) -> list[int]:
    images = project.studio.upload(project.id, [path for path, _ in tasks])
    project.studio.import_tasks(project.id, [{"image": image, "description": text} for image, (_, text) in zip(images, tasks, strict=True)])
    return [one["id"] for one in project.tasks()]


def test_batch_masks_are_what_the_sdk_reads(project: Project, backend_server: BackendServer, tmp_path: Path) -> None:
    scenes = [scene(index, kind) for index, kind in enumerate(("noun", "plural", "position", "none"))]
    files = [save(one.image, tmp_path / f"{index}.png") for index, one in enumerate(scenes)]
    numbers = fill(project, *((path, one.expressions[0].phrase) for path, one in zip(files, scenes, strict=True)))
    project.studio.retrieve_predictions(project.id)
    found = [project.predictions(number) for number in numbers]
    assert [len(one) for one in found] == [1] * 4
    version = httpx.get(backend_server.url + "/ready").json()["version"]
    assert {one[0]["model_version"] for one in found} == {version}
    regions = [region for one in found for region in drawn(one[0]["result"])]
    assert regions
    read = subprocess.run(
        [str(find_label_studio().with_name("python")), "-c", SDK_DECODE],
        input=json.dumps([region["value"]["rle"] for region in regions]),
        capture_output=True,
        text=True,
        check=True,
    )
    for region, flat in zip(regions, json.loads(read.stdout), strict=True):
        alpha = np.array(flat, np.uint8).reshape(region["original_height"], region["original_width"], 4)[..., 3]
        assert (alpha == brush.decode(region["value"]["rle"], *alpha.shape)).all()
        assert set(np.unique(alpha)) <= {0, 255}


def test_a_task_opened_twice_at_once_is_one_inference_and_one_prediction(
    project: Project, backend_server: BackendServer, tmp_path: Path
) -> None:
    def inferences() -> float:
        text = httpx.get(backend_server.url + "/metrics").text
        lines = [line for line in text.splitlines() if line.startswith('sam4mllm_stage_seconds_count{stage="regions"}')]
        return float(lines[0].split()[1]) if lines else 0.0

    one = scene(10)
    [number] = fill(project, (save(one.image, tmp_path / "a.png"), one.expressions[0].phrase))
    before = inferences()
    with ThreadPoolExecutor(2) as pool:
        opened = list(pool.map(lambda _: project.studio.api("GET", f"/api/tasks/{number}?project={project.id}"), range(2)))
    assert inferences() == before + 1
    results = [prediction["result"] for answer in opened for prediction in answer["predictions"]]
    assert results
    assert all(result == results[0] for result in results)
    wait_for("a single prediction", lambda: len(project.predictions(number)) == 1, 60)


def test_phrase_click_and_rectangle_of_an_annotator(project: Project, tmp_path: Path) -> None:
    one = scene(20)
    expression = one.expressions[0]
    target = one.masks[expression.targets[0]]
    height, width = target.shape
    [number] = fill(project, (save(one.image, tmp_path / "a.png"), ""))
    *_, line = project.interactive(number, texts(expression.phrase))
    assert line["value"]["text"][0].startswith(f"{expression.phrase}: ")
    [boxed] = drawn(project.interactive(number, rectangle(one.boxes_px[expression.targets[0]], width, height)))
    overlap = mask_of(boxed) & target
    assert overlap.sum() / (mask_of(boxed) | target).sum() > 0.6
    ys, xs = np.nonzero(target)
    clicked = drawn(project.interactive(number, keypoint(float(xs.mean()) / width * 100, float(ys.mean()) / height * 100)))
    assert clicked
    assert all(region["origin"] == "prediction" for region in clicked)


def test_turned_and_large_images_have_masks_of_their_shown_size(project: Project, tmp_path: Path) -> None:
    one = scene(30)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter: the stored image is the scene turned back
    stored = Image.fromarray(one.image).transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    large = Image.fromarray(one.image).resize((4000, 3000), Image.Resampling.BILINEAR)
    large.save(tmp_path / "large.jpg", quality=90)
    phrase = one.expressions[0].phrase
    numbers = fill(project, (tmp_path / "turned.jpg", phrase), (tmp_path / "large.jpg", phrase))
    project.studio.retrieve_predictions(project.id)
    height, width = one.image.shape[:2]
    for number, size in zip(numbers, ((width, height), (4000, 3000)), strict=True):
        [prediction] = project.predictions(number)
        for region in drawn(prediction["result"]):
            assert (region["original_width"], region["original_height"]) == size
            assert mask_of(region).any()


def test_a_dead_image_costs_only_its_own_task(project: Project, tmp_path: Path) -> None:
    one = scene(40)
    [image] = project.studio.upload(project.id, [save(one.image, tmp_path / "a.png")])
    phrase = one.expressions[0].phrase
    references = ("http://127.0.0.1:9/dead.png", "file:///etc/passwd", image, "/data/upload/0/missing.png")
    project.studio.import_tasks(project.id, [{"image": reference, "description": phrase} for reference in references])
    project.studio.retrieve_predictions(project.id)
    assert [len(project.predictions(one["id"])) for one in project.tasks()] == [0, 0, 1, 0]


def test_an_annotation_is_stored(project: Project, backend_server: BackendServer, tmp_path: Path) -> None:
    one = scene(50)
    [number] = fill(project, (save(one.image, tmp_path / "a.png"), one.expressions[0].phrase))
    made = project.studio.api("POST", f"/api/tasks/{number}/annotations/", json={"result": []})

    def stored() -> bool:
        events = CorrectionLog(backend_server.home / "corrections.sqlite").events()
        return any(event.action == "ANNOTATION_CREATED" and event.body["annotation"]["id"] == made["id"] for event in events)

    wait_for("the event", stored, 60)


def test_local_files_are_read(label_studio: LocalLabelStudio, project: Project) -> None:
    assert label_studio.local_files is not None
    one = scene(60)
    folder = label_studio.local_files / "pictures"
    folder.mkdir(exist_ok=True)
    save(one.image, folder / "a.png")
    storage = {"project": project.id, "path": str(folder), "use_blob_urls": True, "title": "files"}
    label_studio.api("POST", "/api/storages/localfiles", json=storage)
    data = {"image": "/data/local-files/?d=pictures/a.png", "description": one.expressions[0].phrase}
    label_studio.import_tasks(project.id, [data])
    label_studio.retrieve_predictions(project.id)
    [task] = project.tasks()
    assert len(project.predictions(task["id"])) == 1
