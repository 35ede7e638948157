"""Waiting gives what it waited for, or says what did not come."""

from __future__ import annotations

import httpx
import pytest

from benchmarks.waiting import wait_for


def test_it_asks_again_and_gives_what_it_found() -> None:
    answers = iter([None, httpx.ConnectError("refused"), [], ["run-000001"]])

    def find() -> list[str] | None:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert wait_for("a run", find, 5, 0.0) == ["run-000001"]


def test_it_says_what_did_not_come() -> None:
    with pytest.raises(TimeoutError, match=r"^a run did not come within 0\.01 s$"):
        wait_for("a run", lambda: False, 0.01, 0.001)


def test_other_errors_are_not_waited_out() -> None:
    with pytest.raises(KeyError):
        wait_for("a run", lambda: {}["run"], 5)
