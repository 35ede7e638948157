"""Reading answers is where untrusted text comes in: a table of what models write, round trips, and text made to hurt."""

from __future__ import annotations

import dataclasses

import pytest

from sam4mllm.prompts.conversation import SpokenInstance
from sam4mllm.prompts.dialects import DEFAULT, DEMO, Dialect
from sam4mllm.prompts.parse import (
    MAX_INSTANCES,
    MAX_POINTS,
    parse_boxes,
    parse_points,
    parse_prompt,
    says_no_target,
)

TAGGED = dataclasses.replace(DEFAULT, name="tagged", box="<box>({x1},{y1}),({x2},{y2})</box>")
ROUND = dataclasses.replace(DEMO, name="round", point="({x},{y})", digits=1)
JSON = dataclasses.replace(DEFAULT, name="json", box='{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}', box_separator=", ", no_target="[]")
LOCATION = dataclasses.replace(DEFAULT, name="location", box="<loc{y1}><loc{x1}><loc{y2}><loc{x2}>", point="<loc{y}><loc{x}>.", digits=4)
BARE = dataclasses.replace(DEFAULT, name="bare", box="{x1} {y1} {x2} {y2}")
WORDY = dataclasses.replace(DEFAULT, name="wordy", box="from {x1} {y1} to {x2} {y2}", inside="in", outside="in no part", box_separator="; ")

A, B, C = (281, 251, 863, 999), (10, 20, 30, 40), (0, 0, 999, 999)


