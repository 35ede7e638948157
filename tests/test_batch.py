"""Bulk runs on fakes: what is answered equals what the server gives, and no task twice, whatever happens in between."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from backend.batch import work
from backend.batch.run import Pusher, Tally, run
from backend.batch.steps import local_stages
from backend.batch.store import opened
from backend.batch.work import BatchTask, ProjectSource, ProjectWork, Shard
from backend.errors import FetchError, LabelStudioError
from backend.label_studio import push as pushing
from backend.label_studio.label_config import read_label_config
from backend.label_studio.parameters import read_parameters
from backend.label_studio.wire import PredictRequest
from tests.backend_fakes import CONFIG, FakeImages, house, settings
from tests.bulk_fakes import PROJECT, VERSION, BulkServer, PlainWork, fake_pipeline

IMPORT = f"POST /api/projects/{PROJECT}/import/predictions"
KEY = SecretStr("a-token")
WHOLE = Shard()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(pushing, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(work, "CHECK_SECONDS", 0.0)


def bulk(folder: Path, server: BulkServer, asked: Any = None, shard: Shard = WHOLE, part: int = 2, stop_after: int = 10**9) -> Tally:
    """A run over the server's tasks; ``stop_after`` so many results it is asked to stop."""
    asked = asked or PlainWork()
    stop = threading.Event()

    def show(tally: Tally, left: int) -> None:
        assert left >= 0
        if tally.done >= stop_after:
            stop.set()

    source = ProjectSource(server.client(), PROJECT, shard)
    with opened(folder / shard.name, part) as store:
        sink = Pusher(server.client(), PROJECT, VERSION, store, stop)
        stages = local_stages(fake_pipeline(), asked, source)
        return run(source, VERSION, asked, stages, store, sink, notes=None, show=show, stop=stop)


def test_every_task_gets_one_prediction(tmp_path: Path) -> None:
    server, asked = BulkServer.of(7), PlainWork()
    tally = bulk(tmp_path, server, asked)
    assert (tally.done, tally.pushed.new) == (7, 7)
    assert server.having(VERSION) == dict.fromkeys(range(1, 8), 1)
    again = bulk(tmp_path, server, asked)
    assert (again.kept, again.done, again.pushed.new) == (7, 0, 0)
    assert sorted(asked.worked) == list(range(1, 8))


def test_shards_share_the_tasks_whatever_is_added(tmp_path: Path) -> None:
    server = BulkServer.of(10)
    works = [PlainWork(), PlainWork(), PlainWork()]
    for index in range(3):
        bulk(tmp_path, server, works[index], Shard(index + 1, 3))
    server.tasks |= BulkServer.of(5, 11).tasks
    for index in range(3):
        bulk(tmp_path, server, works[index], Shard(index + 1, 3))
    assert server.having(VERSION) == dict.fromkeys(range(1, 16), 1)
    assert [sorted(one.worked) for one in works] == [[1, 4, 7, 10, 13], [2, 5, 8, 11, 14], [3, 6, 9, 12, 15]]


def test_who_is_stopped_goes_on(tmp_path: Path) -> None:
    server, asked = BulkServer.of(9), PlainWork()
    assert bulk(tmp_path, server, asked, stop_after=5).stopped
    assert server.having(VERSION) == dict.fromkeys(asked.worked, 1)
    assert not bulk(tmp_path, server, asked).stopped
    assert sorted(asked.worked) == list(range(1, 10))
    assert server.having(VERSION) == dict.fromkeys(range(1, 10), 1)


KILLS = ("POST answered", "POST not answered", "GET /api/tasks/", "publish", "append_line", "replace_file")


@pytest.mark.parametrize("where", KILLS)
@pytest.mark.parametrize("time", [1, 2, 3])
def test_killed_anywhere_no_task_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, time: int) -> None:
    """The process ends at a step; what it had asked of Label Studio may have happened or not."""
    server, asked = BulkServer.of(9), PlainWork()
    passes = [time]

    class Killed(BaseException):
        pass

    def here(name: str) -> None:
        if name == where:
            passes[0] -= 1
            if passes[0] == 0:
                raise Killed

    def fail(line: str, request: httpx.Request) -> httpx.Response | None:
        if line == IMPORT:
            here("POST not answered")
        here(line)
        return None

    server.fail = fail
    server.after = lambda line: here("POST answered") if line == IMPORT else None
    from backend.batch import store as module  # noqa: PLC0415

    with monkeypatch.context() as patch:
        for name in ("publish", "append_line", "replace_file"):
            real = getattr(module, name)

            def step(*arguments: Any, name: str = name, real: Callable[..., None] = real) -> None:
                here(name)
                real(*arguments)

            patch.setattr(module, name, step)
        try:
            bulk(tmp_path, server, asked)
        except Killed:
            pass
        else:
            assert passes[0] > 0  # it did not come to that
    server.fail, server.after = (lambda line, request: None), (lambda line: None)
    bulk(tmp_path, server, asked)
    assert server.having(VERSION) == dict.fromkeys(range(1, 10), 1)
    assert sorted(asked.worked) == list(range(1, 10))


