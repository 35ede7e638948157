"""Answers that are read back: verdicts, "none", what was spelled comes back, and hostile text."""

from __future__ import annotations

import dataclasses
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4mllm.demo.tokenizer import build_tokenizer
from sam4mllm.prompts.conversation import SpokenInstance, box_answer, points_answer, points_body, prompt_answer
from sam4mllm.prompts.dialects import DEFAULT, DEMO, Dialect
from sam4mllm.prompts.parse import (
    parse_boxes,
    parse_points,
    parse_prompt,
    parse_verdicts,
    says_no_target,
)
from tests.test_parse import BARE, FULL, JSON, LOCATION, ROUND, TAGGED, WORDY, A, B, C, spoken

ALL = [pytest.param(dialect, id=dialect.name) for dialect in (DEFAULT, DEMO, TAGGED, ROUND, JSON, LOCATION, WORDY)]


def test_prompt_without_words() -> None:
    dialect = dataclasses.replace(DEFAULT, inside="", outside="")
    assert parse_prompt(dialect, "[281,251,863,999] (300,400)") == [spoken(A)]


VERDICTS = {"y": True, "n": False, "?": None}


@pytest.mark.parametrize(
    ("dialect", "text", "verdicts"),
    [
        pytest.param(DEFAULT, "YesNoNoYes", "ynny", id="as spelled"),
        pytest.param(DEMO, "yes no no yes", "ynny", id="demo, as spelled"),
        pytest.param(DEFAULT, "yes no no yes", "ynny", id="spaces"),
        pytest.param(DEFAULT, "yesnonoyes", "ynny", id="run together in lower case"),
        pytest.param(DEFAULT, "YES, NO, NO, YES", "ynny", id="commas and capitals"),
        pytest.param(DEFAULT, "Yes,No,No,Yes", "ynny", id="commas only"),
        pytest.param(DEFAULT, "Yes\nNo\nNo\nYes\n", "ynny", id="lines"),
        pytest.param(DEFAULT, "Yes,\nNo,\n\nNo;Yes", "ynny", id="mixed"),
        pytest.param(DEFAULT, "Yes. No. No. Yes.", "ynny", id="full stops"),
        pytest.param(DEFAULT, "1. Yes 2. No 3. No 4. Yes", "ynny", id="numbered"),
        pytest.param(DEFAULT, "1: yes\n2: no\n3: no\n4: yes", "ynny", id="numbered lines"),
        pytest.param(DEFAULT, '["Yes", "No", "No", "Yes"]', "ynny", id="JSON"),
        pytest.param(DEFAULT, "(300,400): Yes", "?y", id="a point's comma parts fields"),
        pytest.param(DEFAULT, "Point A is yes\npoint B is no", "yn", id="prose, one a line"),
        pytest.param(DEFAULT, "The answers are: yes no no yes", "ynny", id="introduction"),
        pytest.param(DEFAULT, "Here they are:\nyes\nno", "yn", id="introduction on its own line"),
        pytest.param(DEFAULT, "Sure, yes no", "yn", id="introduction before a comma"),
        pytest.param(DEFAULT, "Yes, it lies on the object.", "y", id="explained"),
        pytest.param(DEFAULT, "YesNo", "yn??", id="too few"),
        pytest.param(DEFAULT, "YesNoNoYesYesYes", "ynny", id="too many"),
        pytest.param(DEFAULT, "YesNoYe", "yn?", id="cut off"),
        pytest.param(DEFAULT, "YesN", "y?", id="cut off after a letter"),
        pytest.param(DEFAULT, "yes maybe no", "y?n", id="unreadable between"),
        pytest.param(DEFAULT, "yes not sure no", "y?n", id="unreadable words between count once"),
        pytest.param(DEFAULT, "maybe, yes, no", "?yn", id="unreadable first"),
        pytest.param(DEFAULT, "yes, maybe, no", "y?n", id="unreadable field"),
        pytest.param(DEFAULT, "yes\n?\nno", "y?n", id="field without a word"),
        pytest.param(DEFAULT, "none", "?", id="none is not no"),
        pytest.param(DEFAULT, "nothing", "?", id="nothing is not no"),
        pytest.param(DEFAULT, "yesterday", "?", id="yesterday is not yes"),
        pytest.param(DEFAULT, "unknown", "?", id="no within a word"),
        pytest.param(DEFAULT, "not", "?", id="not is not no"),
        pytest.param(DEFAULT, "[281,251,863,999]", "??", id="a box"),
        pytest.param(DEFAULT, "", "???", id="empty"),
        pytest.param(DEFAULT, " \n ", "???", id="blank"),
        pytest.param(DEFAULT, "YesNo", "", id="none wanted"),
        pytest.param(DEFAULT, "ＹｅｓＮｏ", "yn", id="full width"),
        pytest.param(dataclasses.replace(DEFAULT, yes="1", no="0"), "1001", "ynny", id="figures"),
        pytest.param(dataclasses.replace(DEFAULT, yes="是", no="不是"), "是不是不是是", "ynny", id="one contains the other"),
        pytest.param(dataclasses.replace(DEFAULT, yes="(+)", no="(-)"), "(+) (-)(-) (+)", "ynny", id="signs with a meaning in regexes"),
        pytest.param(dataclasses.replace(DEFAULT, yes=" yes ", no=" no "), "yes no", "yn", id="padded words"),
    ],
)
def test_verdicts(dialect: Dialect, text: str, verdicts: str) -> None:
    assert parse_verdicts(dialect, text, len(verdicts)) == [VERDICTS[verdict] for verdict in verdicts]


