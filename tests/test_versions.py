"""The champion serves, through swaps, restarts and adapters that cannot be loaded; and no request sees two versions."""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backend import brush
from backend.errors import DeadlineError, NotReadyError
from backend.label_studio.wire import read_predict
from sam4mllm.adapters.fields import WEIGHTS
from sam4mllm.errors import ModelError, RegistryError
from tests.backend_fakes import CONFIG, task
from tests.learning_fakes import PHRASE, School, mask_width, school, width
from tests.test_auto_rollback import review


@pytest.fixture
def place(tmp_path: Path) -> Iterator[School]:
    started = school(tmp_path)
    yield started
    started.service.close(5)


def answers(place: School, *numbers: int) -> list[dict[str, Any]]:
    """Predictions of tasks in one request."""
    body = {"tasks": [task(number, description=PHRASE) for number in numbers], "project": "1.1", "label_config": CONFIG}
    return [json.loads(one) for one in place.service.predictor.predict(read_predict(body))]


def drawn_by(answer: dict[str, Any]) -> tuple[str, int]:
    """The version that an answer names, and how wide its mask is."""
    [region] = [one for one in answer["result"] if one["type"] == "brushlabels"]
    return answer["model_version"], mask_width(brush.decode(region["value"]["rle"], 80, 100) > 127)


def test_a_promoted_version_serves_and_the_former_one_is_freed(place: School) -> None:
    first, second = place.add(0.1), place.add(0.2)
    assert drawn_by(answers(place, 1)[0]) == (place.loader.base.version, width(0))

    place.service.versions.promote(first)
    assert drawn_by(answers(place, 1)[0]) == (first, width(1))
    assert place.service.version == first
    place.service.versions.promote(second)
    assert drawn_by(answers(place, 1)[0]) == (second, width(2))
    assert place.loader.loaded == {second}

    assert place.service.versions.rollback() is not None
    assert drawn_by(answers(place, 1)[0]) == (first, width(1))
    place.service.versions.rollback()
    assert drawn_by(answers(place, 1)[0]) == (place.loader.base.version, width(0))
    assert place.loader.loaded == set()


def test_a_restart_serves_the_champion_and_knows_its_name_before_the_models_are_there(place: School, tmp_path: Path) -> None:
    version = place.add()
    place.service.versions.promote(version)
    place.service.close(5)

    again = school(tmp_path)
    assert again.service.version == version
    assert drawn_by(answers(again, 1)[0]) == (version, width(1))
    again.service.close(5)


def test_what_cannot_be_loaded_never_becomes_champion(place: School) -> None:
    good, broken = place.add(0.1), place.add(0.2, broken=1.0)
    place.service.versions.promote(good)
    with pytest.raises(ModelError, match="cannot be loaded"):
        place.service.versions.promote(broken)
    assert place.serving == good
    assert drawn_by(answers(place, 1)[0]) == (good, width(1))


def damage(place: School, version: str) -> None:
    weights = place.service.versions.registry.path(version) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-3])


def test_a_damaged_champion_is_left_out_at_the_start(place: School, tmp_path: Path) -> None:
    version = place.add()
    place.service.versions.promote(version)
    place.service.close(5)
    damage(place, version)

    again = school(tmp_path)
    assert again.service.engine.state == "ready"
    assert drawn_by(answers(again, 1)[0]) == (again.loader.base.version, width(0))
    again.service.close(5)


def test_what_served_before_a_damaged_champion_serves_after_a_restart(place: School, tmp_path: Path) -> None:
    first, second, third = place.add(0.1), place.add(0.2), place.add(0.3)
    for version in (first, second, third):
        place.service.versions.promote(version)
    place.service.close(5)
    damage(place, second)
    damage(place, third)

    again = school(tmp_path)
    assert drawn_by(answers(again, 1)[0]) == (first, width(1))
    again.service.versions.sync()
    assert drawn_by(answers(again, 2)[0]) == (first, width(1))
    again.service.close(5)


def test_a_rollback_to_what_cannot_be_loaded_changes_nothing(place: School) -> None:
    first, second = place.add(0.1), place.add(0.2)
    place.service.versions.promote(first)
    place.service.versions.promote(second)
    damage(place, first)
    with pytest.raises(RegistryError):
        place.service.versions.rollback()
    assert place.serving == second == place.service.versions.serving


