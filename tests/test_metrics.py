"""Each figure against one worked out by hand, and what an evaluation prints as JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam4mllm.evaluation.metrics import Sample, Tally, bootstrap_interval, compare, point_accuracy, point_ece, summarize

KEYS = [
    *("gIoU", "cIoU", "mIoU", "N-acc", "T-acc", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"),
    *("point_accuracy", "point_ece", "oracle_mIoU", "seconds_per_phrase", "count"),
]


def strip(start: int, stop: int, length: int = 20) -> NDArray[np.bool_]:
    """A mask (1, length) with the pixels from start to stop."""
    return (np.arange(length) >= start)[None] & (np.arange(length) < stop)[None]


NOTHING = strip(0, 0)


@pytest.mark.parametrize(
    ("predicted", "truth", "has_target", "sample"),
    [
        pytest.param(strip(0, 10), strip(0, 10), True, Sample(1.0, 10, 10, True, False), id="the same"),
        pytest.param(strip(0, 10), strip(5, 15), True, Sample(5 / 15, 5, 15, True, False), id="half over"),
        pytest.param(strip(0, 5), strip(5, 10), True, Sample(0.0, 0, 10, True, False), id="beside"),
        pytest.param(NOTHING, strip(0, 10), True, Sample(0.0, 0, 10, True, True), id="target missed"),
        pytest.param(NOTHING, NOTHING, False, Sample(1.0, 0, 0, False, True), id="no target, nothing predicted"),
        pytest.param(strip(0, 7), NOTHING, False, Sample(0.0, 0, 7, False, False), id="no target, something predicted"),
        pytest.param(strip(0, 1), NOTHING, False, Sample(0.0, 0, 1, False, False), id="no target, one pixel predicted"),
        pytest.param(NOTHING, NOTHING, True, Sample(0.0, 0, 0, True, True), id="a target of no pixels earns nothing"),
    ],
)
def test_a_sample_by_hand(predicted: NDArray[np.bool_], truth: NDArray[np.bool_], has_target: bool, sample: Sample) -> None:
    assert compare(predicted, truth, has_target) == sample


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        compare(strip(0, 3), strip(0, 3, length=21), True)
    with pytest.raises(ValueError, match="without a target"):
        compare(strip(0, 3), strip(0, 3), False)


def five_samples() -> list[Sample]:
    return [
        compare(strip(0, 10), strip(0, 10), True),  # IoU 1, 10 of 10
        compare(strip(0, 8), strip(0, 16), True),  # IoU 0.5, 8 of 16
        compare(NOTHING, strip(0, 4), True),  # IoU 0, 0 of 4
        compare(NOTHING, NOTHING, False),  # counts 1
        compare(strip(0, 6), NOTHING, False),  # counts 0, adds 6 to the unions
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gIoU", (1 + 0.5 + 0 + 1 + 0) / 5),
        ("cIoU", (10 + 8) / (10 + 16 + 4 + 6)),
        ("mIoU", (1 + 0.5 + 0) / 3),
        ("N-acc", 1 / 2),
        ("T-acc", 2 / 3),
        ("Pr@0.5", 2 / 3),  # equality counts
        ("Pr@0.6", 1 / 3),
        ("Pr@0.9", 1 / 3),
        ("point_accuracy", 3 / 4),
        ("oracle_mIoU", 0.85),
        ("seconds_per_phrase", 2.0),
        ("count", 5),
    ],
)
def test_a_data_set_by_hand(name: str, value: float) -> None:
    figures = summarize(
        five_samples(),
        point_probabilities=[0.9, 0.5, 0.4, 0.6],
        point_truths=[True, True, False, False],
        oracle_ious=[0.8, 0.9],
        seconds=[1.0, 3.0],
    )
    assert figures[name] == pytest.approx(value)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_precision_counts_equality(threshold: float) -> None:
    tenths = round(threshold * 10)
    exactly = compare(strip(0, tenths), strip(0, 10), True)
    below = compare(strip(0, tenths - 1), strip(0, 10), True)
    assert summarize([exactly])[f"Pr@{threshold}"] == 1
    assert summarize([below])[f"Pr@{threshold}"] == 0


def test_the_keys_are_those_of_the_command_line_in_order() -> None:
    assert list(summarize(five_samples())) == KEYS
    assert list(summarize([])) == KEYS


@pytest.mark.parametrize(
    ("samples", "measured"),
    [
        pytest.param([], {"count"}, id="nothing at all"),
        pytest.param([compare(NOTHING, NOTHING, False)], {"count", "gIoU", "N-acc"}, id="no targets"),
        pytest.param(
            [compare(strip(0, 1), strip(0, 1), True)],
            {"count", "gIoU", "cIoU", "mIoU", "T-acc", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"},
            id="targets only",
        ),
    ],
)
def test_what_was_not_measured_is_null_in_strict_json(samples: list[Sample], measured: set[str]) -> None:
    figures = json.loads(json.dumps(summarize(samples), allow_nan=False))
    assert {name for name, value in figures.items() if value is not None} == measured


def test_a_tally_gives_what_summarize_gives() -> None:
    tally = Tally()
    assert tally.figures() == summarize([])
    tally.add(strip(0, 10), strip(0, 10), True, seconds=1.0)
    tally.add(strip(0, 8), strip(0, 16), True, seconds=3.0)
    tally.add_points([0.9, 0.5], [True, True])
    tally.add_points([], [])
    tally.add_points([0.4, 0.6], [False, False])
    tally.add_oracle(0.8)
    assert tally.figures() == summarize(
        five_samples()[:2],
        point_probabilities=[0.9, 0.5, 0.4, 0.6],
        point_truths=[True, True, False, False],
        oracle_ious=[0.8],
        seconds=[1.0, 3.0],
    )


@pytest.mark.parametrize(
    ("inside", "truth", "error"),
    [
        pytest.param([0.0, 1.0], [False, True], 0.0, id="certain and right"),
        pytest.param([0.0, 1.0], [True, False], 1.0, id="certain and wrong"),
        pytest.param([0.7] * 10, [True] * 7 + [False] * 3, 0.0, id="calibrated"),
        pytest.param([0.75] * 4, [True] * 2 + [False] * 2, 0.25, id="too sure"),
        pytest.param([0.05, 0.95, 0.95, 0.95], [True, True, True, False], (0.95 + 3 * (0.95 - 2 / 3)) / 4, id="bins weighed by points"),
        pytest.param([0.41, 0.49], [False, True], 0.05, id="one bin, mean of both"),
        pytest.param([0.39, 0.41], [False, True], (0.39 + 0.59) / 2, id="two bins"),
    ],
)
def test_calibration_error_by_hand(inside: list[float], truth: list[bool], error: float) -> None:
    assert point_ece(inside, truth) == pytest.approx(error)


def test_a_half_counts_as_inside() -> None:
    assert point_accuracy([0.5, 0.5], [True, False]) == 0.5
    assert point_accuracy([0.499], [True]) == 0.0


def test_of_no_points_nothing_is_known() -> None:
    assert math.isnan(point_accuracy([], []))
    assert math.isnan(point_ece([], []))


@pytest.mark.parametrize(
    ("inside", "truth"),
    [
        pytest.param([0.5], [], id="fewer truths"),
        pytest.param([1.1], [True], id="above one"),
        pytest.param([-0.1], [True], id="below zero"),
        pytest.param([math.nan], [True], id="not a number"),
    ],
)
def test_answers_that_are_none_are_refused(inside: list[float], truth: list[bool]) -> None:
    for figure in (point_accuracy, point_ece):
        with pytest.raises(ValueError, match="probabilit"):
            figure(inside, truth)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_calibration_error_is_a_share(answers: list[tuple[float, bool]]) -> None:
    inside, truth = zip(*answers, strict=True)
    assert 0 <= point_ece(inside, truth) <= 1


@settings(deadline=None)
@given(st.data())
def test_every_share_lies_between_zero_and_one(data: st.DataObject) -> None:
    masks = st.integers(0, 20).flatmap(lambda start: st.integers(start, 20).map(lambda stop: strip(start, stop)))
    samples = []
    for _ in range(data.draw(st.integers(0, 8))):
        has_target = data.draw(st.booleans())
        samples.append(compare(data.draw(masks), data.draw(masks) if has_target else NOTHING, has_target))
    figures = summarize(samples)
    shares = [value for name, value in figures.items() if value is not None and name != "count"]
    assert all(0 <= share <= 1 for share in shares)
    assert figures["count"] == len(samples)


# -- the bootstrap -------------------------------------------------------------------------------------------------------------------------


def test_an_interval_agrees_with_theory() -> None:
    values = np.random.default_rng(3).normal(0.7, 0.1, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_a_seed_gives_the_same_interval_and_a_level_another_width() -> None:
    values = np.linspace(0, 1, 50)
    low, high = bootstrap_interval(values, draws=500)
    assert bootstrap_interval(values, draws=500) == (low, high)
    assert bootstrap_interval(values, draws=500, seed=1) != (low, high)
    narrow_low, narrow_high = bootstrap_interval(values, level=0.5, draws=500)
    assert low < narrow_low < values.mean() < narrow_high < high


def test_equal_values_have_no_width() -> None:
    assert bootstrap_interval([0.25] * 8, draws=20) == (0.25, 0.25)
    assert bootstrap_interval([0.5], draws=20) == (0.5, 0.5)


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([math.nan], 0.95), ([math.inf], 0.95), ([0.5], 0.0), ([0.5], 1.0)])
def test_an_interval_of_nothing_is_refused(values: list[float], level: float) -> None:
    with pytest.raises(ValueError, match=r"interval|level"):
        bootstrap_interval(values, level)
