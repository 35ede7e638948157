"""Bulk runs from the command line: projects, folders, shards, Ray, and what is said meanwhile."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from backend.batch import shards, work
from backend.batch.folder import FolderSource, FolderWork
from backend.batch.run import Nowhere, Tally, run
from backend.batch.shards import BatchPlan, read_shard, run_batch
from backend.batch.steps import local_stages
from backend.batch.store import opened
from backend.batch.view import View, duration
from backend.batch.work import BatchTask, ProjectSource, Shard
from backend.corrections.log import CorrectionLog
from backend.errors import BatchError
from backend.label_studio import push as pushing
from sam4mllm.cli.main import make_app
from sam4mllm.data.examples import EXAMPLES
from sam4mllm.data.read_dataset import read_examples
from tests.backend_fakes import FakeImages, settings
from tests.bulk_fakes import PROJECT, VERSION, BulkServer, PlainWork, fake_pipeline, write_pictures
from tests.test_batch import KEY, WHOLE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(pushing, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(work, "CHECK_SECONDS", 0.0)


@pytest.fixture
def fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "load_serving", lambda *_: fake_pipeline())


def test_a_project_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_models: None) -> None:
    server = BulkServer.of(3)
    server.tasks[2]["image"] = "dead"
    monkeypatch.setattr(shards, "LabelStudio", lambda url, token: server.client(token))
    monkeypatch.setattr(work, "image_store", lambda *_: FakeImages())
    for name, value in {"LABEL_STUDIO_URL": "http://ls:8080", "LABEL_STUDIO_API_KEY": "key", "SAM4MLLM_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(make_app(), ["batch", str(PROJECT), "--part", "1", "--json"])
    assert isinstance(result.exception, BatchError)
    assert "1 task without an answer; the same command goes on" in str(result.exception)
    summary = json.loads(result.stdout)
    assert (summary["done"], summary["failed"], summary["pushed"], summary["reasons"][0]["first"]) == (2, 1, 2, 2)
    assert server.having(summary["version"]) == {1: 1, 3: 1}
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    assert [one.phrase for one in log.served(PROJECT, 1)] == ["the left cup"]
    log.close()
    server.tasks[2]["image"] = "/data/upload/2-100x80.png"
    result = CliRunner().invoke(make_app(), ["batch", str(PROJECT), "--part", "1"])
    assert result.exit_code == 0
    assert "2 tasks done before" in result.stdout
    server.entries = [{"id": 1, "url": "http://me:9090", "title": "SAM4MLLM", "extra_params": {"field": 1}}]
    result = CliRunner().invoke(make_app(), ["batch", str(PROJECT)])
    assert "the extra parameters of project 3 cannot be used: field must be a key" in str(result.exception)


def test_a_folder_of_pictures(tmp_path: Path, fake_models: None) -> None:
    write_pictures(tmp_path / "pictures", 5)
    lines: list[str] = []
    for shard in ("1/2", "2/2"):
        plan = BatchPlan(tmp_path / "pictures", tmp_path / "out", read_shard(shard), ("the left cup", " the  moon "))
        lines += Path(run_batch(plan, settings(tmp_path))["results"]).read_text().splitlines()
    assert len(lines) == 10
    (tmp_path / "pictures" / EXAMPLES).write_text("\n".join(lines))
    examples = read_examples(tmp_path / "pictures")
    assert {(one.phrase, len(one.instances), one.split) for one in examples} == {
        ("the left cup", 1, "predicted"),
        ("the moon", 0, "predicted"),
    }
    assert {one.image for one in examples} == {"0.png", "2.png", "4.png", "more/1.png", "more/3.png"}
    # it is a dataset now: its own phrases are asked
    summary = run_batch(BatchPlan(tmp_path / "pictures", tmp_path / "again"), settings(tmp_path))
    assert sorted(Path(summary["results"]).read_text().splitlines()) == sorted(lines)


def test_a_picture_that_changed_is_asked_again(tmp_path: Path, fake_models: None) -> None:
    write_pictures(tmp_path / "pictures", 3)
    plan = BatchPlan(tmp_path / "pictures", tmp_path / "out", phrases=("the dog",))
    assert run_batch(plan, settings(tmp_path))["done"] == 3
    (tmp_path / "pictures" / "0.png").write_bytes((tmp_path / "pictures" / "2.png").read_bytes())
    summary = run_batch(plan, settings(tmp_path))
    assert summary["done"] == 1
    assert len(Path(summary["results"]).read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("target", "phrases", "given", "message"),
    [
        pytest.param("missing", (), {}, "is no folder", id="no folder"),
        pytest.param("plain", (), {}, "no dataset: .* --phrase", id="no phrase"),
        pytest.param("plain", (" ",), {}, "phrase is empty", id="empty phrase"),
        pytest.param("empty", ("cup",), {}, "has no picture", id="no picture"),
        pytest.param(3, (), {}, "set LABEL_STUDIO_URL", id="no address"),
        pytest.param(3, (), {"label_studio_url": "http://127.0.0.1:9"}, "set LABEL_STUDIO_URL", id="no key"),
        pytest.param(
            3, (), {"label_studio_url": "http://127.0.0.1:9", "label_studio_api_key": KEY}, "cannot be reached", id="wrong address"
        ),
        pytest.param(
            3, ("a",), {"label_studio_url": "http://127.0.0.1:9", "label_studio_api_key": KEY}, "for folders", id="phrase of a project"
        ),
    ],
)
def test_what_cannot_be_is_said_before_models_are_loaded(
    tmp_path: Path, target: str | int, phrases: tuple[str, ...], given: dict[str, Any], message: str
) -> None:
    write_pictures(tmp_path / "plain", 1)
    (tmp_path / "empty").mkdir()
    where = target if isinstance(target, int) else tmp_path / target
    with pytest.raises(Exception, match=message) as caught:
        run_batch(BatchPlan(where, tmp_path / "out", phrases=phrases), settings(tmp_path, **given))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/2/3", "a/b", "-1/2", "1/0"])
def test_a_shard_that_is_none(tmp_path: Path, text: str) -> None:
    result = CliRunner().invoke(make_app(), ["batch", str(tmp_path), "--shard", text, "--phrase", "cup"])
    assert result.exit_code == 2
    assert "no shard" in result.stderr


def test_tasks_are_in_one_shard_each(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 20)
    sources = [FolderSource(tmp_path / "p", Shard(index, 3), ("cup",)) for index in (1, 2, 3)]
    names = [job.data["image"] for source in sources for job in source.jobs(VERSION)]
    assert len(names) == len(set(names)) == 20
    assert all(source.left() == 0 for source in sources)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("backend.batch.view.LINE_SECONDS", -1.0)
    with View("project 7") as view:
        view.show(Tally(kept=10, done=20, began=-1.0), 70)
    assert "project 7: 30 of 100 tasks" in capsys.readouterr().err


def test_without_ray_there_is_a_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backend.batch import on_ray  # noqa: PLC0415

    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(on_ray, "import_module", missing)
    with pytest.raises(BatchError, match=r"pip install 'sam4mllm\[ray\]'"):
        on_ray.ray_stages(fake_pipeline, settings(tmp_path), PlainWork())


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    import ray as module  # noqa: PLC0415

    yield module
    module.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_gives_the_same(tmp_path: Path, ray: Any) -> None:
    from backend.batch.on_ray import ray_stages  # noqa: PLC0415

    write_pictures(tmp_path / "pictures", 9)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    given = settings(tmp_path)
    asked = FolderWork(given, tmp_path / "pictures")

    def results(name: str, make: Callable[[FolderSource], tuple[str, Any]]) -> tuple[str, dict[int, object], dict[str, int]]:
        source = FolderSource(tmp_path / "pictures", Shard(), ("the left cup", "the moon"))
        version, stages = make(source)
        with opened(tmp_path / name, 4) as store:
            stop = threading.Event()
            tally = run(source, version, asked, stages, store, Nowhere(), notes=None, show=lambda *_: None, stop=stop)
            return version, store.results(), dict(tally.failed)

    here = results("here", lambda source: (fake_pipeline().version, local_stages(fake_pipeline(), asked, source)))
    there = results("there", lambda source: ray_stages(partial(fake_pipeline), given, asked))
    assert there == here
    assert len(there[1]) == 9
    assert sum(there[2].values()) == 1


# -- what is told of a run -----------------------------------------------------------------------------------------------------------------


def greedy(jobs: Iterator[BatchTask], stages: Callable[[Iterator[BatchTask]], Iterator[Any]]) -> Iterator[Any]:
    """As a cluster does: all tasks are taken up before the first has its answer."""
    return stages(iter(list(jobs)))


@pytest.mark.parametrize("kind", ["all at once", "some ahead", "one that fails"])
def test_tasks_in_flight_are_part_of_the_whole(tmp_path: Path, kind: str) -> None:
    server, asked, told = BulkServer.of(7), PlainWork(), []

    def show(tally: Tally, left: int) -> None:
        told.append((tally.done + sum(tally.failed.values()), left))

    source = ProjectSource(server.client(), PROJECT, WHOLE)
    local = local_stages(fake_pipeline(), asked, source)

    def failing(jobs: Iterator[BatchTask]) -> Iterator[Any]:
        for outcome in greedy(jobs, local):
            yield replace(outcome, answered=None, reason="task", message="no") if outcome.job.id == 3 else outcome

    stages = {"all at once": lambda jobs: greedy(jobs, local), "some ahead": local, "one that fails": failing}[kind]
    with opened(tmp_path, 2) as store:
        run(source, VERSION, asked, stages, store, Nowhere(), notes=None, show=show, stop=threading.Event())
    assert [passed for passed, _ in told] == list(range(1, 8))
    assert told[-1] == (7, 0)
    slack = int(kind == "some ahead")  # a task may be on its way from the list to the queue
    assert all(abs(passed + left - 7) <= slack for passed, left in told)


CHATTY = """
import json, os, subprocess, sys
from backend.cli.batch import _result_stream
with _result_stream(alone=True) as stream:
    os.write(1, b"before\\n")
    subprocess.run(["echo", "a worker"])
    print("a library", flush=True)
    print(json.dumps({"done": 1}), file=stream, flush=True)
os.write(1, b"after\\n")
subprocess.run(["echo", "at the end"])
"""


def test_standard_output_is_the_result_alone_whoever_writes_there() -> None:
    done = subprocess.run([sys.executable, "-c", CHATTY], capture_output=True, text=True, check=True)
    assert done.stdout == '{"done": 1}\n'
    for word in ("before", "a worker", "a library", "after", "at the end"):
        assert word in done.stderr
