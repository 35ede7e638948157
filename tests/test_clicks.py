"""Which object a reviewer's click or box is about: inside a mask, in a box enlarged by a tenth, outside of all, several instances."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sam4mllm.clicks import Clicks, PromptTarget, ShownInstance, merge
from tests.fakes import grounding

LEFT, RIGHT = [20, 20, 60, 40], [100, 20, 140, 40]
HEIGHT, WIDTH = 100, 200


def mask(x1: int, y1: int, x2: int, y2: int) -> NDArray[np.bool_]:
    drawn = np.zeros((HEIGHT, WIDTH), np.bool_)
    drawn[y1:y2, x1:x2] = True
    return drawn


def shown(box: list[int], drawn: NDArray[np.bool_] | None = None) -> ShownInstance:
    return ShownInstance(np.array(box, np.float32), mask(*box) if drawn is None else drawn)


def clicks(
    *points: tuple[float, float, int],
    boxes: tuple[list[float], ...] = (),
    seen: tuple[ShownInstance, ...] = (),
    selected: int | None = None,
) -> Clicks:
    places = np.array([point[:2] for point in points], np.float32).reshape(-1, 2)
    labels = np.array([point[2] for point in points], np.int64)
    return Clicks(places, labels, np.array(boxes, np.float32).reshape(-1, 4), seen, selected)


def told(targets: list[PromptTarget]) -> list[tuple[str, int]]:
    """Of each target: what the clicks are to it, and how many of its points are theirs."""
    return [(target.pointed, len(target.labels)) for target in targets]


ALONE_AND_TWO = [("", 0), ("", 0), ("alone", 1)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(clicks((30, 30, 1)), [("refined", 1), ("", 0)], id="in a box"),
        pytest.param(clicks((120, 30, 1)), [("", 0), ("refined", 1)], id="in the other box"),
        pytest.param(clicks((63.5, 30, 1)), [("refined", 1), ("", 0)], id="just right of a box, within a tenth of its width"),
        pytest.param(clicks((65, 30, 1)), ALONE_AND_TWO, id="more than a tenth of its width beside it"),
        pytest.param(clicks((30, 41.5, 1)), [("refined", 1), ("", 0)], id="just below a box, within a tenth of its height"),
        pytest.param(clicks((30, 42.5, 1)), ALONE_AND_TWO, id="more than a tenth of its height below it"),
        pytest.param(clicks((150, 90, 1), (152, 92, 1)), [("", 0), ("", 0), ("alone", 2)], id="two clicks elsewhere are one object"),
        pytest.param(clicks((150, 90, 1), (152, 92, 0)), [("", 0), ("", 0), ("alone", 2)], id="and a negative one shapes it"),
        pytest.param(clicks((150, 90, 1), (30, 30, 1)), [("refined", 1), ("", 0), ("alone", 1)], id="one elsewhere, one on an instance"),
        pytest.param(clicks((30, 30, 0)), [("refined", 1), ("", 0)], id="a negative click alone"),
        pytest.param(clicks((190, 95, 0)), [("", 0), ("refined", 1)], id="a negative click elsewhere makes no object"),
        pytest.param(clicks(boxes=([22, 22, 58, 44],)), [("refined", 0), ("", 0)], id="a box of the same object"),
        pytest.param(clicks(boxes=([10, 5, 70, 90],)), [("refined", 0), ("", 0)], id="a box around a much smaller one"),
        pytest.param(clicks(boxes=([30, 25, 40, 30],)), [("refined", 0), ("", 0)], id="a box around a part"),
        pytest.param(
            clicks(boxes=([62, 20, 95, 40],)), [("", 0), ("", 0), ("refined", 0)], id="a box that meets an enlarged one is beside it"
        ),
        pytest.param(clicks(boxes=([66, 20, 94, 40],)), [("", 0), ("", 0), ("alone", 0)], id="a box between both, enlarged"),
        pytest.param(clicks(boxes=([20, 60, 60, 90],)), [("", 0), ("", 0), ("alone", 0)], id="a box elsewhere"),
        pytest.param(clicks(boxes=([60, 90, 20, 60],)), [("", 0), ("", 0), ("alone", 0)], id="drawn from its other corner"),
        pytest.param(
            clicks((40, 75, 1), boxes=([20, 60, 60, 90],)), [("", 0), ("", 0), ("alone", 1)], id="a click in a box elsewhere joins it"
        ),
    ],
)
def test_clicks_among_two_instances(given: Clicks, expected: list[tuple[str, int]]) -> None:
    assert told(merge(grounding("the cups", [LEFT, RIGHT]), given)) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(clicks((150, 90, 1)), [("alone", 1)], id="a click"),
        pytest.param(clicks(boxes=([20, 60, 60, 90],)), [("alone", 0)], id="a box"),
        pytest.param(clicks((150, 90, 0)), [], id="nothing to take away from"),
    ],
)
def test_where_nothing_was_found_everything_stands_alone(given: Clicks, expected: list[tuple[str, int]]) -> None:
    assert told(merge(grounding("the moon", []), given)) == expected


@pytest.mark.parametrize(
    ("point", "seen", "expected"),
    [
        pytest.param(
            (75, 30, 1), (shown(LEFT, mask(20, 20, 80, 40)),), [("refined", 1), ("", 0)], id="on a mask that is wider than its box"
        ),
        pytest.param((75, 30, 0), (shown(LEFT, mask(20, 20, 80, 40)),), [("refined", 1), ("", 0)], id="and takes away there"),
        pytest.param((70, 70, 1), (shown([60, 60, 90, 90]),), [("", 0), ("", 0), ("refined", 1)], id="on a mask that is no longer found"),
        pytest.param((10, 90, 1), (shown([60, 60, 90, 90]),), ALONE_AND_TWO, id="what is shown and not pointed at is not drawn"),
    ],
)
def test_what_the_reviewer_sees_decides(
    point: tuple[float, float, int], seen: tuple[ShownInstance, ...], expected: list[tuple[str, int]]
) -> None:
    assert told(merge(grounding("the cups", [LEFT, RIGHT]), clicks(point, seen=seen))) == expected


def test_of_overlapping_boxes_it_is_the_one_with_the_mask() -> None:
    overlapping = grounding("the cups", [[20, 20, 80, 80], [40, 20, 100, 80]])
    seen = (shown([20, 20, 80, 80], mask(20, 20, 50, 80)), shown([40, 20, 100, 80], mask(60, 20, 100, 80)))
    assert told(merge(overlapping, clicks((62, 50, 1), seen=seen))) == [("", 0), ("refined", 1)]
    assert told(merge(overlapping, clicks((53, 50, 1), seen=seen))) == [("refined", 1), ("", 0)]
    assert told(merge(overlapping, clicks((57, 50, 1), seen=seen))) == [("", 0), ("refined", 1)]


@pytest.mark.parametrize("given", [{"points": (190, 95, 1)}, {"boxes": ([150, 60, 190, 90],)}], ids=["a click", "a box"])
def test_a_selected_region_decides(given: dict[str, object]) -> None:
    seen = (shown(RIGHT), shown(LEFT))
    points = [given["points"]] if "points" in given else []
    boxes = given.get("boxes", ())
    targets = merge(grounding("the cups", [LEFT, RIGHT]), clicks(*points, boxes=boxes, seen=seen, selected=1))  # type: ignore[arg-type]
    assert [target.pointed for target in targets] == ["refined", ""]
    assert [target.shown for target in targets] == [1, 0]
