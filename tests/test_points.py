"""The pattern of points to ask about, and the thresholds on the answers."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from sam4mllm.masks import lies_on
from sam4mllm.options import PATTERN_SIZE, Options, Thresholds
from sam4mllm.points import (
    EDGE_WEIGHT,
    GRID,
    MARGIN,
    MIN_GAP,
    NEARNESS,
    SURE_WEIGHT,
    Answers,
    beside,
    disputed,
    interior,
    select,
    settle,
    spread,
    unsure,
)

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


@pytest.mark.parametrize("count", [-1, PATTERN_SIZE + 1, 1.5, "5"])
def test_a_number_of_points_that_the_pattern_has_not_is_refused_at_once(count: Any) -> None:
    with pytest.raises(ValueError, match=f"count must be a whole number from 0 to 30, not {count!r}"):
        Options(count=count)


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
    kept, labels = select(np.array([inside]), Thresholds())
    assert kept.tolist() == [label is not None]
    assert labels.tolist() == ([] if label is None else [label])


def test_labels_are_those_of_the_kept_in_order() -> None:
    kept, labels = select(np.array([0.9, 0.5, 0.01, 0.8, 0.2, 0.02]), Thresholds())
    assert kept.dtype == np.bool_
    assert labels.dtype == np.int64
    assert kept.tolist() == [True, False, True, True, False, True]
    assert labels.tolist() == [1, 0, 1, 0]


def test_thresholds_can_be_set() -> None:
    kept, labels = select(np.array([0.51, 0.5, 0.49]), Thresholds(positive=0.5, negative=0.5))
    assert kept.tolist() == [True, False, True]
    assert labels.tolist() == [1, 0]


def test_no_answers() -> None:
    kept, labels = select(np.zeros(0), Thresholds())
    assert kept.shape == labels.shape == (0,)


# -- places that follow a mask or earlier answers ------------------------------------------------------------------------------------------

HEIGHT, WIDTH = 30, 40


@st.composite
def boxes(draw: st.DrawFn) -> NDArray[np.float32]:
    """In an image of HEIGHT by WIDTH, of any size down to none."""
    x1, x2 = sorted(draw(st.floats(0, WIDTH, width=32)) for _ in range(2))
    y1, y2 = sorted(draw(st.floats(0, HEIGHT, width=32)) for _ in range(2))
    return np.array([x1, y1, x2, y2], np.float32)


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Empty, full, noise, or a rectangle that may touch the image's border."""
    kind = draw(st.sampled_from(["constant", "noise", "rectangle"]))
    if kind == "constant":
        return np.full((HEIGHT, WIDTH), draw(st.booleans()))
    if kind == "noise":
        return np.random.default_rng(draw(st.integers(0, 99))).random((HEIGHT, WIDTH)) < draw(st.floats(0.01, 0.99))
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    (left, right), (top, bottom) = (sorted(draw(st.integers(0, side)) for _ in range(2)) for side in (WIDTH, HEIGHT))
    mask[top:bottom, left:right] = True
    return mask


def check_spread(points: NDArray[np.float32], box: NDArray[np.float32], count: int) -> None:
    assert points.dtype == np.float32
    assert points.shape[1:] == (2,)
    assert len(points) <= count
    assert (points >= box[:2] - 1e-4).all()
    assert (points <= box[2:] + 1e-4).all()
    if len(points) > 1:
        assert least_distance(points) >= MIN_GAP - 1e-4


@given(boxes(), masks(), st.integers(0, PATTERN_SIZE))
def test_interior_points_lie_in_the_box_apart_from_each_other_and_on_both_sides(box: NDArray, mask: NDArray, count: int) -> None:
    points = interior(box, mask, count)
    check_spread(points, box, count)
    assert len(points) > 0 or count == 0  # however small the box and whatever the mask
    on = lies_on(mask, points)
    if not mask.any():
        assert not on.any()
    if mask.all():
        assert on.all()


@given(boxes(), arrays(np.float64, 8, elements=st.floats(0, 1)), st.integers(0, 20))
def test_unsure_points_lie_in_the_box_apart_from_all_others(box: NDArray, inside: NDArray, count: int) -> None:
    first = spread(box, 8)
    points = unsure(box, Answers(first, inside[: len(first)]), count)
    check_spread(points, box, count)
    assert all(np.linalg.norm(first - point, axis=1).min() >= MIN_GAP - 1e-4 for point in points)


