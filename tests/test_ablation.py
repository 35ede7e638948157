"""Ablations on fakes: which settings are compared, what is asked how often, what is written, and that a stopped one goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from sam4mllm.errors import EvaluationError
from sam4mllm.evaluation.ablation_table import describe
from sam4mllm.evaluation.settings import Setting, plan, published, vary
from sam4mllm.options import CHOICES, PATTERNS, Options, Thresholds

BASE = Setting(("base",), Options("pqpp"))


# -- which settings ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "labels"),
    [
        pytest.param({"strategy": ()}, ["base", "published", "strategy=box", "strategy=ppg", "oracle"], id="strategies"),
        pytest.param(
            {"strategy": ("box", "reason")}, ["base", "published", "strategy=box", "strategy=reason", "oracle"], id="a thought first"
        ),
        pytest.param({"points": ()}, ["base", "published, points=joint", "oracle"], id="what is the same is one row"),
        pytest.param(
            {"answers": ()}, ["base", "published", "answers=uniform", "answers=coin-flipped", "answers=inverted", "oracle"], id="controls"
        ),
        pytest.param({"count": ("5", "30")}, ["base", "published", "count=5", "oracle"], id="given values"),
        pytest.param({"pattern": ("spread",)}, ["base", "published", "oracle"], id="the base's own value"),
        pytest.param({"pattern": ()}, ["base", "published", *[f"pattern={name}" for name in PATTERNS[1:]], "oracle"], id="patterns"),
        pytest.param({"choice": ()}, ["base", "published", *[f"choice={name}" for name in CHOICES[1:]], "oracle"], id="choices"),
        pytest.param(
            {"segmenter": ("demo", "other")},
            ["base", "published", "segmenter=other", "oracle", "oracle segmenter=other"],
            id="each segmenter has its upper bound",
        ),
    ],
)
def test_what_is_compared(axes: Mapping[str, Sequence[str]], labels: list[str]) -> None:
    assert [setting.label for setting in plan(BASE, axes)] == labels


def test_a_grid_is_every_combination() -> None:
    settings = plan(BASE, {"count": ("5", "10"), "thresholds": ("0.5/0.5", "0.75/0.9")}, grid=True)
    assert [setting.label for setting in settings[2:-1]] == [
        f"count={count} thresholds={pair}" for count in (5, 10) for pair in ("0.5/0.5", "0.75/0.9")
    ]
    assert settings[2].options == Options("pqpp", joint=False, count=5, thresholds=Thresholds(0.5, 0.5))


def test_points_are_asked_where_no_strategy_is_named() -> None:
    rows = plan(replace(BASE, options=Options()), {"count": ("5",), "strategy": ()})
    assert {row.label: row.options.strategy for row in rows} == {
        "base": "pqpp",
        "published": "pqpp",
        "count=5": "pqpp",
        "strategy=box": "box",
        "strategy=ppg": "ppg",
        "oracle": "pqpp",
    }


def test_what_a_strategy_does_not_use_makes_no_row() -> None:
    """A pattern is for asked points, a choice for points of any kind."""
    grid = plan(BASE, {"strategy": ("box", "ppg"), "pattern": ("spread", "unsure"), "choice": ("predicted", "single")}, grid=True)
    assert [describe(setting) for setting in grid[2:-1]] == [
        "box, segmenter demo",
        "ppg, choice predicted, segmenter demo",
        "ppg, choice single, segmenter demo",
    ]


def test_strategies_are_those_that_model_and_segmenter_can_do() -> None:
    rows = plan(BASE, {"strategy": ()}, strategies=("box", "concept", "choose"))
    assert [setting.label for setting in rows] == ["base", "published", "strategy=box", "strategy=concept", "strategy=choose", "oracle"]
    assert [describe(setting).split(", segmenter")[0] for setting in rows[2:4]] == ["box", "concept, threshold 0.5"]
    assert describe(rows[4]).startswith("choose, threshold 0.5, packed, 30 points, ")
    two = plan(replace(BASE, options=Options("concept", threshold=0.3)), {"strategy": ("concept", "choose"), "count": ("5",)}, grid=True)
    assert [setting.label for setting in two] == ["base", "published", "strategy=choose count=5", "oracle"]


def test_ranks_are_adapters_by_name() -> None:
    settings = plan(BASE, {"rank": ()}, {"r16": "/a", "r128": "/b"})
    assert [(setting.label, setting.adapter) for setting in settings[2:4]] == [("rank=r16", "/a"), ("rank=r128", "/b")]


def test_the_published_setting_is_that_of_the_notebook() -> None:
    options = published(Options(count=3, thresholds=Thresholds(0.1, 0.1)))
    assert (options.joint, options.points, options.thresholds) == (True, 15, Thresholds(0.75, 0.9))
    assert describe(replace(BASE, options=options)).startswith("pqpp, joint, 15 points")


@pytest.mark.parametrize(
    ("axis", "value", "message"),
    [
        ("strategy", "magic", "box, ppg, pqpp"),
        ("points", "all", "packed, joint"),
        ("count", "0", "1 to 30"),
        ("count", "many", "1 to 30"),
        ("count", "²", "1 to 30"),
        ("pattern", "stripes", "spread, interior, unsure, second-look"),
        ("choice", "largest", "predicted, single, agreement"),
        ("thresholds", "0.5", "0.75/0.9"),
        ("thresholds", "0.5/2", "0.75/0.9"),
        ("thresholds", "nan/0.5", "0.75/0.9"),
        ("rank", "r16", "nothing"),
        ("colour", "red", "what can: strategy"),
    ],
)
def test_values_that_are_none_are_refused(axis: str, value: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        vary(BASE, axis, value)


@pytest.mark.parametrize(
    ("axis", "message"), [("rank", "--adapters"), ("segmenter", "--values segmenter="), ("colour", "cannot be varied")]
)
def test_axes_without_values_are_refused(axis: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        plan(BASE, {axis: ()})
