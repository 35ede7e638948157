"""Templates are data that users write: what lacks a slot is refused at once, and what is written down reads back the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sam4mllm.errors import TemplateError
from sam4mllm.prompts.dialects import DEFAULT, DEMO, DIALECTS, Dialect, dump_dialect, load_dialect

PIXELS = dataclasses.replace(
    DEFAULT,
    name="pixels",
    box='{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}',
    frame="resized",
    digits=0,
    box_separator=",\n",
    no_target="[]",
    yes="是",
    no="否",
)

SLOTS = {
    "box_question": ("{phrase}",),
    "prompt_question": ("{phrase}",),
    "points_head": ("{box}",),
    "box": ("{x1}", "{y1}", "{x2}", "{y2}"),
    "point": ("{x}", "{y}"),
}


@pytest.mark.parametrize("dialect", [DEFAULT, DEMO], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(("field", "slot"), [pytest.param(f, s, id=f"{f} {s}") for f, slots in SLOTS.items() for s in slots])
def test_each_slot_is_needed(dialect: Dialect, field: str, slot: str) -> None:
    template = getattr(dialect, field).replace(slot, "")
    with pytest.raises(TemplateError, match=f"^dialect '{dialect.name}': {field} lacks \\{slot}$"):
        dataclasses.replace(dialect, **{field: template})


@pytest.mark.parametrize("field", SLOTS)
def test_all_missing_slots_are_named(field: str) -> None:
    with pytest.raises(TemplateError, match=f"{field} lacks {' and '.join(SLOTS[field])}".replace("{", "\\{")):
        dataclasses.replace(DEFAULT, **{field: "no slots"})


def test_slots_may_come_in_any_order_and_more_than_once() -> None:
    dialect = dataclasses.replace(DEFAULT, box="<{y1}><{x1}><{y2}><{x2}>", point="{y}/{x}/{y}")
    assert dialect.spell_box((1, 2, 3, 4)) == "<002><001><004><003>"
    assert dialect.spell_point((1, 2)) == "002/001/002"


def test_unknown_frame_is_refused() -> None:
    with pytest.raises(TemplateError, match="frame must be milli, resized, unit or square, not 'px'"):
        dataclasses.replace(DEFAULT, frame="px")  # type: ignore[arg-type]


def test_unknown_view_is_refused() -> None:
    with pytest.raises(TemplateError, match="points_view must be 'image' or 'close-up', not 'box'"):
        dataclasses.replace(DEFAULT, points_view="box")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("digits", "value", "spelled"),
    [
        pytest.param(3, 7, "007", id="padded"),
        pytest.param(3, 0, "000", id="zero"),
        pytest.param(3, 999, "999", id="full"),
        pytest.param(3, 1280, "1280", id="longer than the padding"),
        pytest.param(0, 7, "7", id="no padding"),
        pytest.param(1, 7, "7", id="one digit"),
        pytest.param(4, 251, "0251", id="four digits"),
    ],
)
def test_numbers(digits: int, value: int, spelled: str) -> None:
    assert dataclasses.replace(DEFAULT, digits=digits).spell_number(value) == spelled


def test_shipped_dialects_go_by_their_names() -> None:
    assert DIALECTS["default"] is DEFAULT
    assert DIALECTS["demo"] is DEMO
    assert all(load_dialect(name) is dialect for name, dialect in DIALECTS.items())


@pytest.mark.parametrize("dialect", [DEFAULT, DEMO, PIXELS], ids=lambda dialect: dialect.name)
def test_file_round_trip(dialect: Dialect, tmp_path: Path) -> None:
    path = tmp_path / "dialect.json"
    path.write_text(dump_dialect(dialect), encoding="utf-8")
    assert load_dialect(path) == load_dialect(str(path)) == dialect


def test_file_may_leave_out_what_has_a_default(tmp_path: Path) -> None:
    path = tmp_path / "dialect.json"
    path.write_text('{"name": "short", "box_question": "{phrase}?", "prompt_question": "{phrase}!", "points_head": "{box}"}')
    assert load_dialect(path) == Dialect("short", "{phrase}?", "{phrase}!", "{box}")


@pytest.mark.parametrize("source", ["nobody", "", ".", "missing.json", "demo "])
def test_unknown_name_lists_the_known(source: str) -> None:
    with pytest.raises(TemplateError, match=r"^no dialect '.*': give one of default, demo, .* or a JSON file$"):
        load_dialect(source)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not json", id="text"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"name": ' * 50_000, id="deep objects"),
        pytest.param(b"3", id="number"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="nothing in it"),
        pytest.param(b'{"name": "short"}', id="questions missing"),
        pytest.param(b'{"name": "a", "box_question": "{phrase}", "prompt_question": "{phrase}", "points_head": "{box}", "x": 1}', id="key"),
        pytest.param(b'{"name": "a", "box_question": 3, "prompt_question": "{phrase}", "points_head": "{box}"}', id="number for text"),
    ],
)
def test_what_is_no_dialect_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "dialect.json"
    path.write_bytes(content)
    with pytest.raises(TemplateError, match=r"dialect\.json is not a dialect: "):
        load_dialect(path)


def test_file_that_lacks_a_slot_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dialect.json"
    path.write_text(dump_dialect(DEFAULT).replace("{x1}", ""))
    with pytest.raises(TemplateError, match=r"box lacks \{x1\}"):
        load_dialect(path)