@pytest.mark.parametrize(
    ("dialect", "text", "boxes"),
    [
        pytest.param(DEFAULT, "[281,251,863,999]", [A], id="as spelled"),
        pytest.param(DEFAULT, "[281,251,863,999] [010,020,030,040]", [A, B], id="two"),
        pytest.param(DEFAULT, "[010,020,030,040] [281,251,863,999]", [B, A], id="order of the answer"),
        pytest.param(DEFAULT, "[281,251,863,999][10,20,30,40]", [A, B], id="run together"),
        pytest.param(DEFAULT, "[281,251,863,999]\n[10,20,30,40]", [A, B], id="one a line"),
        pytest.param(DEFAULT, "[281, 251, 863, 999]", [A], id="space after commas"),
        pytest.param(DEFAULT, "[ 281 251 863 999 ]", [A], id="spaces for commas"),
        pytest.param(DEFAULT, "[281\n,\t251 ,863\r\n,999\u00a0]", [A], id="any white space"),
        pytest.param(DEFAULT, " \n[281,251,863,999]\n ", [A], id="space around"),
        pytest.param(DEFAULT, "[281,,251,863,999,]", [A], id="commas too many"),
        pytest.param(DEFAULT, "[10,20,30,40]", [B], id="no padding"),
        pytest.param(DEFAULT, "[0010,00020,30,0000000000000040]", [B], id="too much padding"),
        pytest.param(DEFAULT, "[0,0,0,0]", [(0, 0, 0, 0)], id="zeros"),
        pytest.param(DEFAULT, "[10.9,20.0,30.,40.5]", [B], id="decimals are rounded down"),
        pytest.param(DEFAULT, "[.9,20,30,40]", [(0, 20, 30, 40)], id="decimal without a whole part"),
        pytest.param(DEFAULT, "[-5,20,30,40]", [(0, 20, 30, 40)], id="below zero"),
        pytest.param(DEFAULT, "[-0.5,20,30,40]", [(0, 20, 30, 40)], id="just below zero"),
        pytest.param(DEFAULT, "[0,0,1000,1200]", [C], id="past the limit"),
        pytest.param(DEFAULT, "[0,0,1e9,999]", [], id="exponent is not a number here"),
        pytest.param(DEFAULT, f"[0,0,{'9' * 5000},999]", [C], id="digits that int refuses"),
        pytest.param(DEFAULT, f"[{'0' * 5000}10,20,30,40]", [B], id="thousands of leading zeros"),
        pytest.param(DEFAULT, "[0,0,12345678901,999]", [C], id="more digits than are kept"),
        pytest.param(DEFAULT, "[863,999,281,251]", [A], id="corners the wrong way round"),
        pytest.param(DEFAULT, "[863,251,281,999]", [A], id="one axis the wrong way round"),
        pytest.param(DEFAULT, "[5,5,5,5]", [(5, 5, 5, 5)], id="a point of a box"),
        pytest.param(DEFAULT, "[5,5,5,9]", [(5, 5, 5, 9)], id="a line of a box"),
        pytest.param(DEFAULT, "[10,20,30,40] [10,20,30,40]", [B], id="repeated"),
        pytest.param(DEFAULT, "[10,20,30,40] [1,2,3,4] [10,20,30,40]", [B, (1, 2, 3, 4)], id="repeated later"),
        pytest.param(DEFAULT, "[10,20,30,40] [30,40,10,20]", [B], id="repeated in another order"),
        pytest.param(DEFAULT, "[0,0,999,999] [-1,0,2000,999]", [C], id="repeated once clipped"),
        pytest.param(DEFAULT, "[281,251,863,999] [10,20,3", [A], id="cut off in a number"),
        pytest.param(DEFAULT, "[281,251,863,999] [10,20,30,40", [A], id="cut off before the bracket"),
        pytest.param(DEFAULT, "[281,251,863,999] [", [A], id="cut off after the bracket"),
        pytest.param(DEFAULT, "[281,251", [], id="nothing but a beginning"),
        pytest.param(DEFAULT, "[10,20 [281,251,863,999]", [A], id="a broken box before"),
        pytest.param(DEFAULT, "[1,2,3,4,5]", [], id="five numbers"),
        pytest.param(DEFAULT, "[1,2,3]", [], id="three numbers"),
        pytest.param(DEFAULT, "[]", [], id="no numbers"),
        pytest.param(DEFAULT, "[[281,251,863,999],[10,20,30,40]]", [A, B], id="list of lists"),
        pytest.param(DEFAULT, "[1,2,three,4]", [], id="a word for a number"),
        pytest.param(DEFAULT, "1,2,3,4", [], id="no brackets"),
        pytest.param(DEFAULT, "(1,2,3,4)", [], id="other brackets"),
        pytest.param(DEFAULT, "The left cup is at [281,251,863,999].", [A], id="prose"),
        pytest.param(DEFAULT, "I see 2 cups: 1. [281,251,863,999], 2. [10,20,30,40]", [A, B], id="numbered list"),
        pytest.param(DEFAULT, "x1=281 [10,20,30,40]", [B], id="other numbers in prose"),
        pytest.param(DEFAULT, "```\n[281,251,863,999]\n```", [A], id="code fence"),
        pytest.param(DEFAULT, '```json\n[{"bbox_2d": [281, 251, 863, 999], "label": "cup"}]\n```', [A], id="fenced JSON"),
        pytest.param(DEFAULT, '{"bbox_2d": [281, 251, 863, 999]}', [A], id="JSON"),
        pytest.param(DEFAULT, '[{"bbox_2d": [281, 251, 863, 999]}, {"bbox_2d": [10, 20, 30, 40]}]', [A, B], id="JSON, two"),
        pytest.param(DEFAULT, '[{"bbox_2d": [281, 251, 863, 999]}, {"bbox_2d": [10, 2', [A], id="JSON, cut off"),
        pytest.param(DEFAULT, '{"bbox_2d": [281.0, 251.5, 863.25, 999.0]}', [A], id="JSON, decimals"),
        pytest.param(DEFAULT, "[281,251,863,999] inside (300,400) outside (5,6)", [A], id="with a prompt"),
        pytest.param(DEFAULT, "none", [], id="no target"),
        pytest.param(DEFAULT, "", [], id="empty"),
        pytest.param(DEFAULT, " \n\t", [], id="blank"),
        pytest.param(DEFAULT, "\x00[10,20,30,40]\ud800", [B], id="signs that cannot be encoded"),
        pytest.param(DEFAULT, "[１０，２０，３０，４０]", [B], id="full-width digits and commas"),
        pytest.param(DEFAULT, "［10,20,30,40］", [B], id="full-width brackets"),
        pytest.param(DEFAULT, "[١٠,٢٠,٣٠,٤٠]", [], id="digits of another script"),
        pytest.param(DEFAULT, "[²,20,30,40]", [], id="superscript"),
        pytest.param(DEMO, "[281 251 863 999]", [A], id="demo, as spelled"),
        pytest.param(DEMO, "[ 281 251 863 999 ]", [A], id="demo, as decoded"),
        pytest.param(DEMO, "[ 281 251 863 999 ] [ 010 020 030 040 ]", [A, B], id="demo, two as decoded"),
        pytest.param(DEMO, "[281, 251, 863, 999]", [A], id="demo, commas"),
        pytest.param(DEMO, "[ 281 251 863 999 ] inside 300 400 420 500 [ 010 020 030 040 ]", [A, B], id="demo, with a prompt"),
        pytest.param(DEMO, "[ 281 251 863 999 ] [ 010 020 <|end|>", [A], id="demo, cut off"),
        pytest.param(TAGGED, "<box>(281,251),(863,999)</box>", [A], id="tags"),
        pytest.param(TAGGED, "<box>(281,251),(863,999)</box><box>(10,20),(30,40)</box>", [A, B], id="tags, two"),
        pytest.param(TAGGED, "<ref>cup</ref><box> ( 281 , 251 ) , ( 863 , 999 ) </box>", [A], id="tags, spaces"),
        pytest.param(TAGGED, "<BOX>(281 251) (863 999)</BOX>", [A], id="tags, capitals and no commas"),
        pytest.param(TAGGED, "<box>(281,251),(863,999)</box><box>(10,20),(30", [A], id="tags, cut off"),
        pytest.param(TAGGED, "<box>(281,251),(863,999)", [], id="tags, not closed"),
        pytest.param(TAGGED, "(281,251),(863,999)", [], id="tags missing: these are points"),
        pytest.param(TAGGED, "[281,251,863,999]", [A], id="tags forgotten, a list instead"),
        pytest.param(TAGGED, '{"bbox_2d": [281,251,863,999]}', [A], id="tags forgotten, JSON instead"),
        pytest.param(JSON, '{"bbox_2d": [281, 251, 863, 999]}', [A], id="JSON dialect"),
        pytest.param(JSON, '{"bbox_2d":[281,251,863,999],"label":"cup 2"}', [A], id="JSON dialect, another key"),
        pytest.param(JSON, "[281,251,863,999]", [A], id="JSON dialect, a plain list"),
        pytest.param(LOCATION, "<loc0251><loc0281><loc0999><loc0863> cup", [A], id="y first"),
        pytest.param(LOCATION, "<loc251><loc281><loc999><loc863><loc1", [A], id="y first, cut off"),
        pytest.param(BARE, "281 251 863 999, 10 20 30 40", [A, B], id="no brackets in the dialect"),
        pytest.param(BARE, "2 cups: 281 251 863 999 and 10 20", [A], id="no brackets in the dialect, other numbers"),
        pytest.param(WORDY, "From 281 251 to 863 999; from 10 20 to", [A], id="words in the dialect"),
    ],
)
def test_boxes(dialect: Dialect, text: str, boxes: list[tuple[int, int, int, int]]) -> None:
    assert parse_boxes(dialect, text) == boxes
    assert [instance.box for instance in parse_prompt(dialect, text)] == boxes
    assert not boxes or not says_no_target(dialect, text)


