"""The steps of a bulk run: as many images as are there and fit, found together, told one by one."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.batch import steps
from backend.batch.steps import IMAGES_A_STEP, Pace, local_stages
from backend.batch.work import BatchTask
from backend.errors import DeadlineError, NotReadyError, QueueFullError
from backend.images.store import LoadedImage
from backend.label_studio.parameters import NO_PARAMETERS
from sam4mllm.errors import ImageError
from sam4mllm.grounding.protocol import Question
from tests.backend_fakes import House, house
from tests.bulk_fakes import PlainWork, fake_pipeline
from tests.fakes import NotedScene

PHRASES = ["the left cup", "the moon"]
PACES = [
    pytest.param(math.inf, None, IMAGES_A_STEP, id="a run of its own"),
    pytest.param(0.5, None, 1, id="nothing known yet"),
    pytest.param(0.5, (1, 0.4), 1, id="slow"),
    pytest.param(0.5, (1, 0.1), 5, id="quick"),
    pytest.param(0.5, (5, 0.5), 5, id="quick, several before"),
    pytest.param(0.5, (1, 0.001), IMAGES_A_STEP, id="at most so many"),
    pytest.param(0.5, (1, 0.0), IMAGES_A_STEP, id="in no time"),
    pytest.param(0.5, (1, 30.0), 1, id="at least one"),
]


@pytest.mark.parametrize(("seconds", "took", "images"), PACES)
def test_as_many_images_as_fit_into_the_time(seconds: float, took: tuple[int, float] | None, images: int) -> None:
    pace = Pace(seconds)
    if took is not None:
        pace.took(*took)
    assert pace.images == images


def loaded(side: int = 64, name: str = "0") -> LoadedImage:
    return LoadedImage(np.zeros((side, side, 3), np.uint8), name * 64)


class Work(PlainWork):
    """Images of a side, which come when ``passes`` lets them."""

    def __init__(self, side: int = 64, memory: bool = True) -> None:
        super().__init__()
        self.side, self.memory = side, memory
        self.passes = threading.Semaphore(1000)

    def loader(self) -> Callable[[BatchTask], LoadedImage]:
        def load(job: BatchTask) -> LoadedImage:
            assert self.passes.acquire(timeout=30)
            return loaded(self.side)

        return load

    def ahead(self, pipeline: Any, some: Any) -> bool:
        super().ahead(pipeline, some)
        return self.memory


class Source:
    def check(self) -> bool:
        return False


def run(work: Work, count: int = 40) -> Iterator[Any]:
    return local_stages(fake_pipeline(), work, Source())(BatchTask(number, {}) for number in range(count))  # type: ignore[arg-type]


def test_each_task_has_its_outcome_whatever_the_steps() -> None:
    work = Work()
    assert sorted(outcome.job.id for outcome in run(work)) == list(range(40))
    assert sorted(work.worked) == list(range(40))
    assert all(2 <= step <= IMAGES_A_STEP for step in work.steps)


def test_what_is_there_is_answered_without_waiting_for_more() -> None:
    work = Work()
    work.passes = threading.Semaphore(1)
    outcomes = run(work)
    assert next(outcomes).answered is not None
    assert work.steps == []
    work.passes.release(100)
    assert len(list(outcomes)) == 39


def test_large_images_make_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "PIXELS_A_STEP", 3 * 64 * 64)
    work = Work()
    assert len(list(run(work))) == 40
    assert work.steps
    assert max(work.steps) <= 3


def test_where_memory_did_not_suffice_there_is_one_image_a_step_from_then_on() -> None:
    work = Work(memory=False)
    assert len(list(run(work))) == 40
    assert len(work.steps) == 1


def test_a_task_that_fails_fails_alone() -> None:
    work = Work()
    work.dead = (3, 17)
    outcomes = {outcome.job.id: outcome for outcome in run(work)}
    assert len(outcomes) == 40
    assert {number for number, one in outcomes.items() if one.answered is None} == {3, 17}


@pytest.mark.parametrize("error", [NotReadyError("paused"), QueueFullError("full"), DeadlineError("late")], ids=str)
def test_a_step_without_a_turn_is_told_by_each_task(error: Exception) -> None:
    class Turnless(Work):
        def ahead(self, pipeline: Any, some: Any) -> bool:
            raise error

    assert all(outcome.answered is not None for outcome in run(Turnless()))


# -- what is found together ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Iterator[House]:
    made = house(tmp_path)
    yield made
    made.service.close(5)


def images(count: int) -> list[LoadedImage]:
    return [loaded(64 + index, str(index)) for index in range(count)]


def test_what_was_found_ahead_is_not_asked_again(place: House) -> None:
    answerer, pipeline = place.service.predictor.answerer, fake_pipeline()
    asked: list[Any] = []
    ground = pipeline.grounder.ground
    pipeline.grounder.ground = lambda *given: asked.append(given) or ground(*given)  # type: ignore[method-assign]
    assert answerer.find_ahead(pipeline, [(image, PHRASES, NO_PARAMETERS) for image in images(3)])
    assert len(asked) == 3
    ahead = [answerer.find(pipeline, image, PHRASES) for image in images(3)]
    assert len(asked) == 3
    alone = [answerer.find(pipeline, image, PHRASES) for image in images(3)]
    assert len(asked) == 6
    for (found, seconds), (again, _) in zip(ahead, alone, strict=True):
        assert set(seconds) >= {"open", "box", "points", "segmenter"}
        assert [one.phrase for one in found] == PHRASES
        for one, other in zip(found, again, strict=True):
            assert [kept.score for kept in one.instances] == [kept.score for kept in other.instances]
            for kept, same in zip(one.instances, other.instances, strict=True):
                np.testing.assert_array_equal(kept.mask, same.mask)


def test_annotators_come_between_the_readings_of_several_images(place: House, monkeypatch: pytest.MonkeyPatch) -> None:
    answerer, pipeline = place.service.predictor.answerer, fake_pipeline()
    notes: list[str] = []
    monkeypatch.setattr(pipeline.grounder, "open", lambda image: NotedScene(image.shape[1], image.shape[0], image.nbytes, notes))
    monkeypatch.setattr(answerer, "_between", lambda: notes.append("between"))
    ground = pipeline.grounder.ground
    monkeypatch.setattr(pipeline.grounder, "ground", lambda *given: (notes.append("asked"), ground(*given))[1])
    assert answerer.find_ahead(pipeline, [(image, PHRASES, NO_PARAMETERS) for image in images(2)])
    readings = [at for at, note in enumerate(notes) if note == "read"]
    assert len(readings) == 2
    assert all(notes[at - 1] == "between" for at in readings)
    assert readings[-1] < notes.index("asked")


def test_an_error_of_a_library_stays_with_its_image(place: House) -> None:
    answerer, pipeline = place.service.predictor.answerer, fake_pipeline()
    encode = pipeline.segmenter.encode

    def failing(image: Any) -> Any:
        if image.shape[0] == 65:
            raise RuntimeError("not enough memory: you tried to allocate")
        return encode(image)

    pipeline.segmenter.encode = failing  # type: ignore[method-assign]
    first, bad, last = images(3)
    assert answerer.find_ahead(pipeline, [(image, PHRASES, NO_PARAMETERS) for image in (first, bad, last)])
    with pytest.raises(RuntimeError):
        answerer.find(pipeline, bad, PHRASES)
    assert len(answerer.find(pipeline, last, PHRASES)[0]) == 2


def test_what_was_found_ahead_is_forgotten_after_a_while(place: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.serving.answerer.AHEAD_SECONDS", 0.0)
    answerer, pipeline = place.service.predictor.answerer, fake_pipeline()
    assert answerer.find_ahead(pipeline, [(image, PHRASES, NO_PARAMETERS) for image in images(2)])
    time.sleep(0.001)
    answerer.find(pipeline, loaded(99, "9"), PHRASES)
    assert answerer._ahead == {}


def test_an_image_that_cannot_be_opened_is_told_by_its_own_call(place: House) -> None:
    answerer, pipeline = place.service.predictor.answerer, fake_pipeline()
    first, thin, last = images(1)[0], LoadedImage(np.zeros((1, 900, 3), np.uint8), "7" * 64), images(2)[1]
    assert answerer.find_ahead(pipeline, [(image, PHRASES, NO_PARAMETERS) for image in (first, thin, last)])
    with pytest.raises(ImageError):
        answerer.find(pipeline, thin, PHRASES)
    assert len(answerer.find(pipeline, last, PHRASES)[0]) == 2


def test_without_memory_for_all_each_is_found_alone(place: House) -> None:
    answerer, pipeline = place.service.predictor.answerer, fake_pipeline()
    refused: list[weakref.ref[Any]] = []
    ground = pipeline.grounder.ground

    def crowded(scene: Any, phrases: Any, question: Question = "box") -> Any:
        if len(answerer.opened) > 1:
            tensor = torch.zeros(1)
            refused.append(weakref.ref(tensor))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        assert all(one() is None for one in refused), "what was refused takes up memory still"
        return ground(scene, phrases, question)

    pipeline.grounder.ground = crowded  # type: ignore[method-assign]
    assert not answerer.find_ahead(pipeline, [(image, PHRASES, NO_PARAMETERS) for image in images(3)])
    assert len(answerer.opened) == 0
    assert refused
    for image in images(3):
        assert len(answerer.find(pipeline, image, PHRASES)[0]) == 2
        answerer.forget_images()
