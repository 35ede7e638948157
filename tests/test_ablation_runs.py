"""Ablations from their first setting to table, plot and command, and the controls that answer wrongly on purpose."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from sam4mllm import loading
from sam4mllm.cli import main as cli
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.evaluation.ablation import Journal, ablate
from sam4mllm.evaluation.ablation_table import Row, describe, find_best, tabulate, tell_gain, to_csv, to_markdown, to_plot
from sam4mllm.evaluation.controls import ANSWERS, Answers, ControlGrounder
from sam4mllm.evaluation.run import choose, evaluate
from sam4mllm.evaluation.settings import Setting, plan
from sam4mllm.grounding.protocol import Inquiry, Question, Scene
from sam4mllm.options import CHOICES, PATTERNS, Options
from sam4mllm.pipeline import Pipeline
from sam4mllm.values import Grounding
from tests.fakes import FakeConceptSegmenter, FakeGrounder, FakeSegmenter, grounding
from tests.test_ablation import BASE

BOX = (20, 10, 60, 50)


@dataclass
class CountingGrounder(FakeGrounder):
    """Counts the calls that ask for boxes."""

    grounded: int = 0

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        self.grounded += 1
        return super().ground(scene, phrases, question)


def pipeline() -> Pipeline:
    return Pipeline(CountingGrounder({"the cup": grounding("the cup", [BOX])}), FakeSegmenter())


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three images: a cup that is found, one that lies elsewhere, one that is not there."""
    mask = np.zeros((1, 80, 100), np.bool_)
    mask[0, 10:50, 20:60] = True
    with ExampleWriter(tmp_path / "data") as writer:
        for shade, masks in enumerate((mask, np.roll(mask, 20, 2), mask[:0])):
            record = writer.add_image(np.full((80, 100, 3), shade, np.uint8))
            writer.add(record, "the cup", masks, "test", "")
            writer.add(record, "the dog", mask[:0], "test", "")
    return tmp_path / "data"


def rows_of(dataset: Path, axes: Mapping[str, Sequence[str]], journal: Journal | None = None) -> list[Row]:
    return tabulate(ablate(plan(BASE, axes), dataset, choose(dataset), lambda *_: pipeline(), Journal() if journal is None else journal))


def test_every_setting_is_measured_as_it_is_alone(dataset: Path) -> None:
    for row in rows_of(dataset, {"strategy": (), "count": ("5",), "thresholds": ("0.5/0.5",)}):
        if row.setting.oracle:
            assert row.figures["mIoU"] == 1
            continue
        alone = Pipeline(pipeline().grounder, FakeSegmenter(), row.setting.options)
        figures, _ = evaluate(alone, dataset)
        for name in ("gIoU", "cIoU", "mIoU", "N-acc", "T-acc", "Pr@0.5", "Pr@0.9"):
            assert row.figures[name] == pytest.approx(figures[name])


def test_images_are_taken_in_once_and_questions_put_once(dataset: Path) -> None:
    made: list[Pipeline] = []

    def load(setting: Setting) -> Pipeline:
        del setting
        made.append(pipeline())
        return made[-1]

    settings = plan(BASE, {"thresholds": ()})
    ablate(settings, dataset, choose(dataset), load, Journal())
    [only] = made
    grounder = only.grounder
    assert isinstance(grounder, CountingGrounder)
    assert grounder.opened == 3
    assert grounder.grounded == 3  # one call an image, with all its phrases
    assert len(grounder.asked) == 3 * 2  # a box an image, 30 points for all thresholds, 15 as published


def test_seconds_are_what_a_setting_would_take_alone(dataset: Path) -> None:
    rows = {row.setting.label: row.figures for row in rows_of(dataset, {"thresholds": ("0.5/0.5",)})}
    first, again = rows["base"]["seconds_points"], rows["thresholds=0.5/0.5"]["seconds_points"]
    assert first is not None
    assert again is not None
    assert again > 0.1 * first > 0
    assert rows["oracle"]["seconds_per_phrase"] is None


def test_points_are_counted_against_the_true_mask(dataset: Path) -> None:
    [base, *_] = rows_of(dataset, {"thresholds": ()})
    # one box on the cup itself, one beside it, one of nothing: the left half of each box was called inside
    assert base.figures["kept"] == 1
    assert base.figures["kept_right"] == base.figures["asked_right"]
    assert 0.2 < (base.figures["kept_right"] or 0) < 0.8


