"""The label of a phrase is that of its head; it is found in a short time, whatever the labels and the phrase are."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import TaskError
from backend.label_studio.label_config import LabelConfig, read_label_config
from backend.label_studio.label_names import LabelNames, is_code
from backend.label_studio.phrases import wanted
from backend.label_studio.wire import Task
from backend.setup.project_checks import check_phrases
from backend.support.logs import clean
from tests.label_phrases import FIRST, MORE, SECOND, Row

ROWS = (*FIRST, *SECOND, *MORE)
LONG = "_" * 80_000
CONFIG = '<View><Image name="i" value="$i"/><BrushLabels name="m" toName="i">{}</BrushLabels></View>'


def config_of(*labels: str) -> LabelConfig:
    return read_label_config(CONFIG.format("".join(f'<Label value="{label}"/>' for label in labels)))


@pytest.mark.parametrize("row", ROWS, ids=[f"{kind}: {phrase}" for kind, phrase, *_ in ROWS])
def test_the_label_is_that_of_the_head(row: Row) -> None:
    _, phrase, labels, label = row
    assert config_of(*labels).label_for(phrase) == label


@pytest.mark.parametrize("row", FIRST, ids=[f"{kind}: {phrase}" for kind, phrase, *_ in FIRST])
def test_the_order_of_labels_and_other_names_make_no_difference(row: Row) -> None:
    _, phrase, labels, label = row
    names = [(f"unheard {number}", f"other {number}") for number in range(50)]
    pairs = [*names, *((name, name) for name in reversed(labels))]
    assert LabelNames(pairs).label_for(phrase) == label


def test_a_task_gets_the_labels_of_its_phrases_heads() -> None:
    config = config_of("man", "motorcycle", "Cup")
    one = Task(1, {"i": "x", "description": ["man on motorcycle", "the cup below the motorcycle", "the man's hat"]})
    assert [found.label for found in wanted(one, config, (), "description", "")] == ["man", "Cup", None]
    assert [found.label for found in wanted(one, config, ("motorcycle behind the man", "a cup"), "description", "")] == [
        "motorcycle",
        "Cup",
    ]
    told = Task(1, {"i": "x", "description": {"Cup": "the man", "men": "the cup", "a man on a cup": "it"}})
    assert [found.label for found in wanted(told, config, (), "description", "")] == ["Cup", "man", "man"]


def test_an_alias_counts_as_its_label() -> None:
    config = read_label_config(CONFIG.format('<Label value="c1" alias="mug, beaker"/><Label value="c2" alias="saucer"/>'))
    assert [config.label_for(phrase) for phrase in ("beaker on the saucer", "saucers under a mug", "c2", "the c2")] == [
        "c1",
        "c2",
        "c2",
        None,
    ]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *[(name, True) for name in ("cls_03", "7", "A", "c3", "x-1", "B.12", "_", "??", "", " 7 ", LONG, "a" * 501)],
        *[(name, False) for name in ("cup", "two words", "cup_2 or so", "犬", "T-shirt", "ab", "7up", "é", "x" * 500)],
    ],
    ids=ascii,
)
def test_codes_are_no_phrases(name: str, code: bool) -> None:
    assert is_code(name) is code


def test_a_label_too_long_to_be_asked_for_is_left_out() -> None:
    found = wanted(Task(1, {"i": "x"}), config_of("Cup", LONG, "Dog"), "", "description", "")
    assert [one.phrase for one in found] == ["Cup", "Dog"]


# -- time ----------------------------------------------------------------------------------------------------------------------------------

SECONDS = 2.0
"""Generous for a busy machine: what is linear takes milliseconds, what was quadratic minutes."""


def word(number: int) -> str:
    """Four letters, of which each number has others."""
    return "".join(chr(ord("b") + number // 25**place % 25) for place in range(4))


def many_names() -> LabelConfig:
    """9,500 labels with 12 aliases each."""
    aliases = (",".join(word(12 * number + other) for other in range(12)) for number in range(9_500))
    return read_label_config(CONFIG.format("".join(f'<Label value="l {number}" alias="{names}"/>' for number, names in enumerate(aliases))))


def label_many_keys() -> None:
    data = {"description": {f"x {number}": "a" for number in range(50_000)}}
    with pytest.raises(TaskError, match="50000 phrases"):
        wanted(Task(1, data), config_of("A", "B"), "", "description", "")


HOSTILE = {
    "a label of underscores": lambda: config_of(LONG, "Cup").mask.labels[0].phrase,
    "a label of letters": lambda: config_of("a" * 80_000 + "!", "Cup").label_for("the cup"),
    "phrases of a task under such labels": lambda: wanted(Task(1, {"i": "x"}), config_of(LONG + " x", LONG, "Cup"), "", "description", ""),
    "doctor on such labels": lambda: check_phrases(config_of(LONG, "Cup"), [{"id": 1, "data": {"i": "x"}}], "description"),
    "a phrase of 100,000 letters": lambda: config_of("Cup", "Dog").label_for("cup " * 25_000),
    "combining marks in a phrase": lambda: config_of("Cup", "Dog").label_for("a" + "\u0301" * 50_000 + "\u0316" * 50_000),
    "combining marks in a label": lambda: config_of("a" + "\u0301" * 50_000 + "\u0316" * 50_000, "Dog").label_for("the dog"),
    "a mapping of many labels": label_many_keys,
    "words of place": lambda: [
        config_of("Cup", "Dog").label_for(word * (500 // len(word))) for word in ("left ", "1 ", "l'", "of ", "one ")
    ],
    "words without spaces": lambda: [
        config_of("車", "犬").label_for(word * (500 // len(word))) for word in ("車", "たち", "1", "在", "と")
    ],
    "slashes in a log line": lambda: [clean(text * 50_000) for text in ("/", "_", "eyJ-", "a.", "//a", "x://")],
}


@pytest.mark.parametrize("work", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_names_and_phrases_take_no_time(work: Callable[[], object]) -> None:
    began = time.thread_time()
    work()
    assert time.thread_time() - began < SECONDS


def test_many_names_cost_a_phrase_nothing() -> None:
    config = many_names()
    assert config.label_for(f"the {word(12 * 77 + 5)} left of the {word(3)}") == "l 77"  # the names are read here, once
    began = time.thread_time()
    for _ in range(100):
        config.label_for(f"the red {word(113_999)} on top of the {word(100)}")
        config.label_for("nothing of the kind")
    assert (time.thread_time() - began) / 200 < 0.01


@given(st.text(max_size=600), st.lists(st.text(max_size=20), max_size=4))
def test_no_text_breaks_the_search(phrase: str, names: list[str]) -> None:
    found = LabelNames((name, name) for name in names).label_for(phrase)
    assert found is None or found in names


@given(st.sampled_from(ROWS), st.sampled_from(["{}", " {} ", "{}.", "{}!", '"{}"', "({})"]))
def test_marks_around_a_phrase_make_no_difference(row: Row, around: str) -> None:
    _, phrase, labels, label = row
    assert LabelNames((name, name) for name in labels).label_for(around.format(phrase)) == label
