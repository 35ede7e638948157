"""One thread owns the model: order, bounds, deadlines, failures, and equal questions worked on once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from backend.errors import DeadlineError, NotReadyError, QueueFullError
from backend.serving.engine import Engine
from backend.serving.single_flight import SingleFlight
from backend.support.byte_cache import ByteCache
from benchmarks.waiting import wait_for
from sam4mllm.errors import ModelError


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def freed() -> list[Callable[[], None]]:
    """What the engine's ``let_go`` calls, one after the other."""
    return []


@pytest.fixture
def engine(freed: list[Callable[[], None]]) -> Iterator[Engine[str]]:
    def let_go() -> None:
        for one in freed:
            one()

    engine: Engine[str] = Engine(lambda: "model", places=2, let_go=let_go)
    engine.start()
    wait_for("the model", lambda: engine.state == "ready", 5, 0.002)
    yield engine
    engine.close(5.0)


class Gate:
    """Work that begins and then waits to be let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, model: str) -> str:
        self.begun.set()
        assert self.go.wait(5)
        return model


def test_work_gets_the_model_and_its_errors_come_through(engine: Engine[str]) -> None:
    assert engine.run(str.upper, True, soon()) == "MODEL"
    for error in (ValueError("no"), TimeoutError("its own")):
        with pytest.raises(type(error)):
            engine.run(lambda _, error=error: (_ for _ in ()).throw(error), True, soon())
    assert engine.run(str.upper, True, soon()) == "MODEL"


def test_annotators_come_before_batches(engine: Engine[str]) -> None:
    gate, order = Gate(), []
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(engine.run, gate, False, soon())
        gate.begun.wait(5)
        for name, interactive in (("batch 1", False), ("batch 2", False), ("click 1", True), ("click 2", True)):
            before = engine.waiting
            pool.submit(engine.run, lambda _, name=name: order.append(name), interactive, soon())
            wait_for("the place in the queue", lambda before=before: engine.waiting == before + 1, 5, 0.002)
        gate.go.set()
        assert first.result() == "model"
    assert order == ["click 1", "click 2", "batch 1", "batch 2"]


@pytest.mark.parametrize("interactive", [False, True], ids=["a batch", "an annotator's"])
def test_between_its_steps_a_batch_gives_way_to_annotators(engine: Engine[str], interactive: bool) -> None:
    gate, order = Gate(), []

    def click(name: str) -> None:
        engine.give_way()  # the next one waits for the end of this
        order.append(name)
        if name == "click 2":
            raise ValueError("its own")

    def steps(model: str) -> str:
        order.append("first step")
        gate(model)
        engine.give_way()
        order.append("second step")
        engine.give_way()
        return model

    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(engine.run, steps, interactive, soon())
        gate.begun.wait(5)
        asked = []
        for name, kind in (("batch", False), ("click 1", True), ("click 2", True), ("click 3", True)):
            before = engine.waiting
            asked.append(pool.submit(engine.run, lambda _, name=name: click(name), kind, soon()))
            wait_for("the place in the queue", lambda before=before: engine.waiting == before + 1, 5, 0.002)
        gate.go.set()
        assert first.result() == "model"
        assert isinstance(asked[2].exception(), ValueError)
        assert [one.result() for one in (asked[0], asked[1], asked[3])] == [None] * 3
    clicks = ["click 1", "click 2", "click 3"]
    assert order == ["first step", *([] if interactive else clicks), "second step", *(clicks if interactive else []), "batch"]


def test_what_is_past_its_deadline_is_not_begun(engine: Engine[str]) -> None:
    gate, ran = Gate(), []
    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(engine.run, gate, False, soon())
        gate.begun.wait(5)
        with pytest.raises(DeadlineError):
            engine.run(lambda _: ran.append(1), True, soon(0.02))
        gate.go.set()
        blocked.result()
    engine.run(lambda _: None, True, soon())
    assert not ran


def test_places_are_bounded_for_each_kind(engine: Engine[str]) -> None:
    with engine.place(False), engine.place(False):
        with pytest.raises(QueueFullError), engine.place(False):
            pass
        with engine.place(True):
            pass
    with engine.place(False):
        pass


def test_draining_serves_what_is_in_the_house(engine: Engine[str]) -> None:
    gate = Gate()
    with engine.place(False), ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.run, gate, False, soon())
        gate.begun.wait(5)
        engine.drain()
        with pytest.raises(NotReadyError), engine.place(True):
            pass
        gate.go.set()
        assert running.result() == "model"


def test_a_pause_lets_go_of_what_late_work_kept(engine: Engine[str], freed: list[Callable[[], None]]) -> None:
    gate, kept = Gate(), []

    def work(model: str) -> None:
        gate(model)
        kept.append(threading.current_thread())

    freed.append(lambda: kept.remove(threading.current_thread()))
    with pytest.raises(DeadlineError), engine.place(False):
        engine.run(work, False, soon(0.05))
    with ThreadPoolExecutor(1) as pool:
        paused = pool.submit(engine.pause, "a training needs the room", 5.0)
        wait_for("the pause", lambda: engine.state == "paused", 5, 0.002)
        assert not paused.done()
        gate.go.set()
        paused.result()
    assert kept == []
    engine.resume()
    assert engine.run(str.upper, True, soon()) == "MODEL"


def test_a_pause_does_not_go_between_the_steps_of_late_work(engine: Engine[str], freed: list[Callable[[], None]]) -> None:
    gate, order = Gate(), []
    freed.append(lambda: order.append("let go"))

    def steps(model: str) -> None:
        gate(model)
        engine.give_way()
        order.append("late work")

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(DeadlineError):
            engine.run(steps, False, soon(0.05))
        paused = pool.submit(engine.pause, "a training needs the room", 5.0)
        wait_for("the pause in the queue", lambda: engine.waiting == 1, 5, 0.002)
        gate.go.set()
        paused.result()
    assert order == ["late work", "let go"]
    engine.resume()


def test_a_pause_that_cannot_be_is_none(engine: Engine[str], freed: list[Callable[[], None]]) -> None:
    gate = Gate()
    with pytest.raises(DeadlineError), engine.place(False):
        engine.run(gate, False, soon(0.02))
    with pytest.raises(DeadlineError, match="cannot pause"):
        engine.pause("a training needs the room", 0.05)
    gate.go.set()

    def broken() -> None:
        raise RuntimeError("no")

    freed.append(broken)
    with pytest.raises(RuntimeError, match="no"):
        engine.pause("a training needs the room", 5.0)
    assert engine.state == "ready"
    with engine.place(True):
        assert engine.run(str.upper, True, soon()) == "MODEL"


@pytest.mark.parametrize("error", [ModelError("the folder is empty"), RuntimeError("a secret")])
def test_a_model_that_does_not_load_is_said_and_nothing_hangs(error: Exception) -> None:
    def load() -> str:
        time.sleep(0.05)
        raise error

    engine: Engine[str] = Engine(load, 1)
    engine.start()
    with pytest.raises(NotReadyError):
        engine.run(str.upper, True, soon())
    with pytest.raises(NotReadyError):
        engine.run(str.upper, True, soon())
    assert engine.state == "failed"
    assert "a secret" not in engine.failure
    assert ("the folder is empty" in engine.failure) == isinstance(error, ModelError)


def test_closing_says_that_the_models_still_load() -> None:
    loaded = threading.Event()
    engine: Engine[str] = Engine(lambda: str(loaded.wait(5)), places=2)
    engine.start()
    assert not engine.close(0.01)
    loaded.set()
    assert engine.close(5.0)


def test_a_request_in_the_house_is_served_while_the_engine_drains() -> None:
    engine: Engine[str] = Engine(lambda: "model", 1)
    engine.start()
    with engine.place(False):
        engine.drain()
        time.sleep(0.05)
        assert engine.run(str.upper, False, soon()) == "MODEL"
    engine.close(5.0)
    with pytest.raises(NotReadyError):
        engine.run(str.upper, False, soon())


def test_a_load_that_fails_after_somebody_gave_up_still_tells_the_others() -> None:
    go = threading.Event()

    def load() -> str:
        go.wait(5)
        raise SystemExit("no")

    engine: Engine[str] = Engine(load, 2)
    engine.start()
    with pytest.raises(DeadlineError):
        engine.run(str.upper, True, soon(0.02))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.run, str.upper, True, soon(20))
        wait_for("the waiting job", lambda: engine.waiting == 1, 5, 0.002)
        go.set()
        assert isinstance(waiting.exception(timeout=2), NotReadyError)


def test_equal_questions_at_once_are_worked_on_once() -> None:
    flights = SingleFlight(ByteCache(100, len))
    made, go = [], threading.Event()

    def make() -> bytes:
        made.append(1)
        go.wait(5)
        return b"answer"

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(flights.answer, "key", make, soon()) for _ in range(4)]
        wait_for("the second model", lambda: len(made) == 1, 5, 0.002)
        go.set()
        answers = [one.result() for one in asked]
    assert sorted(answers) == [(b"answer", False), *[(b"answer", True)] * 3]
    assert flights.answer("key", make, soon()) == (b"answer", False)
    assert len(made) == 1


def test_an_error_is_shared_but_not_kept() -> None:
    flights = SingleFlight(ByteCache(100, len))

    def fail() -> bytes:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        flights.answer("key", fail, soon())
    assert flights.answer("key", lambda: b"yes", soon()) == (b"yes", False)


def test_who_has_more_time_than_the_first_asks_again() -> None:
    flights = SingleFlight(ByteCache(100, len))
    begun = threading.Event()

    def too_late() -> bytes:
        begun.set()
        time.sleep(0.05)
        raise DeadlineError("no time")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flights.answer, "key", too_late, soon(0.05))
        begun.wait(5)
        second = pool.submit(flights.answer, "key", lambda: b"yes", soon())
        assert second.result()[0] == b"yes"
        with pytest.raises(DeadlineError):
            first.result()
