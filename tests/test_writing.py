"""Regions, the log and JSON are made on a thread of their own: the models go on meanwhile."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backend.label_studio.wire import PredictRequest
from backend.label_studio.write_regions import to_regions
from backend.serving.writer import WAITING, AnswerWriter
from tests.backend_fakes import CONFIG, PROJECT, House, house, task


@pytest.fixture
def where(tmp_path: Path) -> Iterator[House]:
    made = house(tmp_path, deadline=0.5)
    yield made
    made.service.close(5.0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The first answer is written once this is set."""
    begin, first, made = threading.Event(), [True], to_regions

    def late(*given: Any) -> Any:
        if first:
            first.clear()
            begin.wait(5)
        return made(*given)

    monkeypatch.setattr("backend.serving.answerer.to_regions", late)
    yield begin
    begin.set()


def ask(where: House, number: int) -> Any:
    request = PredictRequest([task(number, description="the dog")], PROJECT, CONFIG, None)
    [answer] = where.service.predictor.predict(request)
    return json.loads(answer)


def test_the_models_answer_the_next_question_while_an_answer_is_written(where: House, slow: threading.Event) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, where, 1)
        wait(lambda: where.segmenter.prompts)
        before = len(where.segmenter.prompts)
        assert where.service.engine.run(lambda _: "free", True, time.monotonic() + 5) == "free"
        second = PredictRequest([task(2, description="the dog", size="90x90")], PROJECT, CONFIG, None)
        assert where.service.predictor.predict(second) == [b"[]"]  # it is found, and stands behind the first
        assert len(where.segmenter.prompts) > before
        assert first.result() == []
    slow.set()
    assert ask(where, 1)["result"]
    wait(lambda: [one.phrase for one in where.service.corrections.served(3, 2)] == ["the dog"])


def test_what_is_found_before_the_server_ends_is_noted(where: House, slow: threading.Event) -> None:
    assert ask(where, 1) == []
    assert where.service.corrections.served(3, 1) == []
    threading.Timer(0.2, slow.set).start()
    noted: list[str] = []
    serve = where.service.corrections.serve
    where.service.corrections.serve = lambda records: (noted.extend(one.phrase for one in records), serve(records))[1]  # type: ignore[method-assign]
    where.service.close(5.0)
    assert noted == ["the dog"]


def wait(ready: Callable[[], object]) -> None:
    until = time.monotonic() + 5
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_an_annotators_answer_does_not_stand_behind_a_batchs(where: House, slow: threading.Event) -> None:
    assert ask(where, 1) == []  # its writing waits
    typed = {"type": "textarea", "from_name": "prompt", "to_name": "image", "value": {"text": ["the dog"]}}
    request = PredictRequest([task(2, size="90x90")], PROJECT, CONFIG, (typed,))
    [answer] = where.service.predictor.predict(request)
    assert len(json.loads(answer)["result"]) > 1
    assert not slow.is_set()


def test_the_models_wait_where_too_many_answers_are_being_written() -> None:
    writer, begin = AnswerWriter(), threading.Event()
    several = [writer.begin(str(number), False, lambda: b"late" if begin.wait(5) else b"") for number in range(WAITING)]
    with ThreadPoolExecutor(1) as pool:
        one_more = pool.submit(writer.begin, "one more", False, lambda: b"more")
        time.sleep(0.05)
        assert not one_more.done()
        assert writer.begin("typed", True, lambda: b"now").result(5) == b"now"
        begin.set()
        assert one_more.result(5).result(5) == b"more"
    assert {answer.result(5) for answer in several} == {b"late"}
    writer.close()
    assert writer.begin("after the end", False, lambda: b"at once").result(0) == b"at once"
    assert writer.coming("after the end") is None
