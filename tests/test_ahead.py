"""What is made ahead is what would have been made in its turn."""

from __future__ import annotations

import threading

import pytest

from sam4mllm.training.ahead import ImagesAhead


def test_the_next_is_made_while_the_present_one_is_at_work() -> None:
    made, second = [], threading.Event()

    def make(step: int) -> int:
        made.append(step)
        if step == 6:
            second.set()
        return 10 * step

    ahead = ImagesAhead(make)
    assert ahead.take(5) == 50
    assert second.wait(5)
    assert [ahead.take(6), ahead.take(7), ahead.take(3)] == [60, 70, 30]
    ahead.close()
    assert made[:3] == [5, 6, 7]


def test_a_fault_is_told_when_its_step_comes() -> None:
    ahead = ImagesAhead(lambda step: 1 // (3 - step))
    assert ahead.take(2) == 1
    with pytest.raises(ZeroDivisionError):
        ahead.take(3)
    ahead.close()
