"""Close-ups: square, in the image, around the box; a point is the same place in both; answers come in the order of the questions."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import sam4mllm
from sam4mllm.closeup import LEAST_GAIN, SIDE_PX, ZOOM, Window, window_around
from sam4mllm.grounding.closer import CloserGrounder, CloserScene
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.protocol import Inquiry, Scene
from sam4mllm.points import spread
from sam4mllm.prompts.dialects import DEMO, dump_dialect
from tests.fakes import FakeGrounder, grounding

IMAGE = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
SMALL, OTHER, LARGE = [20, 30, 60, 70], [200, 100, 240, 150], [10, 10, 290, 190]


def box(*sides: float) -> NDArray[np.float32]:
    return np.array(sides, np.float32)


WINDOWS = [
    pytest.param(box(100, 80, 140, 120), Window(90, 70, 60), id="in the middle"),
    pytest.param(box(0, 0, 40, 20), Window(0, 0, 60), id="in a corner"),
    pytest.param(box(290, 190, 300, 200), Window(285, 185, 15), id="in the far corner"),
    pytest.param(box(100, 100, 101, 101), Window(99, 99, 2), id="one pixel"),
    pytest.param(box(50, 20, 150, 150), Window(2, 0, 195), id="nearly as high as the image"),
    pytest.param(box(50, 10, 180, 190), None, id="as high as the image"),
    pytest.param(box(10, 80, 220, 120), None, id="longer than the image is high"),
    pytest.param(box(0, 0, 300, 200), None, id="all of the image"),
]


@pytest.mark.parametrize(("box_px", "expected"), WINDOWS)
def test_the_window_of_a_box(box_px: NDArray[np.float32], expected: Window | None) -> None:
    assert window_around(box_px, 300, 200, zoom=1.5) == expected


def test_an_image_that_is_hardly_larger_has_no_close_up() -> None:
    assert window_around(box(20, 20, 70, 70), 100, 100, zoom=1.5) == Window(7, 7, 75)
    assert window_around(box(20, 20, 80, 80), 100, 100, zoom=1.5) is None


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[NDArray[np.float32], int, int]:
    width, height = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    x1, x2 = sorted(draw(st.floats(0, width, width=32)) for _ in range(2))
    y1, y2 = sorted(draw(st.floats(0, height, width=32)) for _ in range(2))
    return box(x1, y1, x2, y2), width, height


@given(boxes_in_images(), st.floats(1, 4))
def test_a_window_lies_in_the_image_around_its_box(case: tuple[NDArray[np.float32], int, int], zoom: float) -> None:
    box_px, width, height = case
    window = window_around(box_px, width, height, zoom)
    if window is None:
        return
    assert 0 <= window.left <= width - window.side
    assert 0 <= window.top <= height - window.side
    assert window.side * LEAST_GAIN <= (width * height) ** 0.5
    assert window.left <= box_px[0] + 1
    assert window.top <= box_px[1] + 1
    assert box_px[2] - 1 <= window.left + window.side
    assert box_px[3] - 1 <= window.top + window.side
    inner = window.inner(box_px)
    assert ((inner >= 0) & (inner <= SIDE_PX)).all()


@pytest.mark.parametrize("side_px", [20, 40, 120], ids=["smaller", "as it is", "larger"])
def test_a_point_is_the_same_place_in_both(side_px: int) -> None:
    ramp = np.zeros((100, 100, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(100), np.arange(100)[:, None]
    window = Window(30, 50, 40)
    cut = window.cut(ramp, side_px)
    assert cut.shape == (side_px, side_px, 3)
    for point in ([36.5, 60.5], [50.5, 70.5], [64.5, 80.5]):
        x, y = window.inner(np.array(point, np.float32), side_px)
        np.testing.assert_allclose(cut[int(y), int(x), :2], np.array(point) - 0.5, atol=1.5)


def ask(grounder: CloserGrounder, boxes: list[list[int]], phrases: list[str] | None = None) -> list[NDArray[np.float64]]:
    """Each box by a phrase of its own; the fake says yes to the left half of a box."""
    names = phrases or [f"thing {index}" for index in range(len(boxes))]
    inquiries = [
        Inquiry(grounding(name, [LARGE, sides]), 1, spread(np.array(sides, np.float32), 6))
        for name, sides in zip(names, boxes, strict=True)
    ]
    return [said.inside for said in grounder.ask(grounder.open(IMAGE), inquiries)]


def test_points_are_asked_in_the_close_up_of_their_box() -> None:
    fake = FakeGrounder({})
    ask(CloserGrounder(fake), [SMALL])
    [asked] = fake.asked
    window = window_around(box(*SMALL), 300, 200)
    assert window is not None
    assert fake.opened == 2
    assert asked.grounding.phrase == "thing 0"
    assert asked.index == 0
    np.testing.assert_allclose(asked.grounding.boxes_px, window.inner(box(*SMALL))[None])  # what else the phrase means is not there
    np.testing.assert_allclose(asked.points_px, spread(asked.grounding.boxes_px[0], 6), atol=1e-3)
    long = (asked.grounding.boxes_px[0, 2:] - asked.grounding.boxes_px[0, :2]).max()
    assert long == pytest.approx(SIDE_PX / ZOOM, rel=0.05)


def test_a_large_box_is_asked_about_in_the_whole_image() -> None:
    fake = FakeGrounder({})
    ask(CloserGrounder(fake), [LARGE])
    [asked] = fake.asked
    assert fake.opened == 1
    assert asked.index == 1
    assert asked.grounding.boxes_px.tolist() == [LARGE, LARGE]


def test_answers_come_in_the_order_of_the_questions() -> None:
    boxes = [LARGE, SMALL, OTHER, LARGE, SMALL]
    answers = ask(CloserGrounder(FakeGrounder({})), boxes)
    for sides, inside in zip(boxes, answers, strict=True):
        points = spread(np.array(sides, np.float32), 6)
        np.testing.assert_array_equal(inside > 0.5, points[:, 0] < (sides[0] + sides[2]) / 2)


def test_a_box_of_two_phrases_is_looked_at_once() -> None:
    fake = FakeGrounder({})
    ask(CloserGrounder(fake), [SMALL, SMALL, OTHER], ["the cup", "the left cup", "the dog"])
    assert fake.opened == 1 + 2
    assert len(fake.asked) == 3


@pytest.mark.parametrize(("view", "kind"), [("close-up", CloserGrounder), ("image", MllmGrounder)])
def test_the_dialect_says_where_points_are_asked(view: str, kind: type, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    spoken = replace(DEMO, points_view=view)  # type: ignore[arg-type]
    (folder / "dialect.json").write_text(dump_dialect(spoken), encoding="utf-8")
    assert type(sam4mllm.load(str(folder), device="cpu").grounder) is kind


def test_no_question_opens_nothing() -> None:
    fake = FakeGrounder({})
    assert ask(CloserGrounder(fake), []) == []
    assert fake.opened == 1


def test_the_rest_is_the_wrapped_grounders_own() -> None:
    found = {"the cup": grounding("the cup", [SMALL])}
    fake = FakeGrounder(found)
    closer = CloserGrounder(fake)
    scene = closer.open(IMAGE)
    assert isinstance(scene, CloserScene)
    assert (scene.width, scene.height, scene.nbytes) == (300, 200, IMAGE.nbytes)
    [answer] = closer.ground(scene, ["the cup"])
    assert answer is found["the cup"]
    assert closer.identity not in ("", fake.identity)
    assert closer.identity == CloserGrounder(FakeGrounder({})).identity


def test_the_wrapped_grounder_sees_the_enlarged_part() -> None:
    seen: list[NDArray[np.uint8]] = []

    class Looking(FakeGrounder):
        def open(self, image: NDArray[np.uint8]) -> Scene:
            seen.append(image)
            return super().open(image)

    ask(CloserGrounder(Looking({})), [SMALL])
    window = window_around(box(*SMALL), 300, 200)
    assert window is not None
    np.testing.assert_array_equal(seen[1], window.cut(IMAGE))