@pytest.mark.parametrize("status", [401, 404], ids=["the token was revoked", "the project was deleted"])
@pytest.mark.parametrize("line", [IMPORT, "GET /api/tasks/"])
def test_label_studio_refuses_in_the_middle(tmp_path: Path, status: int, line: str) -> None:
    server, asked = BulkServer.of(9), PlainWork()
    server.fail = lambda now, request: httpx.Response(status, json={"detail": "no"}) if now == line and server.asked[line] > 1 else None
    with pytest.raises(LabelStudioError, match=str(status)):
        bulk(tmp_path, server, asked)
    server.fail = lambda now, request: None
    bulk(tmp_path, server, asked)
    assert server.having(VERSION) == dict.fromkeys(range(1, 10), 1)
    assert sorted(asked.worked) == list(range(1, 10))


def test_a_revoked_key_does_not_fail_task_after_task(tmp_path: Path) -> None:
    server, asked = BulkServer.of(9), PlainWork()
    server.fail = lambda line, request: httpx.Response(401) if line == f"GET /api/projects/{PROJECT}/" else None

    class NoImages(PlainWork):
        def loader(self) -> Callable[[BatchTask], Any]:
            def load(job: BatchTask) -> Any:
                raise FetchError("Label Studio answered 401 instead of the image")

            return load

    with pytest.raises(LabelStudioError, match="does not take the token"):
        bulk(tmp_path, server, NoImages())
    server.fail = lambda line, request: None
    assert sum(bulk(tmp_path, server, NoImages()).failed.values()) == 9  # Label Studio is well: it is the images
    bulk(tmp_path, server, asked)
    assert sorted(asked.worked) == list(range(1, 10))


def test_a_restart_of_label_studio_is_waited_for(tmp_path: Path) -> None:
    server = BulkServer.of(6)
    server.fail = lambda line, request: httpx.Response(502) if sum(server.asked.values()) % 3 == 0 else None
    assert bulk(tmp_path, server).done == 6
    assert server.having(VERSION) == dict.fromkeys(range(1, 7), 1)


def test_a_part_that_was_cut_short_is_not_pushed_twice(tmp_path: Path) -> None:
    server = BulkServer.of(6)
    bulk(tmp_path, server)
    part = next((tmp_path / "shard-1-of-1").glob("part-000002.jsonl"))
    part.write_bytes(part.read_bytes()[:-30])
    bulk(tmp_path, server)
    assert server.having(VERSION) == dict.fromkeys(range(1, 7), 1)


def test_what_was_deleted_in_label_studio_is_asked_again(tmp_path: Path) -> None:
    server, asked = BulkServer.of(4), PlainWork()
    bulk(tmp_path, server, asked)
    server.predictions = [one for one in server.predictions if one["task"] != 3]
    bulk(tmp_path, server, asked)
    assert server.having(VERSION) == dict.fromkeys(range(1, 5), 1)
    assert sorted(asked.worked) == [1, 2, 3, 3, 4]


def test_a_task_that_fails_stays_open(tmp_path: Path) -> None:
    server = BulkServer.of(5)
    tally = bulk(tmp_path, server, PlainWork(dead=(2, 4)))
    assert (tally.done, sum(tally.failed.values()), list(tally.first.values())) == (3, 2, [2])
    assert bulk(tmp_path, server).done == 2
    assert server.having(VERSION) == dict.fromkeys(range(1, 6), 1)


def test_another_question_is_another_answer(tmp_path: Path) -> None:
    """A key that was not pushed yet: the task's data was edited after it was worked out."""
    server, asked = BulkServer.of(2), PlainWork()
    bulk(tmp_path, server, asked)
    server.predictions.clear()
    server.tasks[1] = {"image": "/data/upload/1-100x80.png", "description": "the dog"}
    bulk(tmp_path, server, asked)
    assert server.having(VERSION) == {1: 1, 2: 1}


PARAMETERS = [{}, {"prompts": {"Cup": "the left cup"}, "strategy": "box"}, {"field": "image"}]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=["", "parameters", "another field"])
@pytest.mark.parametrize("description", ["the left cup", ["the left cup", "the dog"], {"Dog": "all cups"}, "the moon", None], ids=str)
def test_a_prediction_is_that_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, description: Any, parameters: dict[str, Any]
) -> None:
    where = house(tmp_path / "server")
    raw = {"id": 5, "data": {"image": "/data/upload/5-100x80.png", "description": description}}
    try:
        where.service.note_parameters(PROJECT, parameters, read_label_config(CONFIG))
        [answer] = where.service.predictor.predict(PredictRequest([raw], PROJECT, CONFIG))
        [*served] = where.service.corrections.served(PROJECT, 5)
    finally:
        where.service.close(5.0)
    monkeypatch.setattr(work, "image_store", lambda *_: FakeImages())
    given = settings(tmp_path, label_studio_url="http://ls:8080", label_studio_api_key=KEY)
    asked = ProjectWork(given, PROJECT, CONFIG, read_parameters(parameters))
    job = BatchTask(5, raw["data"])
    found = asked.answerer()(fake_pipeline(), job, asked.loader()(job), 0.0)
    assert found.result == json.loads(answer)
    assert {one.region: replace(one, time=0.0) for one in found.served} == {one.region: replace(one, time=0.0) for one in served}
