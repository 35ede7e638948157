"""The holdout: ten pictures from the twentieth on, a fifth of many, and nothing that was learned from is ever held out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import LearningError
from backend.learning.holdout import FILE, LEAST, SHARE, WHOLE, Holdout, is_held_out, standing, threshold
from backend.support.places import place_of


def names(numbers: list[int]) -> list[str]:
    return [f"{number:064x}" for number in numbers]


def test_places_are_spread_evenly() -> None:
    places = [place_of(name) for name in names(list(range(5_000)))]
    assert all(0 <= place < 1 for place in places)
    assert 0.18 < sum(place <= SHARE for place in places) / len(places) < 0.22


@pytest.mark.parametrize(("pictures", "held_out"), [(0, 0), (5, 5), (10, 10), (20, 10), (25, 10), (40, 10)])
def test_how_many_are_held_out(pictures: int, held_out: int, tmp_path: Path) -> None:
    known = names(list(range(pictures)))
    at = Holdout(tmp_path).lower(known)
    assert sum(is_held_out(name, at) for name in known) == held_out


Look = st.tuples(st.lists(st.integers(0, 120), max_size=60, unique=True), st.booleans())


@given(st.lists(Look, max_size=12))
def test_what_was_learned_from_is_never_held_out(looks: list[tuple[list[int], bool]]) -> None:
    """Pictures come and go between looks; at some of them a run learns."""
    at, learned = WHOLE, set[str]()
    for numbers, learns in looks:
        known = names(numbers)
        lower = threshold(map(place_of, known), at)
        assert lower <= at
        at = lower
        held_out = {name for name in known if is_held_out(name, at)}
        assert not held_out & learned
        if learns:
            learned |= set(known) - held_out


@given(st.integers(20, 60))
def test_without_deletions_ten_are_held_out_from_the_twentieth_on(count: int) -> None:
    at = WHOLE
    for pictures in range(1, count + 1):
        at = threshold(map(place_of, names(list(range(pictures)))), at)
    assert sum(is_held_out(name, at) for name in names(list(range(count)))) >= LEAST


def test_the_threshold_is_kept(tmp_path: Path) -> None:
    at = Holdout(tmp_path).lower(names(list(range(30))))
    assert SHARE < at < WHOLE
    assert Holdout(tmp_path).lower([]) == at
    assert Holdout(tmp_path, SHARE).lower([]) == at


def test_a_home_that_has_learned_without_one_keeps_a_fifth(tmp_path: Path) -> None:
    assert Holdout(tmp_path, SHARE).lower(names(list(range(5)))) == SHARE


@pytest.mark.parametrize(
    ("former", "expected"), [(WHOLE, [0, 5, 10, 10, 20]), (SHARE, [0, 1, 4, 8, 20])], ids=["new", "of an earlier release"]
)
def test_how_many_a_home_expects_to_hold_out(former: float, expected: list[int], tmp_path: Path) -> None:
    holdout = Holdout(tmp_path, former)
    assert [holdout.expect(pictures) for pictures in (0, 5, 20, 40, 100)] == expected
    holdout.lower(names(list(range(40))))
    assert Holdout(tmp_path, SHARE).expect(40) == expected[3], "what is kept counts, once there is such"


@pytest.mark.parametrize("kept", ["", "{}", "[]", '{"threshold": 2.0}', '{"threshold": "x"}'])
def test_a_damaged_threshold_is_told_of_in_one_line(kept: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(kept)
    with pytest.raises(LearningError, match=r"^[^\n]*holdout.json is damaged [^\n]*; write [^\n]*$"):
        Holdout(tmp_path).lower([])


@pytest.mark.parametrize(
    ("pictures", "held_out", "says"),
    [
        (0, 0, "0 corrected pictures, 0 held out, about 20 more until a run can be judged"),
        (1, 1, "1 corrected picture, 1 held out, about 19 more until a run can be judged"),
        (12, 10, "12 corrected pictures, 10 held out, about 8 more until a run can be judged"),
        (40, 10, "40 corrected pictures, 10 held out, a run can be judged"),
        (100, 20, "100 corrected pictures, 20 held out, a run can be judged"),
        (30, 6, "30 corrected pictures, 6 held out, about 10 more until a run can be judged"),
    ],
)
def test_how_far_a_run_is(pictures: int, held_out: int, says: str) -> None:
    assert standing(pictures, held_out) == says