def test_a_stopped_ablation_goes_on_where_it_was(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = rows_of(dataset, {"strategy": ()}, Journal(path))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7]) + lines[7][: len(lines[7]) // 2])
    assert len(Journal(path)) == 7
    again = rows_of(dataset, {"strategy": ()}, Journal(path))
    measured = [name for name in whole[0].figures if "seconds" not in name]
    assert [[row.figures[name] for name in measured] for row in again] == [[row.figures[name] for name in measured] for row in whole]
    assert len(Journal(path)) == len(lines)

    def broken(*_: object) -> Pipeline:
        idle = pipeline()
        idle.grounder.open = None  # type: ignore[method-assign, assignment]
        return idle

    ablate(plan(BASE, {"strategy": ()}), dataset, choose(dataset), broken, Journal(path))  # nothing is computed again


@pytest.mark.parametrize("line", ["[]", "{}", "null", '{"key": 1, "samples": [{}]}', '{"key": "a", "samples": [], "seconds": {}}', "\x00"])
def test_lines_of_a_journal_that_are_none_are_passed_over(tmp_path: Path, line: str) -> None:
    (tmp_path / "journal.jsonl").write_text(line + "\n", encoding="utf-8")
    assert len(Journal(tmp_path / "journal.jsonl")) == 0


# -- what is written -----------------------------------------------------------------------------------------------------------------------


def test_the_table_tells_gains_in_pairs(dataset: Path) -> None:
    rows = rows_of(dataset, {"strategy": (), "points": ()})
    assert find_best(rows).setting.oracle is False
    assert "published" in tell_gain(rows)
    base = rows[0]
    gain = base.to_base["gIoU"]
    assert gain is not None
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)
    lines = to_markdown(rows, "note").splitlines()
    assert lines[2].startswith("| base | ")
    assert len({line.count("|") for line in lines[: len(rows) + 2]}) == 1
    assert "published: pqpp, joint, 15 points" in "\n".join(lines)


def test_the_csv_has_every_figure(dataset: Path) -> None:
    rows = rows_of(dataset, {"strategy": ()})
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [line["setting"] for line in read] == [row.setting.label for row in rows]
    assert float(read[0]["gIoU low"]) <= float(read[0]["gIoU"]) <= float(read[0]["gIoU high"])
    assert read[-1]["seconds_per_phrase"] == ""


def test_hostile_names_can_be_drawn(dataset: Path) -> None:
    rows = rows_of(dataset, {"strategy": ()})
    named = [
        replace(row, setting=replace(row.setting, names=(*row.setting.names, "$x^{|\\")) if at else row.setting)
        for at, row in enumerate(rows)
    ]
    assert to_plot(named).startswith(b"\x89PNG")
    assert "$x^{\\|" in to_markdown(named)


# -- the command ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path) -> Any:
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: pipeline())

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli.make_app(), ["ablate", str(dataset), "--out", str(tmp_path / "out"), *arguments])

    return run


@pytest.mark.parametrize(
    ("segmenter", "more"), [(FakeSegmenter(), set()), (FakeConceptSegmenter(), {"concept", "choose"})], ids=["boxes alone", "phrases, too"]
)
def test_the_command_compares_the_strategies_that_can_be_done(
    monkeypatch: pytest.MonkeyPatch, command: Any, segmenter: FakeSegmenter, more: set[str]
) -> None:
    loaded: list[Pipeline] = []

    def load_pipeline(*_: object) -> Pipeline:
        loaded.append(Pipeline(FakeGrounder({}), segmenter))
        return loaded[-1]

    monkeypatch.setattr(loading, "load_pipeline", load_pipeline)
    rows = json.loads(command("--over", "strategy", "--json").stdout)["rows"]
    named = {name for row in rows for name in row["setting"].split(", ")} - {"base", "published", "oracle"}
    assert named == {f"strategy={name}" for name in {"box", "ppg"} | more}
    assert len(loaded) == 1


def test_the_command_writes_table_csv_and_plot(command: Any, tmp_path: Path) -> None:
    result = command("--over", "strategy,points")
    assert result.exit_code == 0, result.output
    assert "strategy=ppg" in result.stdout
    assert "best by gIoU" in result.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"ablation.csv", "ablation.md", "ablation.json", "ablation.png", "journal.jsonl"}
    printed = json.loads(command("--over", "strategy,points", "--json").stdout)
    assert printed["rows"] == json.loads((tmp_path / "out" / "ablation.json").read_text())