@pytest.mark.parametrize(
    ("limit", "box"),
    [
        pytest.param(999, (0, 5, 999, 999), id="thousandths"),
        pytest.param(1500, (0, 5, 1200, 1500), id="pixels of a resized image"),
        pytest.param(0, (0, 0, 0, 0), id="nothing"),
        pytest.param(10**12, (0, 5, 1200, 999_999_999), id="more than any image"),
    ],
)
def test_limit(limit: int, box: tuple[int, int, int, int]) -> None:
    assert parse_boxes(DEFAULT, f"[0,5,1200,{10**30}]", limit) == [box]


def test_boxes_are_bounded() -> None:
    text = " ".join(f"[0,0,{1 + i % 900},{1 + i // 900}]" for i in range(3000))
    assert parse_boxes(DEFAULT, text) == [(0, 0, 1 + i, 1) for i in range(MAX_INSTANCES)]
    assert len(parse_prompt(DEFAULT, text)) == MAX_INSTANCES


@pytest.mark.parametrize(
    ("dialect", "text", "points"),
    [
        pytest.param(DEFAULT, "(300,400) (420,500)", [(300, 400), (420, 500)], id="as spelled"),
        pytest.param(DEFAULT, "(300, 400),( 420 500 )", [(300, 400), (420, 500)], id="other separators"),
        pytest.param(DEFAULT, "(5,6.9)", [(5, 6)], id="decimals and no padding"),
        pytest.param(DEFAULT, "(-3,4000)", [(0, 999)], id="clipped"),
        pytest.param(DEFAULT, "(300,400) (420,5", [(300, 400)], id="cut off"),
        pytest.param(DEFAULT, "(300) (1,2,3) (420,500)", [(420, 500)], id="one number, three numbers"),
        pytest.param(DEFAULT, "(5,6) (5,6)", [(5, 6), (5, 6)], id="repetitions stay"),
        pytest.param(DEFAULT, "[281,251,863,999] inside (300,400)", [(300, 400)], id="box before"),
        pytest.param(DEFAULT, "300 400", [], id="no brackets"),
        pytest.param(DEFAULT, "", [], id="empty"),
        pytest.param(DEMO, "300 400 420 500", [(300, 400), (420, 500)], id="demo"),
        pytest.param(DEMO, "300 400 420", [(300, 400)], id="demo, odd number"),
        pytest.param(DEMO, "(300, 400), (420, 500)", [(300, 400), (420, 500)], id="demo, brackets"),
        pytest.param(DEMO, "[ 281 251 863 999 ] 300 400", [(300, 400)], id="demo, box before"),
        pytest.param(DEMO, "300 400 [ 281 251 863", [(300, 400)], id="demo, box cut off after"),
        pytest.param(DEMO, "[ 1 2 3 4 5 6 7 8 ] 300 400", [(300, 400)], id="demo, a box of eight numbers"),
        pytest.param(TAGGED, "<box>(1,2),(3,4)</box> (300,400)", [(300, 400)], id="tags, box before"),
        pytest.param(TAGGED, "(300,400) <box>(1,2),(3", [(300, 400)], id="tags, box cut off after"),
        pytest.param(LOCATION, "<loc0400><loc0300>.", [(300, 400)], id="y first"),
    ],
)
def test_points(dialect: Dialect, text: str, points: list[tuple[int, int]]) -> None:
    assert parse_points(dialect, text) == points


