"""The pattern of points to ask about, and the thresholds on the answers."""

from __future__ import annotations

import numpy as np
import pytest

from sam4mllm.points import MARGIN, PATTERN_SIZE, Thresholds, spread

SIDE = 1000.0


def pattern(count: int) -> np.ndarray:
    """The pattern in the unit square, from a box large enough that no two points share a pixel."""
    return spread(np.array([0, 0, SIDE, SIDE], np.float32), count) / np.float32(SIDE)


def least_distance(points: np.ndarray) -> float:
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return float(gaps[~np.eye(len(points), dtype=bool)].min())


def test_pattern_lies_within_its_margin() -> None:
    points = pattern(PATTERN_SIZE)
    assert points.shape == (PATTERN_SIZE, 2)
    assert points.dtype == np.float32
    assert MARGIN == 0.08
    assert points.min() >= 0.08
    assert points.max() <= 0.92


@pytest.mark.parametrize(("count", "least"), [(15, 0.149), (30, 0.108)])
def test_pattern_is_spread_as_well_as_the_published_one(count: int, least: float) -> None:
    assert least_distance(pattern(count)) >= least


@pytest.mark.parametrize("count", range(2, PATTERN_SIZE + 1))
def test_every_beginning_is_well_spread(count: int) -> None:
    """The side of the square that each point would have to itself, 0.84 / sqrt(count), is as far apart as points on a grid could be."""
    assert least_distance(pattern(count)) >= 0.8 * 0.84 / np.sqrt(count)


@pytest.mark.parametrize("count", [4, 8, 15, 30])
def test_every_beginning_reaches_all_quarters(count: int) -> None:
    points = pattern(count)[1:]  # the first one is the middle
    assert len({(bool(x > 0.5), bool(y > 0.5)) for x, y in points}) >= min(4, count - 1)


def test_pattern_is_always_the_same() -> None:
    """Training and serving ask at the same places; so do two machines."""
    np.random.default_rng(0).random(5)
    first = pattern(4)
    assert np.array_equal(first, pattern(PATTERN_SIZE)[:4])
    assert first[0] == pytest.approx([0.5, 0.5])
    assert first[1:] == pytest.approx(np.array(FIRST, np.float32), abs=1e-6)


FIRST = [[0.88456917, 0.08871442], [0.0863413, 0.10075845], [0.11425663, 0.9177277]]


def test_pattern_is_laid_over_the_box() -> None:
    box = np.array([100, 40, 300, 140], np.float32)
    assert spread(box, 30) == pytest.approx(np.array([100, 40]) + pattern(30) * np.array([200, 100]), abs=1e-4)


def test_a_tiny_box_is_not_asked_the_same_point_twice() -> None:
    assert spread(np.array([7, 8, 7, 8], np.float32), 30).tolist() == [[7, 8]]
    points = spread(np.array([7, 8, 10, 10], np.float32), 30)
    assert 2 <= len(points) < 12
    assert least_distance(points) >= 1


def test_count() -> None:
    assert pattern(0).shape == (0, 2)
    for count in (-1, PATTERN_SIZE + 1):
        with pytest.raises(ValueError, match=f"the pattern has 30 points, not {count}"):
            spread(np.array([0, 0, 9, 9], np.float32), count)


@pytest.mark.parametrize(
    ("inside", "label"),
    [
        pytest.param(1.0, 1, id="certainly inside"),
        pytest.param(0.76, 1, id="inside"),
        pytest.param(0.75, None, id="exactly the positive threshold"),
        pytest.param(np.nextafter(0.75, 1), 1, id="just above the positive threshold"),
        pytest.param(0.5, None, id="undecided"),
        pytest.param(0.11, None, id="nearly outside"),
        pytest.param(0.1, None, id="exactly the negative threshold"),
        pytest.param(0.0999, 0, id="just past the negative threshold"),
        pytest.param(0.0, 0, id="certainly outside"),
        pytest.param(float("nan"), None, id="not a number"),
    ],
)
def test_thresholds(inside: float, label: int | None) -> None:
    kept, labels = Thresholds().select(np.array([inside]))
    assert kept.tolist() == [label is not None]
    assert labels.tolist() == ([] if label is None else [label])


def test_labels_are_those_of_the_kept_in_order() -> None:
    kept, labels = Thresholds().select(np.array([0.9, 0.5, 0.01, 0.8, 0.2, 0.02]))
    assert kept.dtype == np.bool_
    assert labels.dtype == np.int64
    assert kept.tolist() == [True, False, True, True, False, True]
    assert labels.tolist() == [1, 0, 1, 0]


def test_thresholds_can_be_set() -> None:
    kept, labels = Thresholds(positive=0.5, negative=0.5).select(np.array([0.51, 0.5, 0.49]))
    assert kept.tolist() == [True, False, True]
    assert labels.tolist() == [1, 0]


def test_no_answers() -> None:
    kept, labels = Thresholds().select(np.zeros(0))
    assert kept.shape == labels.shape == (0,)
