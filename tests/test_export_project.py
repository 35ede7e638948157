"""``sam4mllm export`` of a project in Label Studio."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from backend.errors import FetchError
from backend.export import tasks as source_tasks
from backend.label_studio.client import LabelStudio
from sam4mllm.cli.main import make_app
from tests.review_fakes import FakeLabelStudio
from tests.test_export import CONFIG, HEIGHT, WIDTH, all_kinds, drawn, ink, read_coco, task
from tests.test_exports import annotation


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (WIDTH, HEIGHT), (9, 0, 0)).save(tmp_path / "cup.png")
    return tmp_path / "cup.png"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, picture: Path) -> FakeLabelStudio:
    fake = FakeLabelStudio()
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://label-studio:8080")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "abc")

    class Pictures:
        def read(self, reference: str, task: int) -> bytes:
            if "none" in reference:
                raise FetchError("Label Studio answered 404 instead of the image")
            return picture.read_bytes()

    monkeypatch.setattr(source_tasks, "LabelStudio", lambda url, token: LabelStudio(url, token, transport=httpx.MockTransport(fake)))
    monkeypatch.setattr(source_tasks, "image_store", lambda *_: Pictures())
    return fake


def test_a_project_is_read_from_label_studio(server: FakeLabelStudio, tmp_path: Path) -> None:
    regions, masks = all_kinds()
    empty = [task(number=number) for number in range(2, 6)]
    gone = task(annotation(ink("g", drawn((1, 1, 20, 20)))), number=9, image="/data/upload/3/none.png")
    server.add(7, task(annotation(*regions)), *empty, gone, config=CONFIG)
    result = CliRunner().invoke(make_app(), ["export", "7", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 1, result.output
    summary = json.loads(result.stdout)
    assert [(one["task"], one["reason"]) for one in summary["lost"]] == [
        (9, "the picture is not there: Label Studio answered 404 instead of the image")
    ]
    assert summary["left_out"]["tasks without an annotation"] == 4
    _, found = read_coco(tmp_path / "out")
    assert {*found} == {*masks, "g"}
    assert all((found[number][0] == mask).all() for number, (mask, _) in masks.items())


def test_a_project_needs_an_address_and_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, needed in (("LABEL_STUDIO_URL", "http://label-studio:8080"), ("LABEL_STUDIO_API_KEY", "")):
        monkeypatch.delenv(name, raising=False)
        result = CliRunner().invoke(make_app(), ["export", "7", str(tmp_path / "out")])
        assert (result.exit_code, name in str(result.exception)) == (1, True)
        monkeypatch.setenv(name, needed)
