"""What models write when they are asked for boxes, read to pixels: known answers, other families' answers, and text made to hurt."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4mllm.geometry import box_iou, order_box
from sam4mllm.grounding.frames import Frame, highest, to_numbers, to_pixels
from sam4mllm.grounding.reading import ReadAnswer, read_answer
from sam4mllm.prompts.answer_text import fold
from sam4mllm.prompts.conversation import BoxNumbers, SpokenInstance, box_answer, prompt_answer
from sam4mllm.prompts.dialects import DEFAULT, DEMO, DIALECTS, QWEN2_5_VL, QWEN2_VL, Dialect
from sam4mllm.prompts.parse import parse_boxes, parse_prompt
from tests.answers.table import ROWS, A, Row

IMAGE = Frame(1000, 500, (1008, 504))
KNOWN = [json.loads(line) for line in (Path(__file__).parent / "answers" / "known.jsonl").read_text().splitlines()]
ANY_BOX = ("beyond image", "pixels wrong frame (>999)")
"""Their numbers fit no frame, so no reading has the object: any one box in the image will do, with a note."""


def boxes_of(answer: ReadAnswer) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([instance.box_px for instance in answer.instances], np.float32).reshape(-1, 4)


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row['dialect']}, {row['what']}") for row in KNOWN])
def test_known_answers(row: dict[str, Any]) -> None:
    answer = read_answer(DIALECTS[row["dialect"]], IMAGE, row["answer"])
    assert len(answer.instances) == row["boxes"]
    if row["boxes"] and row["what"] not in ANY_BOX:
        assert box_iou(boxes_of(answer), np.array([A], np.float32)).max() > 0.85
    foreign = (*ANY_BOX, "normalised floats", "percent", "pixels")
    assert bool(answer.note) == (row["what"] in foreign)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_answers_of_other_models(row: Row) -> None:
    answer = read_answer(row.dialect, IMAGE, row.text, finished=row.finished)
    found = boxes_of(answer)
    assert len(found) == len(row.boxes), found
    for box, right in zip(found, row.boxes, strict=True):
        assert box_iou(box[None], np.array([right], np.float32))[0, 0] > 0.85, found
    assert bool(answer.note) == row.noted, answer.note
    assert answer.absent == row.absent


def test_nearly_all_are_right_and_none_is_wrong_without_a_word() -> None:
    """The bars over both tables: what is not right must at least be noted, or read as nothing."""
    right, silent = 0, []
    known = [
        Row(row["what"], DIALECTS[row["dialect"]], row["answer"], (A,) * row["boxes"], absent=False)
        for row in KNOWN
        if row["what"] not in ANY_BOX and row["boxes"] < 2
    ]
    for row in (*known, *ROWS):
        answer = read_answer(row.dialect, IMAGE, row.text, finished=row.finished)
        found = boxes_of(answer)
        same = len(found) == len(row.boxes) and all(
            box_iou(box[None], np.array([truth], np.float32))[0, 0] > 0.85 for box, truth in zip(found, row.boxes, strict=True)
        )
        right += same
        if not same and len(found) and not answer.note:
            silent.append(row.name)
    assert right >= 0.95 * (len(known) + len(ROWS))
    assert not silent


# -- the dialects' own answers -------------------------------------------------------------------------------------------------------------

EVERY = [pytest.param(dialect, id=name) for name, dialect in DIALECTS.items()]
WITH_BOXES = [pytest.param(dialect, id=name) for name, dialect in DIALECTS.items() if not dialect.answers_with_points]


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """An image, and what the processor made of it."""
    side = st.integers(1, 4000)
    return Frame(draw(side), draw(side), (28 * draw(st.integers(1, 120)), 28 * draw(st.integers(1, 120))))


QUICK = settings(max_examples=60, deadline=None, database=None)
SHARE = st.floats(0, 1, allow_nan=False)
BOX = st.tuples(SHARE, SHARE, SHARE, SHARE).map(lambda box: (*np.minimum(box[:2], box[2:]), *np.maximum(box[:2], box[2:])))
POINTS = st.lists(st.tuples(SHARE, SHARE), max_size=4)


def numbers_of(dialect: Dialect, image: Frame, shares: Sequence[Sequence[float]]) -> list[Any]:
    return [
        tuple(to_numbers(dialect, image, np.array(share) * np.resize([image.width, image.height], len(share))).tolist()) for share in shares
    ]


def is_plain(dialect: Dialect, image: Frame, box: BoxNumbers) -> bool:
    """Whether a box is one that a model means: as large as can be told from shares, and not in a square's padding."""
    if max(box) <= 1:
        return False
    x1, y1, x2, y2 = to_pixels(dialect, image, box)
    return bool(dialect.frame != "square" or (x2 > x1 and y2 > y1))