def test_an_adapter_that_breaks_the_engine_is_refused_and_freed(place: School, monkeypatch: pytest.MonkeyPatch) -> None:
    version = place.add()

    def no_memory(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("backend.serving.versions.warm_up", no_memory)
    with pytest.raises(ModelError, match="has no answer"):
        place.service.versions.promote(version)
    assert place.loader.loaded == set()
    assert place.serving is None


def test_a_busy_engine_refuses_no_version(place: School, monkeypatch: pytest.MonkeyPatch) -> None:
    version = place.add()
    place.service.versions.registry.promote(version)
    with monkeypatch.context() as patch:
        patch.setattr("backend.serving.versions.SWAP_SECONDS", -1.0)
        with pytest.raises(DeadlineError):
            place.service.versions.sync()
    place.service.versions.sync()
    assert drawn_by(answers(place, 1)[0]) == (version, width(1))


def test_a_full_disk_does_not_stop_a_swap(place: School, monkeypatch: pytest.MonkeyPatch) -> None:
    """The champion's file is written; the note of which version serves is not, nor needed."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("backend.service.replace_file", full)
    version = place.add()
    place.service.versions.promote(version)
    assert place.serving == version
    assert drawn_by(answers(place, 1)[0]) == (version, width(1))


def test_a_promotion_by_the_command_line_is_noticed(place: School) -> None:
    version = place.add()
    place.service.versions.registry.promote(version)
    place.service.versions.sync()
    assert drawn_by(answers(place, 1)[0]) == (version, width(1))


def test_a_damaged_promotion_by_the_command_line_is_refused_once_and_the_old_one_serves(place: School) -> None:
    good, broken = place.add(0.1), place.add(0.2, broken=1.0)
    place.service.versions.promote(good)
    place.service.versions.registry.promote(broken)
    with pytest.raises(ModelError):
        place.service.versions.sync()
    place.service.versions.sync()
    assert drawn_by(answers(place, 1)[0]) == (good, width(1))


def test_without_models_nothing_is_promoted(tmp_path: Path) -> None:
    place = school(tmp_path)
    version = place.add()
    place.service.engine.model = None
    with pytest.raises(NotReadyError):
        place.service.versions.promote(version)
    assert place.serving is None
    place.service.close(5)


def test_an_unknown_version_is_refused(place: School) -> None:
    with pytest.raises(RegistryError, match="no version"):
        place.service.versions.promote("demo-9-0123abcd")


def test_a_request_keeps_its_version_while_another_is_promoted(place: School) -> None:
    """The second task of a request is held up until the promotion is done; both are of the version that it began with."""
    version = place.add()
    began, go = threading.Event(), threading.Event()
    load = place.service.predictor._images.load

    def slow(reference: object, task_id: int | None, seconds: float) -> Any:
        if task_id == 2:
            began.set()
            assert go.wait(10)
        return load(reference, task_id, seconds)

    place.service.predictor._images.load = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(answers, place, 1, 2)
        assert began.wait(10)
        place.service.versions.promote(version)
        assert drawn_by(answers(place, 3)[0]) == (version, width(1))
        go.set()
        assert [drawn_by(one) for one in held.result()] == [(place.loader.base.version, width(0))] * 2
    place.service.versions.sync()
    assert drawn_by(answers(place, 1)[0]) == (version, width(1))


def test_a_hundred_swaps_and_ten_rollbacks_under_load(place: School) -> None:
    """No mixed version, no failed request, nothing left over."""
    known = {place.loader.base.version: width(0)}
    versions = [place.add(0.001 * number) for number in range(1, 101)]
    known |= {version: width(number) for number, version in enumerate(versions, 1)}
    over = threading.Event()
    seen: list[tuple[str, int]] = []

    def ask(first: int) -> None:
        number = first
        while not over.is_set():
            found = [drawn_by(one) for one in answers(place, number, number + 1, number + 2)]
            assert len(set(found)) == 1, "a request saw two versions"
            seen.append(found[0])
            number += 3

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, 100_000 * (worker + 1)) for worker in range(3)]
        try:
            for number, version in enumerate(versions, 1):
                former = place.serving or place.loader.base.version
                place.service.versions.promote(version)
                if number % 10 == 0:  # reviewers find it much worse than the one before
                    base = [review(former, 0.9, float(index)) for index in range(30)]
                    worse = [review(version, 0.3, time.time() + index) for index in range(10)]
                    assert place.service.learner.watch.look([*base, *worse], 0.0)
                    assert place.serving == former
            time.sleep(0.2)
        finally:
            over.set()
        for one in asking:
            one.result()
    assert all(known[version] == wide for version, wide in seen)
    assert len({version for version, _ in seen}) > 5
    place.service.versions.sync()
    assert place.loader.loaded == {place.serving}