def slow_interior(box: NDArray[np.float32], mask: NDArray[np.bool_], count: int) -> list[tuple[float, float]]:
    """Word for word: depth by looking at every pixel of the other side, every gap anew for every point."""
    steps = [MARGIN + (1 - 2 * MARGIN) * step / (GRID - 1) for step in range(GRID)]
    x1, y1, x2, y2 = box.tolist()
    chosen: list[Any] = []
    for side, upto in ((mask, count - count // 2), (~mask, count), (mask, count)):
        outline = np.argwhere(~np.pad(side, 1)) - 1
        places = []
        for x, y in [(x1 + (x2 - x1) * across, y1 + (y2 - y1) * down) for down in steps for across in steps]:
            row, column = min(int(y), HEIGHT - 1), min(int(x), WIDTH - 1)
            if side[row, column]:
                places.append((x, y, float(np.sqrt(((outline - (row, column)) ** 2).sum(1).min()))))
        while len(chosen) < upto:
            gaps = [min((np.hypot(x - a, y - b) for a, b in chosen), default=np.inf) for x, y, _ in places]
            worths = [min(gap, EDGE_WEIGHT * place[2]) if gap >= MIN_GAP else -1 for gap, place in zip(gaps, places, strict=True)]
            if max(worths, default=-1) < 0:
                break
            chosen.append(places[worths.index(max(worths))][:2])
    return chosen


@pytest.mark.parametrize(
    ("box", "seed"), [((3, 2, 37, 28), 0), ((0, 0, 40, 30), 1), ((10.3, 5.1, 19.9, 26.4), 2), ((30, 20, 40, 30), 3), ((9, 9, 9, 9), 4)]
)
def test_interior_points_are_those_of_the_slow_reference(box: tuple[float, ...], seed: int) -> None:
    mask = cv2.blur(np.random.default_rng(seed).random((HEIGHT, WIDTH)), (9, 9)) > 0.5
    points = interior(np.array(box, np.float32), mask, 6)
    assert points == pytest.approx(np.array(slow_interior(np.array(box, np.float32), mask, 6)), abs=1e-3)


def slow_unsure(box: NDArray[np.float32], answers: Answers, count: int) -> list[tuple[float, float]]:
    steps = [MARGIN + (1 - 2 * MARGIN) * step / (GRID - 1) for step in range(GRID)]
    x1, y1, x2, y2 = box.tolist()
    known = list(zip(answers.points_px.tolist(), answers.inside.tolist(), strict=True))
    chosen: list[Any] = []

    def apart(x: float, y: float, a: float, b: float) -> float:
        return float(np.hypot((x - a) / (x2 - x1), (y - b) / (y2 - y1)))

    for _ in range(count):
        best = (-1.0, (0.0, 0.0))
        for x, y in [(x1 + (x2 - x1) * across, y1 + (y2 - y1) * down) for down in steps for across in steps]:
            taken = [*(point for point, _ in known), *chosen]
            if min(np.hypot(x - a, y - b) for a, b in taken) < MIN_GAP:
                continue
            weights = [max(apart(x, y, *point), 1 / GRID) ** -NEARNESS for point, _ in known]
            chance = sum(weight * inside for weight, (_, inside) in zip(weights, known, strict=True)) / sum(weights)
            doubt = SURE_WEIGHT + 1 - 2 * abs(chance - 0.5)
            best = max(best, (doubt * min(apart(x, y, a, b) for a, b in taken), (x, y)), key=lambda one: one[0])
        chosen.append(best[1])
    return chosen


@pytest.mark.parametrize(("box", "seed"), [((3, 2, 37, 28), 0), ((10.3, 5.1, 19.9, 26.4), 1)])
def test_unsure_points_are_those_of_the_slow_reference(box: tuple[float, ...], seed: int) -> None:
    box_px = np.array(box, np.float32)
    first = spread(box_px, 5)
    answers = Answers(first, np.random.default_rng(seed).random(len(first)))
    assert unsure(box_px, answers, 4) == pytest.approx(np.array(slow_unsure(box_px, answers, 4)), abs=1e-3)


def disc(radius: int, x: int = 50, y: int = 50) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:100, :100] + 0.5
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 < radius**2, np.bool_)


