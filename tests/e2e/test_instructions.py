"""The printed instructions walked in Label Studio's editor, and what is learned of it. Screenshots are left in ``out/e2e``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import numpy as np
import pytest

from backend.corrections.log import CorrectionLog
from backend.corrections.reviews import Review, read_reviews
from backend.label_studio.click_help import ACCEPT, ADD, BOX, ELSEWHERE, SWITCH, TAKE_AWAY
from backend.label_studio.config_template import DEMO_CONFIG
from benchmarks.waiting import wait_for
from sam4mllm.demo.scenes import DemoScene
from sam4mllm.run_lengths import from_rle
from tests.e2e.conftest import BackendServer
from tests.e2e.test_backend import Mask, Project, drawn, fill, mask_of, project, save, scene
from tests.e2e.test_commands import COMMAND

if TYPE_CHECKING:
    from tests.e2e.editor import Editor

__all__ = ["project"]
ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "out" / "e2e"


class Ready(NamedTuple):
    """A task with its mask in the editor: what was served, and the scene."""

    project: Project
    number: int
    scene: DemoScene
    phrase: str
    regions: list[dict[str, Any]]
    image: Path

    @property
    def mask(self) -> Mask:
        return mask_of(self.regions[0])

    def percent(self, x: float, y: float) -> tuple[float, float]:
        height, width = self.mask.shape
        return (x + 0.5) / width * 100, (y + 0.5) / height * 100


@pytest.fixture
def ready(project: Project, editor: Editor, tmp_path: Path) -> Ready:
    """A task with one mask, opened."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    for index in range(110, 120):
        one = scene(index)
        phrase = one.expressions[0].phrase
        image = save(one.image, tmp_path / f"{index}.png")
        number = fill(project, (image, phrase))[-1]
        project.studio.retrieve_predictions(project.id)
        [prediction] = project.predictions(number)
        found = Ready(project, number, one, phrase, drawn(prediction["result"]), image)
        if len(found.regions) == 1 and beside(found) is not None and elsewhere(found) is not None:
            editor.open_task(project.id, number, regions=1)
            return found
    raise AssertionError("no scene has one mask, with room beside it and another thing")


def middle(mask: Mask) -> tuple[float, float]:
    """A pixel (x, y) of the mask, near its middle."""
    ys, xs = np.nonzero(mask)
    nearest = np.argmin(np.hypot(xs - xs.mean(), ys - ys.mean()))
    return float(xs[nearest]), float(ys[nearest])


def beside(ready: Ready) -> tuple[float, float] | None:
    """A pixel (x, y) off the mask and within the box around it."""
    ys, xs = np.nonzero(ready.mask)
    window = ~ready.mask[ys.min() : ys.max(), xs.min() : xs.max()]
    if window.sum() < 40:
        return None
    at_y, at_x = np.argwhere(window)[window.sum() // 2]
    return float(at_x + xs.min()), float(at_y + ys.min())


def elsewhere(ready: Ready) -> tuple[float, float] | None:
    """A pixel (x, y) of another thing, a quarter of the mask's size or more away from its box."""
    ys, xs = np.nonzero(ready.mask)
    wide, high = xs.max() - xs.min(), ys.max() - ys.min()
    for mask in ready.scene.masks:
        x, y = middle(mask)
        if not (xs.min() - wide / 4 < x < xs.max() + wide / 4 and ys.min() - high / 4 < y < ys.max() + high / 4):
            return x, y
    return None


def learned(backend_server: BackendServer, ready: Ready, annotation: dict[str, Any]) -> list[Review]:
    """What the log's annotation teaches, once it is there."""

    def of_log() -> list[Review]:
        log = CorrectionLog(backend_server.home / "corrections.sqlite")
        try:
            return [one for one in read_reviews(log, "description").reviews if one.annotation == annotation["id"]]
        finally:
            log.close()

    wait_for("the event", of_log, 60)
    return of_log()


def exported(ready: Ready, folder: Path) -> list[dict[str, Any]]:
    """The dataset of the project's export, by the command."""
    folder.mkdir()
    headers = {"Authorization": f"Token {ready.project.studio.token}"}
    url = f"{ready.project.studio.url}/api/projects/{ready.project.id}/export?exportType=JSON"
    tasks = httpx.get(url, headers=headers, timeout=60, trust_env=False).json()
    (folder / "export.json").write_text(json.dumps(tasks))
    (folder / "label_config.xml").write_text(DEMO_CONFIG)
    (folder / "images").mkdir()
    for task in tasks:
        name = Path(task["data"]["image"]).name
        (folder / "images" / name).write_bytes(ready.image.read_bytes())
    command = [str(COMMAND), "data", "prepare", "label-studio", str(folder), str(folder / "out")]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return [json.loads(line) for line in (folder / "out" / "examples.jsonl").read_text().splitlines()]


def masks_of(annotation: dict[str, Any]) -> list[dict[str, Any]]:
    """Without what has a label and no mask: the answer's line gets one where a mask is selected as it comes."""
    return [region for region in drawn(annotation["result"]) if "rle" in region["value"]]


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [(ADD, "add"), (ADD, "missing part"), (TAKE_AWAY, "take away"), (BOX, "box")],
    ids=["a part on the mask", "a missing part", "a part taken away", "a box"],
)
def test_the_instructions_leave_one_region_of_the_object(
    ready: Ready, editor: Editor, backend_server: BackendServer, tmp_path: Path, sentence: str, kind: str
) -> None:
    from tests.e2e.walking import Walk  # noqa: PLC0415

    name = kind.replace(" ", "-")
    place = beside(ready) if kind == "missing part" else middle(ready.mask)
    assert place is not None
    ys, xs = np.nonzero(ready.mask)
    low, high = ready.percent(float(xs.min()), float(ys.min())), ready.percent(float(xs.max()), float(ys.max()))
    walk = Walk(editor, ready.percent(*place), (low[0], low[1], high[0] - low[0], high[1] - low[1]))
    walk.follow(SWITCH)
    asked = len(editor.asked)
    walk.follow(sentence)
    editor.screenshot(SHOTS / f"correct-{name}-1-suggested.png")
    [pointed] = editor.asked[asked]["context"]["result"]
    assert (pointed["type"], pointed.get("is_positive")) == (
        ("rectanglelabels", None) if kind == "box" else ("keypointlabels", kind != "take away")
    )
    assert any(f"{ready.phrase}: 1 refined" in line for line in editor.texts())
    [suggested] = drawn(editor.suggestions())
    assert suggested["id"] == ready.regions[0]["id"]
    walk.follow(ACCEPT.partition(", and press Submit")[0] + ".")
    editor.screenshot(SHOTS / f"correct-{name}-2-accepted.png")
    assert [region["id"] for region in masks_of({"result": editor.regions()})] == [ready.regions[0]["id"]]
    walk.follow("press Submit.")
    assert walk.annotation is not None
    [final] = masks_of(walk.annotation)
    assert final["value"]["rle"] == suggested["value"]["rle"]
    [review] = learned(backend_server, ready, walk.annotation)
    assert (review.phrase, len(review.instances)) == (ready.phrase, 1)
    [example] = exported(ready, tmp_path / "export")
    assert (example["phrase"], len(example["instances"])) == (ready.phrase, 1)