@pytest.mark.parametrize(
    ("dialect", "text", "absent"),
    [
        pytest.param(DEFAULT, "none", True, id="as spelled"),
        pytest.param(DEFAULT, "None.", True, id="capital and full stop"),
        pytest.param(DEMO, "none <|end|>", True, id="demo, with the end"),
        pytest.param(DEFAULT, "There are none in the image.", True, id="in prose"),
        pytest.param(DEFAULT, "No object found.", True, id="no object found"),
        pytest.param(DEFAULT, "no", True, id="no"),
        pytest.param(DEFAULT, "No.", True, id="no, full stop"),
        pytest.param(DEFAULT, "No, there is not a cup.", True, id="no, explained"),
        pytest.param(DEFAULT, "There is no such object.", True, id="there is no"),
        pytest.param(DEFAULT, "Sorry, there's no cup here", True, id="there's no"),
        pytest.param(DEFAULT, "Not found", True, id="not found"),
        pytest.param(DEFAULT, "The left cup is not present in this image.", True, id="not present"),
        pytest.param(DEFAULT, "The cup isn't in the image.", True, id="isn't"),
        pytest.param(DEFAULT, "It doesn't exist", True, id="doesn't exist"),
        pytest.param(DEFAULT, "It doesn’t exist", True, id="typographic apostrophe"),
        pytest.param(DEFAULT, "I cannot find a cup", True, id="cannot find"),
        pytest.param(DEFAULT, "I see nothing like that", True, id="nothing"),
        pytest.param(DEFAULT, "null", True, id="null"),
        pytest.param(DEFAULT, "N/A", True, id="n/a"),
        pytest.param(DEFAULT, "[]", True, id="empty list"),
        pytest.param(DEFAULT, "```json\n[ ]\n```", True, id="fenced empty list"),
        pytest.param(DEFAULT, "{}", True, id="empty mapping"),
        pytest.param(DEFAULT, '{"boxes": []}', True, id="mapping of an empty list"),
        pytest.param(JSON, "[]", True, id="empty list as the dialect's words"),
        pytest.param(dataclasses.replace(DEFAULT, no_target="I do not see it"), "I do  not see it!", True, id="several words"),
        pytest.param(DEFAULT, "", False, id="empty"),
        pytest.param(DEFAULT, " \n", False, id="blank"),
        pytest.param(DEFAULT, "[281,251,863,999]", False, id="a box"),
        pytest.param(DEFAULT, "none [281,251,863,999]", False, id="none beside a box"),
        pytest.param(DEFAULT, "No problem, here it is: [281,251,863,999]", False, id="no beside a box"),
        pytest.param(DEFAULT, "[281,251,8", False, id="beginning of a box"),
        pytest.param(DEFAULT, "the left cup", False, id="the phrase again"),
        pytest.param(DEFAULT, "I am not sure.", False, id="not sure"),
        pytest.param(DEFAULT, "a nonentity", False, id="none within a word"),
        pytest.param(DEFAULT, "the knob", False, id="no within a word"),
        pytest.param(DEFAULT, "yes", False, id="yes"),
    ],
)
def test_no_target(dialect: Dialect, text: str, absent: bool) -> None:
    assert says_no_target(dialect, text) is absent


