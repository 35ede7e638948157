"""The last line of doctor and connect: what to do now."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from backend.finding import Finding
from backend.learning.holdout import Holdout, count_missing, standing
from backend.setup.next_step import ProjectProgress, after_connect, after_doctor, ask_progress
from tests.backend_fakes import settings


def test_after_connect_comes_doctor() -> None:
    assert "`sam4mllm doctor 7`" in after_connect(7)


@pytest.mark.parametrize(
    ("corrected", "said", "then"),
    [
        (0, "0 corrected pictures, 0 held out, about 20 more until a run can be judged", "correct masks at http://ls:8080/projects/7/data"),
        (5, "5 corrected pictures, 5 held out, about 15 more until a run can be judged", "correct masks at http://ls:8080/projects/7/data"),
        (
            12,
            "12 corrected pictures, 10 held out, about 8 more until a run can be judged",
            "correct masks at http://ls:8080/projects/7/data",
        ),
        (
            40,
            "40 corrected pictures, 10 held out, a run can be judged",
            "Start Training in Label Studio's Settings → Model, or Train now at http://127.0.0.1:9090",
        ),
    ],
)
def test_what_comes_next_for_so_many_corrections(corrected: int, said: str, then: str, tmp_path: Path) -> None:
    held_out = Holdout(tmp_path).expect(corrected)
    progress = ProjectProgress(50, 50, standing(corrected, held_out), count_missing(corrected, held_out))
    assert progress.standing == said
    line = after_doctor(settings(tmp_path, label_studio_url="http://ls:8080"), 7, [], progress)
    assert line.startswith(f"next: {then}")
    assert said in line


ONE = Finding("token", "it is wrong", "make a new one")


@pytest.mark.parametrize(
    ("project", "found", "progress", "line"),
    [
        pytest.param(7, [ONE], ProjectProgress(3), "make a new one; then `sam4mllm doctor 7`", id="a finding"),
        pytest.param(None, [ONE, ONE], ProjectProgress(), "the first of 2 findings: make a new one; then `sam4mllm doctor`", id="findings"),
        pytest.param(None, [], ProjectProgress(), "`sam4mllm connect PROJECT`", id="no project"),
        pytest.param(7, [], ProjectProgress(), "import pictures at http://ls:8080/projects/7/data", id="no tasks"),
        pytest.param(7, [], ProjectProgress(3), "try six tasks at http://127.0.0.1:9090/try; if the masks are good", id="no masks"),
        pytest.param(7, [], ProjectProgress(3, 1), "correct masks at http://ls:8080/projects/7/data", id="no server"),
    ],
)
def test_what_comes_next(project: int | None, found: list[Finding], progress: ProjectProgress, line: str, tmp_path: Path) -> None:
    assert after_doctor(settings(tmp_path, label_studio_url="http://ls:8080/"), project, found, progress).startswith(f"next: {line}")


@pytest.mark.parametrize(
    ("answer", "progress"),
    [
        pytest.param(httpx.Response(200, json={"standing": "so far", "missing": 3}), ProjectProgress(4, 2, "so far", 3), id="corrections"),
        pytest.param(httpx.Response(200, json={"standing": "", "missing": None}), ProjectProgress(4, 2), id="nothing is trained"),
        pytest.param(httpx.Response(401, json={"error": "no"}), ProjectProgress(4, 2), id="refused"),
        pytest.param(httpx.Response(200, text="no JSON"), ProjectProgress(4, 2), id="another server"),
    ],
)
def test_the_server_says_what_it_has_learned_from(answer: httpx.Response, progress: ProjectProgress, tmp_path: Path) -> None:
    client = httpx.Client(transport=httpx.MockTransport(lambda request: answer))
    assert ask_progress(settings(tmp_path, auth_password="pw"), client, ProjectProgress(4, 2)) == progress