WHOLE = np.array([0, 0, 100, 100], np.float32)


def test_interior_points_are_deep_and_the_deepest_is_first() -> None:
    points = interior(WHOLE, disc(30), 10)
    from_middle = np.linalg.norm(points - 50, axis=1)
    assert lies_on(disc(30), points).tolist() == [True] * 5 + [False] * 5
    assert from_middle[0] < 2
    assert from_middle[:5].max() < 25  # five pixels off the outline, where the pattern's nearest is less than one off
    assert from_middle[5:].min() > 35
    assert least_distance(points[:5]) > 10


def test_a_side_without_room_leaves_its_points_to_the_other() -> None:
    assert lies_on(disc(30), interior(np.array([40, 40, 60, 60], np.float32), disc(30), 10)).tolist() == [True] * 10
    thin = np.zeros((100, 100), np.bool_)
    thin[50, 50:52] = True
    assert lies_on(thin, interior(WHOLE, thin, 10)).sum() <= 2
    assert len(interior(WHOLE, thin, 10)) == len(interior(WHOLE, np.zeros((100, 100), np.bool_), 10)) == 10


def test_a_mask_at_the_border_of_the_image_is_no_deeper_there() -> None:
    """Nobody sees where the object ends that the image cuts off."""
    half = np.zeros((100, 100), np.bool_)
    half[:, :40] = True
    first = interior(WHOLE, half, 2)[0]
    assert first[0] == pytest.approx(20, abs=2)


def test_unsure_points_follow_the_outline() -> None:
    """Of a disc that fifteen answers know only roughly, further points lie nearer to its outline than the pattern's do."""
    mask, first = disc(30), spread(WHOLE, 15)
    answers = Answers(first, np.where(lies_on(mask, first), 0.95, 0.05))

    def off(points: NDArray[np.float32]) -> float:
        return float(np.abs(np.linalg.norm(points - 50, axis=1) - 30).mean())

    assert off(unsure(WHOLE, answers, 15)) < 0.7 * off(spread(WHOLE, 30)[15:])


def test_unsure_points_go_to_where_an_answer_was_open() -> None:
    first = spread(WHOLE, 15)
    inside = np.full(15, 0.98)
    inside[3] = 0.5
    next_one = unsure(WHOLE, Answers(first, inside), 1)[0]
    assert np.linalg.norm(first - next_one, axis=1).argmin() == 3


def test_sure_answers_all_alike_leave_the_rest_of_the_box_to_be_asked() -> None:
    first = spread(WHOLE, 4)
    assert len(unsure(WHOLE, Answers(first, np.ones(4)), 10)) == 10
    assert np.array_equal(unsure(WHOLE, Answers(first[:0], np.zeros(0)), 5), spread(WHOLE, 5))


def test_a_second_look_is_the_mean_of_five_answers_about_the_disputed() -> None:
    points = np.array([[50, 50], [90, 90], [10, 10]], np.float32)
    answers = Answers(points, np.array([0.9, 0.6, 0.1]))
    which = disputed(answers, disc(30))
    assert which.tolist() == [False, True, False]
    asked = beside(WHOLE, points[which])
    assert asked.tolist() == [[92, 90], [88, 90], [90, 92], [90, 88]]
    settled = settle(answers, which, np.array([0.0, 0.1, 0.0, 0.1]))
    assert settled.inside == pytest.approx([0.9, 0.16, 0.1])
    assert settled.points_px is points
    assert answers.inside[1] == 0.6


@given(boxes(), st.integers(0, 30))
def test_places_beside_points_lie_in_the_box(box: NDArray, count: int) -> None:
    points = spread(box, count)
    around = beside(box, points)
    assert around.shape == (4 * len(points), 2)
    assert (around >= box[:2]).all()
    assert (around <= box[2:]).all()


def test_nothing_disputed_settles_nothing() -> None:
    answers = Answers(np.array([[50, 50]], np.float32), np.array([0.9]))
    which = disputed(answers, disc(30))
    assert beside(WHOLE, answers.points_px[which]).shape == (0, 2)
    assert settle(answers, which, np.zeros(0)).inside.tolist() == [0.9]
