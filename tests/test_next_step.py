"""The last line of doctor and connect: what to do now."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from backend.learning.holdout import Holdout, count_missing, standing
from backend.setup.next_step import Progress, after_connect, after_doctor, ask_progress
from tests.backend_fakes import settings


def test_after_connect_comes_doctor() -> None:
    assert "`sam4mllm doctor 7`" in after_connect(7)


@pytest.mark.parametrize(
    ("corrected", "said", "then"),
    [
        (0, "0 corrected pictures, 0 held out, about 20 more until a run can be judged", "correct the masks of about 20 more tasks"),
        (5, "5 corrected pictures, 5 held out, about 15 more until a run can be judged", "correct the masks of about 15 more tasks"),
        (12, "12 corrected pictures, 10 held out, about 8 more until a run can be judged", "correct the masks of about 8 more tasks"),
        (40, "40 corrected pictures, 10 held out, a run can be judged", "press Train now at http://127.0.0.1:9090"),
    ],
)
def test_what_comes_next_for_so_many_corrections(corrected: int, said: str, then: str, tmp_path: Path) -> None:
    held_out = Holdout(tmp_path).expect(corrected)
    progress = Progress(50, standing(corrected, held_out), count_missing(corrected, held_out))
    assert progress.standing == said
    line = after_doctor(settings(tmp_path, label_studio_url="http://ls:8080"), 7, False, progress)
    assert line.startswith(f"next: {then}")
    assert said in line


@pytest.mark.parametrize(
    ("project", "found", "progress", "line"),
    [
        pytest.param(7, True, Progress(3), "do what the first line says, then `sam4mllm doctor 7`", id="findings"),
        pytest.param(None, True, Progress(), "do what the first line says, then `sam4mllm doctor`", id="findings without a project"),
        pytest.param(None, False, Progress(), "`sam4mllm connect PROJECT`", id="no project"),
        pytest.param(7, False, Progress(), "import pictures at http://ls:8080/projects/7/data", id="no tasks"),
        pytest.param(7, False, Progress(3), "open a task at http://ls:8080/projects/7/data", id="no server"),
    ],
)
def test_what_comes_next(project: int | None, found: bool, progress: Progress, line: str, tmp_path: Path) -> None:
    assert after_doctor(settings(tmp_path, label_studio_url="http://ls:8080/"), project, found, progress).startswith(f"next: {line}")


@pytest.mark.parametrize(
    ("answer", "progress"),
    [
        pytest.param(httpx.Response(200, json={"standing": "so far", "missing": 3}), Progress(4, "so far", 3), id="corrections"),
        pytest.param(httpx.Response(200, json={"standing": "", "missing": None}), Progress(4), id="nothing is trained"),
        pytest.param(httpx.Response(401, json={"error": "no"}), Progress(4), id="refused"),
        pytest.param(httpx.Response(200, text="no JSON"), Progress(4), id="another server"),
    ],
)
def test_the_server_says_what_it_has_learned_from(answer: httpx.Response, progress: Progress, tmp_path: Path) -> None:
    client = httpx.Client(transport=httpx.MockTransport(lambda request: answer))
    assert ask_progress(settings(tmp_path, auth_password="pw"), client, 4) == progress
