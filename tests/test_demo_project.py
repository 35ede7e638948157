"""Where the demo's models serve a project that is not the demo's, everybody who may wonder is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backend.label_studio.label_config import read_label_config
from backend.service import build
from backend.serving.leases import Leases
from backend.setup.project_notes import tell_task
from backend.support.demo_project import FILE, demo_notice, note_demo
from backend.web.overview import look
from sam4mllm.pipeline import Pipeline
from tests.backend_fakes import CONFIG, PROJECT, FakeImages, house, settings, task
from tests.fakes import FakeGrounder, FakeSegmenter
from tests.test_predictor import ask, text

BOTH = "the demo's models serve, made for drawn scenes and not for photos; set SAM4MLLM_MODEL and SAM4MLLM_SEGMENTER (docs/which.md)"


@pytest.mark.parametrize(
    ("given", "project", "told"),
    [
        pytest.param({}, 4, BOTH, id="another project"),
        pytest.param({}, PROJECT, "", id="the demo's project"),
        pytest.param({}, None, "", id="the demo's server"),
        pytest.param({"model": "qwen", "segmenter": "vit_h:a.pth"}, 4, "", id="no model of the demo's"),
        pytest.param({"model": "none", "segmenter": "sam3"}, 4, "", id="no model at all"),
        pytest.param({"model": "qwen"}, 4, "the demo's segmenter serves", id="its segmenter"),
        pytest.param({"model": "qwen", "segmenter": "DET+demo"}, 4, "the demo's segmenter serves", id="its segmenter behind a detector"),
        pytest.param({"strategy": "concept", "segmenter": "sam3"}, 4, "", id="its language model is not asked"),
        pytest.param({"segmenter": "vit_h:a.pth"}, 4, "the demo's language model serves", id="its language model"),
    ],
)
def test_which_models_are_the_demos(tmp_path: Path, given: dict[str, Any], project: int | None, told: str) -> None:
    note_demo(tmp_path, PROJECT)
    notice = demo_notice(settings(tmp_path, **given), project)
    assert notice.startswith(told)
    assert bool(notice) == bool(told)
    assert ("SAM4MLLM_MODEL" in notice) == (told != "" and "model" not in given)


@pytest.mark.parametrize("noted", [None, b"", b"three", b"\xff"])
def test_a_home_that_is_no_demos(tmp_path: Path, noted: bytes | None) -> None:
    if noted is not None:
        (tmp_path / FILE).write_bytes(noted)
    assert demo_notice(settings(tmp_path)) == demo_notice(settings(tmp_path), 3) == BOTH


def test_an_annotator_who_finds_nothing_and_the_status_page_are_told(tmp_path: Path) -> None:
    where = house(tmp_path)
    try:
        [found] = ask(where, task(), context=[text("the left cup; the moon")])
        assert found["result"][-1]["value"]["text"] == ["the left cup: 1 found; the moon: no such object"]
        assert look(where.service).demo == ""
        note_demo(tmp_path, 99)
        [empty] = ask(where, task(2), context=[text("the moon")])
        assert empty["result"][-1]["value"]["text"] == [f"the moon: no such object; {BOTH}"]
        assert look(where.service).demo == BOTH
    finally:
        where.service.close(5.0)


@pytest.mark.parametrize(("noted", "told"), [(True, []), (False, [BOTH])])
def test_the_log_says_so_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture, noted: bool, told: list[str]) -> None:
    if noted:
        note_demo(tmp_path, PROJECT)
    service = build(settings(tmp_path), lambda _: Leases(Pipeline(FakeGrounder({}), FakeSegmenter(), slug="fake")), FakeImages())
    service.start()
    service.close(5.0)
    assert [record.message for record in caplog.records if "demo's" in record.message] == told


@pytest.mark.parametrize(
    ("data", "told"),
    [
        pytest.param(
            [{"description": "the cup; the moon"}],
            ["task 1 is asked for 'the cup' (label Cup), 'the moon' (no label): its 'description'"],
            id="its own",
        ),
        pytest.param(
            [{"caption": "a cup of tea", "id": "A 17/3", "file": "big picture.png"}, {"caption": "two dogs"}, {}],
            [
                "task 1 is asked for 'Cup' (label Cup), 'Dog' (label Dog): the labels' names, for it has no 'description'",
                "2 of 3 tasks have a text under 'caption'; if it names what to mask, "
                """`sam4mllm connect 7 --parameters '{"field": "caption"}'` asks for it in the place of the labels""",
            ],
            id="a caption",
        ),
        pytest.param(
            [{"where": "a shelf"}, {}, {}],
            ["task 1 is asked for 'Cup' (label Cup), 'Dog' (label Dog): the labels' names, for it has no 'description'"],
            id="too few have it",
        ),
        pytest.param(
            [{}, {"description": "a cup of tea", "Alt text": "a cup"}, {"description": "two dogs", "Alt text": "some dogs"}],
            [
                "task 1 is asked for 'Cup' (label Cup), 'Dog' (label Dog): the labels' names, for it has no 'description'",
                "2 of 3 tasks have a text under 'Alt text'; if it names what to mask, "
                """`sam4mllm connect 7 --parameters '{"field": "Alt text"}'` asks for it in the place of the labels""",
            ],
            id="not the field that is set",
        ),
        pytest.param(
            [{"description": 1e30}, {"description": "dog"}], ["task 2 is asked for 'dog' (label Dog): its 'description'"], id="broken"
        ),
        pytest.param([], [], id="no task"),
    ],
)
def test_what_would_be_asked_of_a_task(data: list[dict[str, Any]], told: list[str]) -> None:
    tasks = [task(number, **one) for number, one in enumerate(data, 1)]
    assert tell_task(read_label_config(CONFIG), tasks, "description", 7) == told