@pytest.mark.parametrize("dialect", WITH_BOXES)
@QUICK
@given(image=frames(), boxes=st.lists(BOX, max_size=5))
def test_own_answers_are_read_as_by_the_grammar(dialect: Dialect, image: Frame, boxes: list[tuple[float, ...]]) -> None:
    numbers = [box for box in numbers_of(dialect, image, boxes) if is_plain(dialect, image, box)]
    text = box_answer(dialect, "the left cup", numbers)
    answer = read_answer(dialect, image, text)
    assert [instance.numbers for instance in answer.instances] == parse_boxes(dialect, text, highest(dialect, image))
    assert answer.absent is not bool(numbers)
    assert not answer.note
    for instance, box in zip(answer.instances, dict.fromkeys(numbers), strict=True):
        expected = order_box(to_pixels(dialect, image, box), image.width, image.height)
        np.testing.assert_array_equal(instance.box_px, expected)


@pytest.mark.parametrize("dialect", WITH_BOXES)
@QUICK
@given(image=frames(), objects=st.lists(st.tuples(BOX, POINTS, POINTS), min_size=1, max_size=3))
def test_own_prompts_are_read_as_by_the_grammar(dialect: Dialect, image: Frame, objects: list[tuple[Any, Any, Any]]) -> None:
    spoken = [
        SpokenInstance(box, tuple(numbers_of(dialect, image, inside)), tuple(numbers_of(dialect, image, outside)))
        for shares, inside, outside in objects
        for box in numbers_of(dialect, image, [shares])
        if is_plain(dialect, image, box)
    ]
    text = prompt_answer(dialect, spoken)
    answer = read_answer(dialect, image, text, with_points=True)
    expected = parse_prompt(dialect, text, highest(dialect, image))
    assert [instance.numbers for instance in answer.instances] == [instance.box for instance in expected]
    assert not answer.note
    for instance, right in zip(answer.instances, expected, strict=True):
        for found, numbers in ((instance.inside_px, right.inside), (instance.outside_px, right.outside)):
            np.testing.assert_array_equal(found, to_pixels(dialect, image, np.array(numbers, np.float64).reshape(-1, 2)))


PROMPTS = [
    pytest.param(QWEN2_5_VL, '{"bbox_2d": [101, 50, 302, 252], "inside": [[202, 151]], "outside": [[110, 60], [290, 60]]}', "", id="JSON"),
    pytest.param(QWEN2_5_VL, "[0.1, 0.1, 0.3, 0.5] inside (0.2, 0.3) outside (0.11, 0.12) (0.29, 0.12)", "shares", id="shares"),
    pytest.param(QWEN2_VL, "(100,100),(300,500) inside (200,300) outside (110,120) (290,120)", "", id="without tokens"),
    pytest.param(DEFAULT, "Box: [10%, 10%, 30%, 50%]; positive: (20%, 30%); negative: (11%, 12%), (29%, 12%)", "percent", id="percent"),
]


@pytest.mark.parametrize(("dialect", "text", "note"), PROMPTS)
def test_prompts_in_other_spellings(dialect: Dialect, text: str, note: str) -> None:
    answer = read_answer(dialect, IMAGE, text, with_points=True)
    [instance] = answer.instances
    np.testing.assert_allclose(instance.box_px, A, atol=2)
    np.testing.assert_allclose(instance.inside_px, [[200, 150]], atol=2)
    np.testing.assert_allclose(instance.outside_px, [[110, 60], [290, 60]], atol=3)
    assert note in answer.note
    assert bool(note) == bool(answer.note)


# -- text made to hurt ---------------------------------------------------------------------------------------------------------------------