@pytest.mark.parametrize(("axis", "values"), [("pattern", PATTERNS), ("choice", CHOICES)])
def test_the_command_compares_patterns_and_choices(command: Any, axis: str, values: tuple[str, ...]) -> None:
    rows = json.loads(command("--over", axis, "--json").stdout)["rows"]
    said = {row["setting"]: row["is"] for row in rows if row["setting"].startswith(axis)}
    assert list(said) == [f"{axis}={value}" for value in values[1:]]
    assert all(f"{axis} {value}," in text for value, text in zip(values[1:], said.values(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--over", ","], "names nothing", id="no axis"),
        pytest.param(["--over", "count", "--values", "count"], "AXIS=VALUE", id="no values"),
        pytest.param(["--over", "count", "--values", "points=joint"], "--over does not", id="values of another axis"),
        pytest.param(["--over", "rank", "--adapters", "r16"], "NAME=FOLDER", id="an adapter without a name"),
        pytest.param(["--over", "rank", "--adapters", "a=/x,a=/y"], "each name once", id="a name twice"),
        pytest.param(["--over", "count", "--split", "val"], "it has test", id="no such split"),
    ],
)
def test_what_cannot_be_compared_is_one_line(command: Any, arguments: list[str], message: str) -> None:
    result = command(*arguments)
    assert result.exit_code == 1
    assert message in str(result.exception)


# -- controls ------------------------------------------------------------------------------------------------------------------------------


def answered(answers: Answers, points: int = 200) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a control says of points in the cup's box, and what the model says."""
    model = FakeGrounder({})
    scene = model.open(np.zeros((80, 100, 3), np.uint8))
    asked = [Inquiry(grounding("the cup", [BOX]), 0, np.random.default_rng(1).uniform(20, 60, (points, 2)).astype(np.float32))]
    [control], [again] = (ControlGrounder(model, answers).ask(scene, asked) for _ in range(2))
    np.testing.assert_array_equal(control.inside, again.inside)
    return control.inside, model.ask(scene, asked)[0].inside


def test_controls_answer_wrongly_on_purpose() -> None:
    for answers in ANSWERS:
        control, model = answered(answers)
        right = float(((control >= 0.5) == (model >= 0.5)).mean())
        assert right == pytest.approx({"model": 1.0, "shuffled-thoughts": 1.0, "inverted": 0.0}.get(answers, 0.5), abs=0.1)
    assert set(answered("coin-flipped")[0].tolist()) == {0.0, 1.0}
    assert len(set(answered("uniform")[0].tolist())) == 200
    np.testing.assert_array_equal(answered("inverted")[0], 1 - answered("inverted")[1])


@dataclass
class ThinkingGrounder(FakeGrounder):
    """Thinks of each phrase in its own words, where it is asked to."""

    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        found = [grounding(phrase, [BOX]) for phrase in phrases]
        return [replace(one, thought=f"it is {one.phrase}") for one in found] if question == "reason" else found


def test_shuffled_thoughts_are_those_of_other_phrases() -> None:
    control = ControlGrounder(ThinkingGrounder({}), "shuffled-thoughts")
    scene = control.open(np.zeros((80, 100, 3), np.uint8))
    phrases = ["the cup", "the dog", "the hat"]
    assert [one.thought for one in control.ground(scene, phrases, "reason")] == ["it is the dog", "it is the hat", "it is the cup"]
    assert [one.thought for one in control.ground(scene, phrases[:1], "reason")] == [""]
    assert [one.thought for one in control.ground(scene, phrases)] == ["", "", ""]
    assert [one.phrase for one in control.ground(scene, phrases, "reason")] == phrases


def test_shuffled_thoughts_are_a_row_where_the_model_thinks() -> None:
    thinking = Setting(("base",), Options("reason"))
    axes = {"answers": ("model", "shuffled-thoughts")}
    assert [row.answers for row in plan(thinking, axes)] == ["model", "model", "shuffled-thoughts", "model"]
    assert [row.label for row in plan(BASE, axes)] == ["base", "published", "oracle"]


def test_a_control_is_told_apart_and_is_never_the_best(dataset: Path) -> None:
    journal = Journal()
    rows = rows_of(dataset, {"answers": ()}, journal)
    right = {row.setting.label: row.figures["asked_right"] for row in rows}
    assert right["base"] is not None
    assert right["answers=inverted"] == pytest.approx(1 - right["base"])
    assert "answers inverted" in describe(rows[-2].setting)
    better = [replace(row, figures={**row.figures, "gIoU": 1.0}) if row.setting.answers != "model" else row for row in rows]
    assert find_best(better).setting.answers == "model"
    again = rows_of(dataset, {"answers": ()}, journal)
    assert {row.setting.label: row.figures["asked_right"] for row in again} == right
