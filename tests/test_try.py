"""The page to try on: a picture, a task, or tasks side by side; what is wrong is one line, and nothing is kept."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from backend.label_studio.client import LabelStudio
from backend.label_studio.label_config import read_label_config
from backend.web.app import create_app
from tests.backend_fakes import CONFIG, PROJECT, House, house, task

HERE = "http://localhost"


@pytest.fixture
def where(tmp_path: Path) -> Iterator[House]:
    opened = house(tmp_path, label_studio_url="http://ls.example:8080", url="http://me.example:9090")
    yield opened
    opened.service.close(5.0)


@pytest.fixture
def client(where: House) -> FlaskClient:
    return create_app(where.service).test_client()


class Studio:
    """A project with tasks and this server's entry, in memory."""

    def __init__(self, *tasks: dict[str, Any]) -> None:
        self.tasks = [one | {"project": PROJECT} for one in tasks]
        self.entry = {"id": 2, "url": "http://me.example:9090", "title": "SAM4MLLM", "state": "CO", "is_interactive": True}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == f"/api/projects/{PROJECT}/":
            return httpx.Response(200, json={"id": PROJECT, "label_config": CONFIG})
        if path == "/api/tasks/":
            return httpx.Response(200, json={"tasks": self.tasks[: int(request.url.params["page_size"])]})
        if path.startswith("/api/tasks/"):
            found = next((one for one in self.tasks if one["id"] == int(path.split("/")[3])), None)
            return httpx.Response(200, json=found) if found else httpx.Response(404, json={"detail": "Not found."})
        if path == "/api/ml":
            return httpx.Response(200, json=[self.entry])
        if path == "/api/ml/2":
            self.entry |= json.loads(request.content)
            return httpx.Response(200, json=self.entry)
        return httpx.Response(404, json={"detail": "Not found."})


def attach(where: House, *tasks: dict[str, Any]) -> Studio:
    studio = Studio(*tasks)
    where.service.label_studio = LabelStudio("http://ls.example:8080", "a" * 40, transport=httpx.MockTransport(studio))
    return studio


def png(width: int = 100, height: int = 80) -> io.BytesIO:
    packed = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(packed, "PNG")
    packed.seek(0)
    return packed


def send(client: FlaskClient, path: str = "/try", status: int = 200, **fields: Any) -> str:
    [token] = set(re.findall(r'name="token" value="([^"]+)"', client.get("/try", base_url=HERE).get_data(as_text=True)))
    answer = client.post(path, data={"token": token, **fields}, base_url=HERE, content_type="multipart/form-data")
    assert answer.status_code == status
    return answer.get_data(as_text=True)


def test_a_picture_of_ones_own(where: House, client: FlaskClient) -> None:
    page = send(client, phrases="the left cup; the moon", picture=(png(), "a.png"))
    assert page.count("data:image/jpeg;base64,") == 1
    rows = re.findall(r"<tr><td><bdi>([^<]*)</bdi></td><td class=\"number\">([^<]*)</td>", page)
    assert rows == [("the left cup", "1"), ("the moon", "none")]
    assert re.search(r"segmenter \d+\.\d\d s", page)
    assert where.service.corrections.projects() == [], "nothing is kept"


def test_a_strategy_is_tried_without_being_set(where: House, client: FlaskClient) -> None:
    pointed = send(client, phrases="the left cup", picture=(png(), "a.png"), strategy="pqpp")
    boxed = send(client, phrases="the left cup", picture=(png(), "a.png"), strategy="box")
    counts = [re.search(r'<td class="number">(\d+), (\d+), (\d+)</td>', page) for page in (pointed, boxed)]
    assert [sum(map(int, found.groups())) > 0 for found in counts if found] == [True, False]
    assert "<option selected>box</option>" in boxed
    assert where.service.parameters.of(PROJECT).strategy is None