def test_a_click_on_another_thing_is_not_in_the_dataset_under_the_phrase(
    ready: Ready, editor: Editor, backend_server: BackendServer, tmp_path: Path
) -> None:
    from tests.e2e.walking import Walk  # noqa: PLC0415

    assert "not learned as the description" in ELSEWHERE
    place = elsewhere(ready)
    assert place is not None
    walk = Walk(editor, ready.percent(*place))
    walk.follow(SWITCH)
    walk.follow(ADD)
    editor.screenshot(SHOTS / "elsewhere-1-suggested.png")
    assert any("stands alone" in line for line in editor.texts())
    walk.follow(ACCEPT)
    editor.screenshot(SHOTS / "elsewhere-2-submitted.png")
    assert walk.annotation is not None
    served, foreign = sorted(masks_of(walk.annotation), key=lambda region: region["id"].startswith("~"))
    assert served["id"] == ready.regions[0]["id"]
    assert mask_of(foreign)[int(place[1]), int(place[0])]
    [review] = learned(backend_server, ready, walk.annotation)
    assert (review.phrase, review.outcome, len(review.instances)) == (ready.phrase, "accepted", 1)
    height, width = ready.mask.shape
    assert (from_rle(review.instances[0], height, width) == ready.mask).all()
    [example] = exported(ready, tmp_path / "export")
    assert (example["phrase"], len(example["instances"])) == (ready.phrase, 1)
    assert (from_rle(example["instances"][0]["rle"], height, width) == ready.mask).all()


def test_a_box_drawn_on_the_mask_without_ctrl_leaves_the_editor_whole(
    ready: Ready, editor: Editor, backend_server: BackendServer, tmp_path: Path
) -> None:
    """Such a drag selects the mask, whose id a suggestion then must not have: the old one stays, and is not learned beside the new."""
    from tests.e2e.walking import Walk  # noqa: PLC0415

    x, y = ready.percent(*middle(ready.mask))
    walk = Walk(editor, box=(x - 0.6, y - 0.6, 1.2, 1.2))
    walk.follow(SWITCH)
    walk.follow(BOX.partition(", hold Ctrl")[0] + ".")
    walk._drag()
    editor.screenshot(SHOTS / "inside-1-suggested.png")
    assert any("only the new mask is learned" in line for line in editor.texts())
    walk.follow(ACCEPT)
    assert walk.annotation is not None
    assert len(masks_of(walk.annotation)) == 2
    [review] = learned(backend_server, ready, walk.annotation)
    assert len(review.instances) == 1
    [example] = exported(ready, tmp_path / "export")
    assert len(example["instances"]) == 1