BRACKETS = [
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    "<box>",
    "</box>",
    "<|box_start|>",
    "<|box_end|>",
    "<ref>",
    "</ref>",
    "<think>",
    "</think>",
    "<answer>",
]
STEPS = [
    "<point>",
    "<loc_12>",
    "<loc0012>",
    "<patch_index_0040>",
    "\\",
    '"',
    "'",
    ",",
    "-",
    ".",
    "%",
    "px",
    ":",
    "\n",
    "```json",
    "<p>",
    "左上角",
]
NAMES = [
    "inside",
    "outside",
    "to",
    "top-left",
    "bottom-right",
    "bbox_2d",
    "x1",
    "y1",
    "x2",
    "y2",
    "x=",
    "y=",
    "width:",
    "height:",
    "box:",
    "size",
]
PIECES = st.sampled_from([*BRACKETS, *STEPS, *NAMES, "none", "points", "7", "0.5", "999", "1e-3", "12:30"])
TEXT = st.text(max_size=80) | st.lists(PIECES, max_size=60).map("".join) | st.lists(PIECES, max_size=60).map(" ".join)


@pytest.mark.parametrize("dialect", EVERY)
@settings(max_examples=150, deadline=None, database=None)
@given(text=TEXT, image=frames(), with_points=st.booleans(), finished=st.booleans())
def test_any_text_gives_boxes_inside_the_image(dialect: Dialect, text: str, image: Frame, with_points: bool, finished: bool) -> None:
    answer = read_answer(dialect, image, text, with_points=with_points, finished=finished)
    sides = np.array([image.width, image.height])
    for instance in answer.instances:
        assert (instance.box_px >= 0).all()
        assert (instance.box_px <= np.tile(sides, 2)).all()
        assert (instance.box_px[2:] > instance.box_px[:2]).all()
        assert len(fold(text)) >= instance.end > instance.start >= 0
        for points in (instance.inside_px, instance.outside_px):
            assert points.shape == (len(points), 2)
            assert (points >= 0).all()
            assert (points <= sides).all()
    assert not (answer.absent and answer.instances)
    assert "\n" not in answer.note


WORDS = st.lists(st.sampled_from([*BRACKETS, *NAMES, "the", "left", "cup", "is", "at", ",", ":", "two", "three"]), max_size=60)


@pytest.mark.parametrize("dialect", EVERY)
@QUICK
@given(text=WORDS.map(" ".join) | st.text(st.characters(exclude_categories=["Nd", "No", "Nl"]), max_size=200))
def test_no_numbers_no_box(dialect: Dialect, text: str) -> None:
    text = "".join(sign for sign in text if sign not in "0123456789")
    assert not read_answer(dialect, IMAGE, text).instances


HOSTILE = [
    *(
        "[",
        "[1,",
        "[1,2,3,4] ",
        "(1,2) ",
        "(1,2),(3,4) ",
        "{",
        '{"x1": 1, "y1": 2, ',
        "<box>",
        "<box>1 2 ",
        "<think>",
        "</think>",
        "<answer>",
    ),
    *(
        '"',
        "'",
        '"\\',
        "x1",
        "x1: 1 ",
        "x: ",
        "to ",
        "top-left (1,2) ",
        "box ",
        "box: 1, ",
        "1 ",
        "9",
        "-",
        ".1",
        "1x",
        "1:",
        "1.1.",
        "<ref>",
    ),
    *(
        "<loc_1>",
        "<loc0001>",
        "<patch_index_0001>",
        "<",
        "<point ",
        "<a",
        "not in the ",
        "ne vois ",
        "inside (1,2) ",
        "｛",
        "\n",
        "| x1 | y1 ",
    ),
    *("左上", "final answer: ", "answer:\n", "es gibt k", "nicht a ", "[1,2,3,4", "]", ")]}"),
]


def seconds(dialect: Dialect, text: str) -> float:
    """Processor time. Collecting garbage takes a share that depends on all else."""
    gc.disable()
    try:
        start = time.process_time()
        read_answer(dialect, IMAGE, text, with_points=True)
        return time.process_time() - start
    finally:
        gc.enable()


@pytest.mark.parametrize("piece", [pytest.param(piece, id=repr(piece)) for piece in HOSTILE])
@pytest.mark.parametrize("dialect", [pytest.param(DEMO, id="demo"), pytest.param(QWEN2_VL, id="qwen2-vl")])
def test_time_grows_with_the_length_only(dialect: Dialect, piece: str) -> None:
    """Four times the text takes about four times as long; a quadratic reader takes sixteen times. The machine may be busy: tried thrice."""
    text = piece * (4_000 // len(piece))
    short = min(seconds(dialect, text) for _ in range(3))
    assert any(seconds(dialect, text * 4) < 8 * max(short, 0.004) for _ in range(3))
