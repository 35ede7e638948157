"""What a trial says of its candidates: the rows, and a sentence that claims no more than the pictures tell."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4mllm.trial.run import Tried
from sam4mllm.trial.verdict import LEAST_PICTURES, TrialRow, is_beaten, tabulate_trial, tell, trial_cells, trial_fields
from tests.trial_doubles import made_up

GOOD = [0.9, 0.8] * 15
WORSE = [0.8, 0.75] * 15
NOISY = [0.96, 0.7] * 15


def sentence(*tried: Tried) -> str:
    return tell(tabulate_trial(tried), len(tried[0].pictures) if tried else 0)


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        pytest.param([made_up("a", GOOD), made_up("b", WORSE)], "a beats b by 7.5 points (6.7 to 8.3)", id="clearly better"),
        pytest.param([made_up("b", WORSE), made_up("a", GOOD)], "a beats b by 7.5 points (6.7 to 8.3)", id="in any order"),
        pytest.param(
            [made_up("a", GOOD, 3.0), made_up("b", WORSE, 1.0)],
            "a beats b by 7.5 points (6.7 to 8.3); b is 3 times faster",
            id="slower",
        ),
        pytest.param(
            [made_up("a", GOOD, 1.0), made_up("b", WORSE, 1.6)],
            "a beats b by 7.5 points (6.7 to 8.3); it is 1.6 times faster than b",
            id="better and faster",
        ),
        pytest.param([made_up("a", GOOD, 1.4), made_up("b", WORSE, 1.0)], "a beats b by 7.5 points (6.7 to 8.3)", id="hardly slower"),
        pytest.param(
            [made_up("a", GOOD), made_up("b", NOISY)], "a is not told apart from b (2.0 points, −0.7 to 4.7)", id="not told apart"
        ),
        pytest.param([made_up("a", GOOD), made_up("b", GOOD)], "a is not told apart from b (0.0 points, 0.0 to 0.0)", id="the same"),
        pytest.param(
            [made_up("a", GOOD), made_up("b", NOISY), made_up("c", WORSE)],
            "a is not told apart from b (2.0 points, −1.2 to 5.2) and beats c by 7.5 points (6.5 to 8.5)",
            id="one of each",
        ),
        pytest.param(
            [made_up("a", GOOD)], "a has a gIoU of 0.850; a second candidate would give it something to be compared with", id="one"
        ),
        pytest.param(
            [made_up("a", GOOD[:7]), made_up("b", [0.1] * 7)],
            "7 pictures tell no candidates apart: label 8 at least, better 20 to 50",
            id="too few pictures",
        ),
        pytest.param(
            [made_up("a", GOOD[:8]), made_up("b", [0.1] * 8)],
            "a beats b by 75.0 points (71.2 to 78.8); 8 pictures are few, label 20 to 50",
            id="few pictures",
        ),
        pytest.param(
            [made_up("a", GOOD), Tried(made_up("b", []).candidate, {}, "killed")],
            "a has a gIoU of 0.850; a second candidate would give it something to be compared with",
            id="a failed one is none",
        ),
        pytest.param([], "no candidate was tried to the end", id="none"),
    ],
)
def test_the_sentence(tried: list[Tried], said: str) -> None:
    assert sentence(*tried) == said


IOUS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=24)


@settings(deadline=None, max_examples=40)
@given(IOUS)
def test_beats_is_said_only_of_an_interval_without_0_and_of_enough_pictures(ious: list[tuple[float, float, float]]) -> None:
    rows = tabulate_trial([made_up(name, list(some)) for name, some in zip("abc", zip(*ious, strict=True), strict=True)])
    said = tell(rows, len(ious))
    for row in rows[1:]:
        assert row.to_best is not None
        assert row.to_best.value <= 0
        claimed = any(f"{word} {row.name} by" in said for word in ("beats", ",", "and"))
        assert claimed == (row.to_best.high < 0 and len(ious) >= LEAST_PICTURES)


def test_the_more_candidates_the_wider_the_interval() -> None:
    def reach(count: int) -> float:
        rows = tabulate_trial([made_up("a", GOOD), made_up("b", NOISY), *[made_up(f"c{at}", WORSE) for at in range(count)]])
        [found] = [row.to_best for row in rows if row.name == "b" and row.to_best is not None]
        return found.high - found.low

    assert reach(0) < reach(1) < reach(8)


def test_a_difference_by_one_interval_may_not_hold_among_many() -> None:
    other = [iou - step for iou, step in zip(GOOD, [0.09, -0.04] * 15, strict=True)]

    def beaten(*more: Tried) -> bool:
        return next(is_beaten(row) for row in tabulate_trial([made_up("a", GOOD), made_up("b", other), *more]) if row.name == "b")

    assert beaten()
    assert not beaten(*[made_up(f"c{at}", WORSE) for at in range(10)])


def row() -> TrialRow:
    return tabulate_trial([made_up("a", GOOD, 0.25), made_up("b", WORSE, 0.5, clicks=10)])[1]


def test_a_row_as_text_and_as_json() -> None:
    assert trial_cells(row()) == [
        "b",
        "0.775 (0.767–0.783)",
        "−7.5 (−8.3 to −6.7)",
        "0.900",
        "10.0 (100% never)",
        "0.50",
        "2.0 GB",
        "3.0 s",
    ]
    fields = trial_fields(row())
    assert (fields["name"], fields["figures"]["clicks"], fields["figures"]["reached"]) == ("b", 10.0, 0.0)


def test_the_first_pictures_warming_up_does_not_count_as_its_pace() -> None:
    slow_start = made_up("a", GOOD, 0.2)
    first = next(iter(slow_start.pictures))
    object.__setattr__(slow_start.pictures[first], "seconds", 60.0)
    assert tabulate_trial([slow_start])[0].seconds == 0.2