def test_points_are_bounded() -> None:
    points = " ".join(f"({i},{i})" for i in range(999))
    assert parse_points(DEFAULT, points) == [(i, i) for i in range(MAX_POINTS)]
    (instance,) = parse_prompt(DEFAULT, f"[1,2,3,4] inside {points} outside {points}")
    assert len(instance.inside) == len(instance.outside) == MAX_POINTS


def spoken(box: tuple[int, int, int, int], inside: str = "", outside: str = "") -> SpokenInstance:
    """Points as "x y, x y"."""

    def points(text: str) -> tuple[tuple[int, int], ...]:
        pairs = (point.split() for point in text.split(", ") if point)
        return tuple((int(x), int(y)) for x, y in pairs)

    return SpokenInstance(box, points(inside), points(outside))


FULL = spoken(A, "300 400, 420 500", "290 260")


@pytest.mark.parametrize(
    ("dialect", "text", "instances"),
    [
        pytest.param(DEFAULT, "[281,251,863,999] inside (300,400) (420,500) outside (290,260)", [FULL], id="as spelled"),
        pytest.param(DEFAULT, "[281,251,863,999] inside: (300,400), (420,500); outside: (290,260)", [FULL], id="punctuation"),
        pytest.param(DEFAULT, "[281,251,863,999]\nInside(300,400)(420,500)\nOUTSIDE(290,260)", [FULL], id="lines and capitals"),
        pytest.param(DEFAULT, "[281,251,863,999] outside (290,260) inside (300,400) (420,500)", [FULL], id="outside first"),
        pytest.param(DEFAULT, "[281,251,863,999] inside (300,400) outside (290,260) inside (420,500)", [FULL], id="inside twice"),
        pytest.param(DEFAULT, "[281,251,863,999] inside (300,400)", [spoken(A, "300 400")], id="no outside"),
        pytest.param(DEFAULT, "[281,251,863,999] outside (290,260)", [spoken(A, "", "290 260")], id="no inside"),
        pytest.param(DEFAULT, "[281,251,863,999]", [spoken(A)], id="box only"),
        pytest.param(DEFAULT, "[281,251,863,999] inside outside", [spoken(A)], id="words only"),
        pytest.param(DEFAULT, "[281,251,863,999] inside (300,400) (42", [spoken(A, "300 400")], id="cut off in a point"),
        pytest.param(DEFAULT, "[281,251,863,999] inside (300,400) outs", [spoken(A, "300 400")], id="cut off in a word"),
        pytest.param(DEFAULT, "[281,251,863,999] (300,400)", [spoken(A)], id="points without a word"),
        pytest.param(DEFAULT, "inside (300,400) [281,251,863,999]", [spoken(A)], id="points before the box"),
        pytest.param(
            DEFAULT,
            "[281,251,863,999] inside (300,400) [10,20,30,40] inside (15,25) outside (11,39)",
            [spoken(A, "300 400"), spoken(B, "15 25", "11 39")],
            id="two",
        ),
        pytest.param(
            DEFAULT,
            "[281,251,863,999] inside (300,400) [10,20,30,40] (15,25)",
            [spoken(A, "300 400"), spoken(B)],
            id="word of the box before",
        ),
        pytest.param(
            DEFAULT,
            "[281,251,863,999] inside (300,400) [10,20,30 inside (15,25) outside (11,39)",
            [spoken(A, "300 400")],
            id="points of a broken box",
        ),
        pytest.param(
            DEFAULT,
            "[281,251,863,999] inside (300,400) [281,251,863,999] inside (1,1)",
            [spoken(A, "300 400")],
            id="same box again",
        ),
        pytest.param(
            DEFAULT,
            "[281,251,863,999] [281,251,863,999] inside (1,1) [10,20,30,40] inside (15,25)",
            [spoken(A), spoken(B, "15 25")],
            id="same box again, then another",
        ),
        pytest.param(DEFAULT, "[281,251,863,999] inside (300,1400)", [spoken(A, "300 999")], id="clipped"),
        pytest.param(DEFAULT, "none", [], id="no target"),
        pytest.param(DEFAULT, "inside (300,400) outside (1,2)", [], id="no box"),
        pytest.param(DEFAULT, "", [], id="empty"),
        pytest.param(DEMO, "[281 251 863 999] inside 300 400 420 500 outside 290 260", [FULL], id="demo, as spelled"),
        pytest.param(DEMO, "[ 281 251 863 999 ] inside 300 400 420 500 outside 290 260", [FULL], id="demo, as decoded"),
        pytest.param(DEMO, "[ 281 251 863 999 ] inside 300 400, 420 500 outside 290 260 <|end|>", [FULL], id="demo, commas and the end"),
        pytest.param(
            DEMO, "[ 281 251 863 999 ] inside 300 400 420 outside 290 260", [spoken(A, "300 400", "290 260")], id="demo, odd inside"
        ),
        pytest.param(DEMO, "[ 281 251 863 999 ] inside 300 400 420 500 outside 290 260 7", [FULL], id="demo, odd end"),
        pytest.param(
            DEMO, "[ 281 251 863 999 ] inside 300 400 [ 10 20 30 40 ]", [spoken(A, "300 400"), spoken(B)], id="demo, box is no point"
        ),
        pytest.param(DEMO, "[ 281 251 863 999 ] inside 300 [ 10 20 30 40 ]", [spoken(A), spoken(B)], id="demo, odd before a box"),
        pytest.param(DEMO, "[ 281 251 863 999 ] inside 300 400 [ 10 20 30", [spoken(A, "300 400")], id="demo, cut off box is no point"),
        pytest.param(DEMO, "[ 281 251 863 999 ] inside 300 400 [ 10 20 ]", [spoken(A, "300 400")], id="demo, short box is no point"),
        pytest.param(DEMO, "[ 281 251 863 999 inside 300 400", [], id="demo, box not closed"),
        pytest.param(DEMO, "[ 281 251 863 999 300 400", [], id="demo, box not closed before points"),
        pytest.param(
            TAGGED,
            "<box>(281,251),(863,999)</box> inside (300,400) (420,500) outside (290,260)",
            [FULL],
            id="tags",
        ),
        pytest.param(
            TAGGED,
            "<box>(281,251),(863,999)</box> inside (300,400) <box>(10,20),(30,40) outside (1,2)",
            [spoken(A, "300 400")],
            id="tags, second not closed",
        ),
        pytest.param(ROUND, "[281 251 863 999] inside (300,400) (420,500) outside (290,260)", [FULL], id="brackets for points"),
        pytest.param(
            WORDY, "from 281 251 to 863 999 in (300,400) (420,500) in no part (290,260)", [FULL], id="one word begins as the other"
        ),
    ],
)
def test_prompts(dialect: Dialect, text: str, instances: list[SpokenInstance]) -> None:
    assert parse_prompt(dialect, text) == instances
