"""Each figure against one worked out by hand, and what an evaluation prints as JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam4mllm.evaluation.metrics import Bin, Sample, compare, point_accuracy, point_ece, reliability, summarize
from sam4mllm.masks import union

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


@pytest.mark.parametrize(
    ("predicted", "truth", "has_target", "sample"),
    [
        pytest.param([strip(0, 5), strip(10, 15)], [strip(0, 5), strip(10, 15)], True, Sample(1.0, 10, 10, True, False), id="both of two"),
        pytest.param([strip(0, 5)], [strip(0, 5), strip(10, 15)], True, Sample(0.5, 5, 10, True, False), id="one of two"),
        pytest.param([strip(0, 5), strip(10, 15)], [strip(0, 5)], True, Sample(0.5, 5, 10, True, False), id="one too many"),
        pytest.param([strip(0, 8), strip(4, 10)], [strip(0, 10)], True, Sample(1.0, 10, 10, True, False), id="two that overlap"),
        pytest.param([strip(0, 3), strip(5, 7)], [], False, Sample(0.0, 0, 5, False, False), id="two where there is none"),
    ],
)
def test_several_instances_are_one_mask(
    predicted: list[NDArray[np.bool_]], truth: list[NDArray[np.bool_]], has_target: bool, sample: Sample
) -> None:
    assert compare(union(np.array(predicted)), union(np.array(truth).reshape(-1, 1, 20)), has_target) == sample


@pytest.mark.parametrize(
    ("predicted", "truth", "has_target", "sample"),
    [
        pytest.param(strip(0, 10), strip(0, 5), True, Sample(1.0, 5, 5, True, False), id="too much, but where nothing counts"),
        pytest.param(strip(0, 5), strip(0, 10), True, Sample(1.0, 5, 5, True, False), id="too little, but where nothing counts"),
        pytest.param(strip(0, 15), strip(0, 5), True, Sample(0.5, 5, 10, True, False), id="too much beyond it too"),
        pytest.param(strip(5, 10), strip(0, 5), True, Sample(0.0, 0, 5, True, True), id="drawn where nothing counts is nothing"),
        pytest.param(strip(5, 10), NOTHING, False, Sample(1.0, 0, 0, False, True), id="no target, drawn where nothing counts"),
        pytest.param(NOTHING, strip(5, 10), True, Sample(1.0, 0, 0, True, True), id="a target wholly where nothing counts, none drawn"),
        pytest.param(strip(6, 9), strip(6, 8), True, Sample(1.0, 0, 0, True, True), id="the same, drawn there"),
        pytest.param(strip(8, 12), strip(6, 8), True, Sample(0.0, 0, 2, True, False), id="the same, drawn elsewhere"),
        pytest.param(NOTHING, NOTHING, True, Sample(0.0, 0, 0, True, True), id="a target of no pixels earns nothing"),
    ],
)
def test_ignored_pixels_count_neither_way(predicted: NDArray[np.bool_], truth: NDArray[np.bool_], has_target: bool, sample: Sample) -> None:
    assert compare(predicted, truth, has_target, ignored=strip(5, 10)) == sample


@pytest.mark.parametrize(
    ("pixels", "min_pixels", "sample"),
    [
        pytest.param(5, 0, Sample(0.5, 5, 10, True, False), id="as it is"),
        pytest.param(5, 5, Sample(0.5, 5, 10, True, False), id="just enough"),
        pytest.param(5, 6, Sample(0.0, 0, 10, True, True), id="too few are none"),
    ],
)
def test_a_few_pixels_may_be_taken_for_none(pixels: int, min_pixels: int, sample: Sample) -> None:
    assert compare(strip(0, pixels), strip(0, 10), True, min_pixels=min_pixels) == sample
    answered = compare(strip(0, pixels), NOTHING, False, min_pixels=min_pixels)
    assert answered.iou == float(sample.predicted_empty)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        compare(strip(0, 3), strip(0, 3, length=21), True)
    with pytest.raises(ValueError, match="one shape"):
        compare(strip(0, 3), strip(0, 3), True, ignored=strip(0, 3, length=21))
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


def accumulate(predicted: list[NDArray[np.bool_]], truths: list[NDArray[np.bool_]], targets: list[bool]) -> dict[str, float]:
    """The figures of GRES told as its authors tell them: one sample after the other, pixel by pixel, in counters."""
    inter = outer = hits = right_none = none = found = 0.0
    reached = dict.fromkeys((0.7, 0.8, 0.9), 0)
    for mask, truth, target in zip(predicted, truths, targets, strict=True):
        pairs = list(zip(mask.ravel().tolist(), truth.ravel().tolist(), strict=True))
        both, either = sum(a and b for a, b in pairs), sum(a or b for a, b in pairs)
        says_none = not any(a for a, _ in pairs)
        if not target:
            none += 1
            right_none += says_none
            hits += 1 if says_none else 0
            outer += 0 if says_none else either
            continue
        found += not says_none
        iou = both / either if either else 0.0
        hits, inter, outer = hits + iou, inter + both, outer + either
        for threshold in reached:
            reached[threshold] += iou >= threshold
    count, with_target = len(targets), len(targets) - none
    return {
        "gIoU": hits / count if count else math.nan,
        "cIoU": inter / outer if outer else math.nan,
        "N-acc": right_none / none if none else math.nan,
        "T-acc": found / with_target if with_target else math.nan,
        **{f"Pr@{threshold}": got / with_target if with_target else math.nan for threshold, got in reached.items()},
    }


@settings(deadline=None)
@given(st.data())
def test_the_figures_are_those_of_the_counters(data: st.DataObject) -> None:
    masks = st.integers(0, 20).flatmap(lambda start: st.integers(start, 20).map(lambda stop: strip(start, stop)))
    count = data.draw(st.integers(0, 6))
    targets = [data.draw(st.booleans()) for _ in range(count)]
    predicted = [data.draw(masks) for _ in targets]
    truths = [data.draw(masks) if target else NOTHING for target in targets]
    figures = summarize([compare(*sample) for sample in zip(predicted, truths, targets, strict=True)])
    for name, value in accumulate(predicted, truths, targets).items():
        assert figures[name] == (None if math.isnan(value) else pytest.approx(value))


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


def test_bins_say_what_was_said_and_what_was_true() -> None:
    assert reliability([0.05, 0.95, 0.95, 1.0], [True, True, True, False]) == [
        Bin(0.05, 1.0, 1),
        Bin(pytest.approx((0.95 + 0.95 + 1) / 3), pytest.approx(2 / 3), 3),  # type: ignore[arg-type]
    ]
    assert reliability([], []) == []


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
