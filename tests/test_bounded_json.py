"""JSON as Label Studio sends it is read as json.loads reads it; what would take too much is refused, and others go on meanwhile."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.brush import encode
from backend.errors import QueueFullError, WireError
from backend.support.bounded_json import MAX_CONTAINERS, MAX_NUMBERS, MAX_TEXTS, memory_of, read_json, write_json
from backend.web.intake import Intake

LONG = list(range(256)) * 300
BASE64 = "data:image/png;base64," + "AbC+/9" * 60_000


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"rle": LONG}, id="a mask"),
        pytest.param({"tasks": [{"rle": LONG, "also": [LONG, LONG]}, LONG], "z": 0.5}, id="masks in lists"),
        pytest.param({"image": BASE64, "rle": LONG, "more": [1.5, None, True, "a\nb"]}, id="an image"),
        pytest.param({"text": json.dumps(LONG), "rle": LONG}, id="a list within a text"),
        pytest.param({"text": "[" + ",".join("1" * 9 for _ in range(40_000)) + "]"}, id="only within a text"),
        pytest.param({"text": f'"{BASE64}"', "rle": LONG}, id="a quoted image within a text"),
        pytest.param({"large": [10**12, -5, 70_000] * 30_000}, id="large and negative numbers"),
        pytest.param({BASE64: LONG}, id="a long key"),
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_large_bodies_are_read_as_by_json(value: Any, separators: tuple[str, str]) -> None:
    body = json.dumps(value, separators=separators).encode()
    assert read_json(body) == value


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("sort_keys", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"z": {"rle": LONG}, "a": [LONG, "text", {"b": LONG}]}, id="masks"),
        pytest.param({"z": [{"y": 1, "x": [2, {"é": None}]}] * 70_000}, id="many objects"),
        pytest.param([1, {"b": 2, "a": []}, "\ud800"], id="short"),
    ],
)
def test_writing_gives_the_text_of_json(value: Any, compact: bool, sort_keys: bool) -> None:
    separators = (",", ":") if compact else None
    assert write_json(value, compact=compact, sort_keys=sort_keys) == json.dumps(value, separators=separators, sort_keys=sort_keys)


def test_a_noisy_mask_of_12_megapixels_has_room() -> None:
    """Specks on one pixel in a hundred: 0.8 million numbers; a request may hold some dozen such masks."""
    rng = np.random.default_rng(0)
    mask = np.zeros((3000, 4000), bool)
    mask[500:2500, 500:3500] = True
    rle = encode(mask ^ (rng.random(mask.shape) < 0.01))
    body = json.dumps({"tasks": [{"value": {"rle": rle}}] * 8}).encode()
    assert read_json(body)["tasks"][-1]["value"]["rle"] == rle
    assert 8 * memory_of(body) // 8 < 320 << 20


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(b'{"a":[' + b"[]," * MAX_CONTAINERS + b"[]]}", "lists and objects", id="empty lists"),
        pytest.param(b'{"a":[' + b"{}," * MAX_CONTAINERS + b"{}]}", "lists and objects", id="empty objects"),
        pytest.param(b'{"a":' + b"[" * 2 * MAX_CONTAINERS, "lists and objects", id="only opened"),
        pytest.param(b'{"a":[' + b'"ab",' * (MAX_TEXTS + 99) + b"1]}", "texts", id="texts"),
        pytest.param(b'{"a":[' + b"null," * (MAX_TEXTS + 99) + b"1]}", "words", id="words"),
        pytest.param(b'{"a":"' + b"\\n" * (MAX_TEXTS + 99) + b'"}', "words", id="escapes"),
        pytest.param(b'{"a":[' + b"1e1," * (MAX_NUMBERS + 1) + b"1]}", "numbers", id="fractions"),
        pytest.param(b'{"a":[' + b"257," * (MAX_NUMBERS + 1) + b"1]}", "numbers", id="numbers that are no byte"),
    ],
)
def test_what_would_take_too_much_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(WireError, match=f"too many {says}; send fewer tasks"):
        read_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":[' + b"1," * 200_000 + b"]}",
        b'{"a":[' + b"1," * 200_000 + b"01]}",
        b'{"a":[' + b"1 2," * 200_000 + b"1]}",
        b'{"a":[' + b"1," * 200_000 + b"1}",
        b'{"a":"' + b"A" * 300_000,
    ],
)
def test_large_bodies_that_are_no_json(body: bytes) -> None:
    with pytest.raises(WireError, match="no JSON"):
        read_json(body)


@settings(deadline=None)
@given(
    st.recursive(
        st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
        lambda one: st.lists(one) | st.dictionaries(st.text(max_size=9), one),
    )
)
def test_any_value_beside_a_mask(value: Any) -> None:
    whole = {"value": value, "rle": LONG}
    assert read_json(json.dumps(whole).encode()) == whole


def test_others_go_on_while_a_large_body_is_written() -> None:
    assert_others_go_on(partial(write_json, {"rle": [255] * 8_000_000}))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"a":[' + b"255," * 4_000_000 + b"1]}", id="one list"),
        pytest.param(b'{"a":[' + b",".join([b"[" + b"1," * 900 + b"1]"] * 2000) + b"]}", id="lists just too short to be parsed apart"),
    ],
)
def test_others_go_on_while_a_large_body_is_read(body: bytes) -> None:
    assert_others_go_on(partial(read_json, body))


def assert_others_go_on(work: Callable[[], object]) -> None:
    """The longest pause of another thread is far shorter than the work."""
    working = threading.Thread(target=work)
    pauses = []
    working.start()
    while working.is_alive():
        before = time.perf_counter()
        time.sleep(0.001)
        pauses.append(time.perf_counter() - before)
    assert len(pauses) > 5
    assert max(pauses) < sum(pauses) / 2


def test_large_bodies_wait_for_memory_and_few_may_wait() -> None:
    intake = Intake(memory=1000, wait_seconds=0.2, waiting=1)
    with intake.admit(100) as first:
        first.change(1000)
    with pytest.raises(QueueFullError, match="too many large requests"), intake.admit(10):
        pass
    first.give_back()
    with intake.admit(10) as second:
        second.change(600)
    with pytest.raises(QueueFullError), intake.admit(50) as third:
        third.change(700)
    second.give_back()
    with intake.admit(10**9) as whole:
        whole.change(10**9)
    whole.give_back()
    assert intake.change(0, 1000) == 1000