def test_six_tasks_side_by_side_and_one_that_fails(where: House, client: FlaskClient) -> None:
    dead = {"id": 2, "data": {"image": "dead", "description": "the dog"}}
    attach(where, task(1, description="the left cup"), dead, *(task(number) for number in range(3, 9)))
    page = send(client, project=str(PROJECT), strategy="box")
    assert page.count('<section class="card"') == 6
    assert page.count("data:image/jpeg") == 5
    assert "the image host does not answer" in page
    assert "http://ls.example:8080/projects/3/data?task=1" in page
    assert "sam4mllm connect 3 --parameters &#39;{&#34;strategy&#34;: &#34;box&#34;}&#39;" in page
    [row] = re.findall(r"<bdi>(all cups)</bdi>", send(client, project=str(PROJECT), task="3", phrases="all cups"))
    assert row == "all cups"


def test_the_projects_prompts_stay_where_a_strategy_is_set(where: House, client: FlaskClient) -> None:
    studio = attach(where, task(1))
    studio.entry["extra_params"] = {"prompts": {"Cup": ["all cups"], "Dog": None}}
    where.service.note_parameters(PROJECT, studio.entry["extra_params"], read_label_config(CONFIG))
    assert "all cups" in send(client, project=str(PROJECT))
    send(client, "/try/use", 303, project=str(PROJECT), strategy="ppg", threshold="")
    assert studio.entry["extra_params"] == {"prompts": {"Cup": ["all cups"], "Dog": None}, "strategy": "ppg"}
    assert "Project 3 is asked so from now on." in client.get("/try?set=3", base_url=HERE).get_data(as_text=True)


@pytest.mark.parametrize(
    ("fields", "status", "line"),
    [
        pytest.param({}, 400, "choose a picture, or give the number of a project", id="nothing"),
        pytest.param({"picture": b"no picture", "phrases": "a cup"}, 400, "no image of a known format", id="no image"),
        pytest.param({"picture": None}, 400, "say what to find", id="no phrase"),
        pytest.param({"picture": None, "phrases": "x" * 501}, 400, "at most 500", id="a long phrase"),
        pytest.param({"picture": None, "phrases": "a", "threshold": "much"}, 400, "from 0 to 1, not &#39;much&#39;", id="threshold"),
        pytest.param({"picture": None, "phrases": "a", "threshold": "nan"}, 400, "from 0 to 1, not nan", id="no number"),
        pytest.param({"picture": None, "phrases": "a", "strategy": "best"}, 400, "strategy must be one of", id="strategy"),
        pytest.param({"picture": None, "phrases": "a", "strategy": "choose"}, 400, "needs a segmenter", id="not possible"),
        pytest.param({"project": "<b>"}, 400, "by its number", id="no number of a project"),
        pytest.param({"project": "9" * 5000}, 400, "by its number", id="a long number"),
        pytest.param({"project": "3", "task": "2"}, 400, "task 2 is not of project 3", id="another project's task"),
        pytest.param({"project": "99"}, 400, "Label Studio", id="no such project"),
        pytest.param({"project": "3", "task": "77"}, 400, "Label Studio", id="no such task"),
    ],
)
def test_what_is_wrong_is_one_line(where: House, client: FlaskClient, fields: dict[str, Any], status: int, line: str) -> None:
    attach(where, task(1)).tasks.append(task(2) | {"project": 4})
    if "picture" in fields:
        given = fields["picture"]
        fields = fields | {"picture": (png() if given is None else io.BytesIO(given), "a.png")}
    [note] = re.findall(r'<p class="note wrong" role="alert"><bdi>([^\n]*)</bdi></p>', send(client, status=status, **fields))
    assert line in note


def test_a_strangers_page_cannot_ask(where: House, client: FlaskClient) -> None:
    for path in ("/try", "/try/use"):
        answer = client.post(path, data={"phrases": "a", "project": "3"}, base_url=HERE)
        assert answer.status_code == 403
        assert client.post(path, data={"token": "guess"}, headers={"Sec-Fetch-Site": "cross-site"}, base_url=HERE).status_code == 403
    assert where.images.loads == 0


def test_without_label_studio_there_is_a_picture_of_ones_own(tmp_path: Path) -> None:
    opened = house(tmp_path)
    try:
        assert "choose a picture of your own" in send(create_app(opened.service).test_client(), status=400, project="3")
    finally:
        opened.service.close(5.0)