NUMBERS = st.integers(0, 999)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=8)
BOXES = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS).map(
    lambda box: (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
)
INSTANCES = st.builds(SpokenInstance, BOXES, POINTS.map(tuple), POINTS.map(tuple))
QUICK = settings(max_examples=40, deadline=None, database=None)


@pytest.mark.parametrize("dialect", [*ALL, pytest.param(BARE, id="bare")])
@QUICK
@given(boxes=st.lists(BOXES, max_size=8))
def test_boxes_come_back(dialect: Dialect, boxes: list[tuple[int, int, int, int]]) -> None:
    text = box_answer(dialect, "the left cup", boxes)
    assert parse_boxes(dialect, text) == list(dict.fromkeys(boxes))
    assert says_no_target(dialect, text) is not bool(boxes)


@pytest.mark.parametrize("dialect", ALL)
@QUICK
@given(points=POINTS)
def test_points_come_back(dialect: Dialect, points: list[tuple[int, int]]) -> None:
    assert parse_points(dialect, points_body(dialect, points)) == points


@pytest.mark.parametrize("dialect", ALL)
@QUICK
@given(instances=st.lists(INSTANCES, max_size=5, unique_by=lambda instance: instance.box))
def test_prompts_come_back(dialect: Dialect, instances: list[SpokenInstance]) -> None:
    text = prompt_answer(dialect, instances)
    assert parse_prompt(dialect, text) == instances
    assert parse_boxes(dialect, text) == [instance.box for instance in instances]
    assert says_no_target(dialect, text) is not bool(instances)


@pytest.mark.parametrize("dialect", ALL)
@QUICK
@given(inside=st.lists(st.booleans(), max_size=30))
def test_verdicts_come_back(dialect: Dialect, inside: list[bool]) -> None:
    assert parse_verdicts(dialect, points_answer(dialect, inside), len(inside)) == inside


@QUICK
@given(instances=st.lists(INSTANCES, max_size=5, unique_by=lambda instance: instance.box), cut=st.integers(0, 400))
def test_cut_off_answers_are_read_up_to_the_cut(instances: list[SpokenInstance], cut: int) -> None:
    read = parse_prompt(DEFAULT, prompt_answer(DEFAULT, instances)[:cut])
    assert read[:-1] == instances[: len(read) - 1] if read else True
    for last, whole in zip(read[-1:], instances[len(read) - 1 :], strict=False):
        assert last.box == whole.box
        assert last.inside == whole.inside[: len(last.inside)]
        assert last.outside == whole.outside[: len(last.outside)]


def test_demo_tokenizer_comes_back() -> None:
    tokenizer = build_tokenizer()
    instances = [FULL, spoken(B, "15 25"), spoken(C)]
    decoded = tokenizer.decode(tokenizer(prompt_answer(DEMO, instances))["input_ids"])
    assert decoded.startswith("[ 281 251 863 999 ] inside 300 400")
    assert parse_prompt(DEMO, decoded) == instances
    verdicts = tokenizer.decode(tokenizer(points_answer(DEMO, [True, False, True]))["input_ids"])
    assert parse_verdicts(DEMO, verdicts, 3) == [True, False, True]
    assert says_no_target(DEMO, tokenizer.decode(tokenizer(box_answer(DEMO, "a cup", []))["input_ids"]))


PIECES = st.sampled_from(
    ["[", "]", "(", ")", "<box>", "</box>", "inside", "outside", "yes", "No", "none", " ", ",", "-", ".", "7", "999", "\n"]
)


@pytest.mark.parametrize("dialect", [*ALL, pytest.param(BARE, id="bare")])
@QUICK
@given(text=st.text(max_size=60) | st.lists(PIECES, max_size=60).map("".join), count=st.integers(0, 5), limit=st.integers(0, 2000))
def test_any_text_gives_valid_values(dialect: Dialect, text: str, count: int, limit: int) -> None:
    boxes = parse_boxes(dialect, text, limit)
    assert all(0 <= x1 <= x2 <= limit and 0 <= y1 <= y2 <= limit for x1, y1, x2, y2 in boxes)
    assert len(set(boxes)) == len(boxes)
    instances = parse_prompt(dialect, text, limit)
    assert [instance.box for instance in instances] == boxes
    points = [point for instance in instances for point in (*instance.inside, *instance.outside)]
    assert all(0 <= number <= limit for point in (*points, *parse_points(dialect, text, limit)) for number in point)
    assert len(parse_verdicts(dialect, text, count)) == count
    assert not (boxes and says_no_target(dialect, text))


@pytest.mark.parametrize("dialect", [pytest.param(DEMO, id="demo"), pytest.param(TAGGED, id="tagged")])
@pytest.mark.parametrize(
    "piece",
    [
        pytest.param("[", id="brackets"),
        pytest.param("[1 ", id="beginnings"),
        pytest.param("[1,2,3 ", id="three numbers"),
        pytest.param("[1,2,3,4] ", id="one box"),
        pytest.param("9", id="one number"),
        pytest.param("0", id="zeros"),
        pytest.param("1 ", id="numbers"),
        pytest.param("-1", id="signs"),
        pytest.param(".1", id="decimals"),
        pytest.param("<box>(1,2),", id="tags"),
        pytest.param("inside ", id="words"),
        pytest.param("yes", id="verdicts run together"),
        pytest.param("yesn", id="verdicts run together, broken"),
        pytest.param("no ", id="verdicts"),
        pytest.param("there is not in the ", id="almost absent"),
        pytest.param("\u0344", id="combining"),
        pytest.param("İ", id="grows in lower case"),
    ],
)
def test_hostile_text_is_read_in_linear_time(dialect: Dialect, piece: str) -> None:
    """Processor time, since the machine may be busy; a regular expression that backtracks would take minutes."""
    text = piece * (100_000 // len(piece))
    for read in (parse_boxes, parse_points, parse_prompt, says_no_target):
        start = time.process_time()
        read(dialect, text)
        assert time.process_time() - start < 1
    start = time.process_time()
    parse_verdicts(dialect, text, 30)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("piece", ["[1,", "[1,2,3,4] ", "yesn", "-1.", "not in the "])
def test_blanks_between_cost_nothing(piece: str) -> None:
    text = (piece + " " * 900) * 100
    start = time.process_time()
    parse_prompt(DEFAULT, text)
    parse_verdicts(DEFAULT, text, 30)
    says_no_target(DEFAULT, text)
    assert time.process_time() - start < 1
