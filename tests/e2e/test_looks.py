"""What webhooks missed is found in a real Label Studio, beside predictions of our own, of which none is downloaded.

It is started in another time zone than UTC; Label Studio 1.23.2 works in UTC for all that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.corrections.log import CorrectionLog
from backend.corrections.reconcile import Reconciled, reconcile
from backend.demo.launch import find_label_studio
from backend.demo.local_label_studio import LocalLabelStudio
from backend.label_studio.client import LabelStudio

CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image"><Label value="Cup"/></BrushLabels>'
    '<RectangleLabels name="box" toName="image"><Label value="Cup"/></RectangleLabels></View>'
)
TASKS, ANNOTATED = 300, 40
SECRET = "a mark in each prediction"


@pytest.fixture(scope="module")
def new_york(label_studio_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLabelStudio]:
    folder = shutil.copytree(label_studio_data, tmp_path_factory.mktemp("new-york") / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        with LocalLabelStudio(find_label_studio(), folder) as running:
            yield running


class Team:
    """A project, what is done to it, and a client that keeps what it is answered."""

    def __init__(self, label_studio: LocalLabelStudio) -> None:
        self.label_studio = label_studio
        self.project = label_studio.create_project("the team's", CONFIG)
        label_studio.import_tasks(self.project, [{"image": f"https://example.com/{index}.png"} for index in range(TASKS)])
        listed = label_studio.api("GET", f"/api/tasks/?project={self.project}&page_size={TASKS}")
        self.tasks = [task["id"] for task in listed["tasks"]]
        self.answers: list[str] = []
        self.paths: list[str] = []
        wire = self._wire = httpx.HTTPTransport()

        def heard(request: httpx.Request) -> httpx.Response:
            answer = wire.handle_request(request)
            answer.read()
            self.answers.append(answer.text)
            self.paths.append(request.url.path)
            return answer

        self.client = LabelStudio(label_studio.url, label_studio.token, transport=httpx.MockTransport(heard))

    def close(self) -> None:
        self.client.close()
        self._wire.close()

    def annotate(self, task: int, x: float, skipped: bool = False) -> int:
        body = {"result": [] if skipped else [rectangle(x)], "was_cancelled": skipped, "lead_time": 2.0}
        return int(self.label_studio.api("POST", f"/api/tasks/{task}/annotations/", json=body)["id"])

    def edit(self, annotation: int, x: float) -> None:
        self.label_studio.api("PATCH", f"/api/annotations/{annotation}/", json={"result": [rectangle(x)]})

    def delete(self, annotation: int) -> None:
        self.label_studio.api("DELETE", f"/api/annotations/{annotation}/")

    def delete_of(self, *tasks: int) -> None:
        self._act("delete_tasks_annotations", tasks)

    def delete_tasks(self, *tasks: int) -> None:
        self._act("delete_tasks", tasks)

    def _act(self, action: str, tasks: tuple[int, ...]) -> None:
        chosen = {"selectedItems": {"all": False, "included": list(tasks)}}
        self.label_studio.api("POST", f"/api/dm/actions?id={action}&project={self.project}", json=chosen)

    def predict(self) -> None:
        """As a batch of ours does, for every task."""
        predictions = [{"task": task, "result": [rectangle(3) | {"id": SECRET}], "model_version": "demo-0-00000000"} for task in self.tasks]
        self.label_studio.api("POST", f"/api/projects/{self.project}/import/predictions", json=predictions)

    def truth(self) -> dict[int, tuple[int, bool, list[float]]]:
        """By annotation its task, whether it was skipped, and where its rectangles are, asked in full."""
        path = f"/api/tasks/?project={self.project}&fields=all&page_size={TASKS}"
        told = [one for task in self.label_studio.api("GET", path)["tasks"] for one in task["annotations"]]
        return {one["id"]: (one["task"], one["was_cancelled"], places(one["result"])) for one in told}


def rectangle(x: float) -> dict[str, Any]:
    value = {"x": x, "y": 10, "width": 10, "height": 10, "rotation": 0, "rectanglelabels": ["Cup"]}
    return {"id": f"r{x}", "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value}


def places(result: list[dict[str, Any]]) -> list[float]:
    return [one["value"]["x"] for one in result]


def known(log: CorrectionLog) -> dict[int, tuple[int, bool, list[float]]]:
    return {one.id: (one.task, one.state == "skipped", places(one.body["result"])) for one in log.annotations()}


@pytest.mark.timeout(600)
def test_each_change_is_found_and_no_prediction_is_downloaded(new_york: LocalLabelStudio, tmp_path: Path) -> None:
    team, log = Team(new_york), CorrectionLog(tmp_path / "corrections.sqlite")

    def look() -> Reconciled:
        team.paths.clear()
        found = reconcile(log, team.client, [team.project])
        assert found.problem == ""
        assert known(log) == team.truth()
        return found

    made = [team.annotate(task, x=index % 50, skipped=index % 8 == 7) for index, task in enumerate(team.tasks[:ANNOTATED])]
    assert look().annotations == ANNOTATED
    assert look() == Reconciled(1, 0, 0)
    assert len(team.paths) == 4
    made.append(team.annotate(team.tasks[100], 7))
    assert look() == Reconciled(1, 1, 0)
    team.edit(made[0], 44)
    team.predict()
    assert look() == Reconciled(1, 1, 0)
    team.delete(made[1])
    assert look() == Reconciled(1, 0, 1)
    team.delete_of(*team.tasks[4:9])
    assert look() == Reconciled(1, 0, 5)
    team.edit(made[20], 41)
    team.delete_tasks(*team.tasks[10:12], team.tasks[200])
    assert look() == Reconciled(1, 1, 2)
    assert look() == Reconciled(1, 0, 0)
    assert len(team.paths) == 4
    assert not any(SECRET in answer for answer in team.answers)
    assert SECRET in json.dumps(new_york.api("GET", f"/api/tasks/?project={team.project}&fields=all"))  # they are there
    log.close()
    team.close()
