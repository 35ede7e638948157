"""Evaluation end to end on fakes that know the answer, or know it wrongly."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sam4mllm import loading
from sam4mllm.cli import main as cli
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.errors import DatasetError
from sam4mllm.evaluation.run import POINT_KINDS, choose, evaluate, intervals_of, summarize_judged
from sam4mllm.options import Options
from sam4mllm.pipeline import Pipeline
from sam4mllm.run_lengths import from_rle
from tests.fakes import FakeGrounder, FakeSegmenter, grounding

BOX = (20, 10, 60, 50)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """One image with a square cup, asked for twice, and a dog that is not there."""
    mask = np.zeros((1, 80, 100), np.bool_)
    mask[0, 10:50, 20:60] = True
    with ExampleWriter(tmp_path / "data") as writer:
        record = writer.add_image(np.zeros((80, 100, 3), np.uint8))
        writer.add(record, "the cup", mask, "test", "", boxes=[BOX])
        writer.add(record, "the dog", mask[:0], "test", "")
    return tmp_path / "data"


def test_perfect_models_are_measured_as_perfect(dataset: Path) -> None:
    figures, judged = evaluate(
        Pipeline(FakeGrounder({"the cup": grounding("the cup", [BOX])}), FakeSegmenter(), Options("box")), dataset, oracle=True
    )
    assert {name: figures[name] for name in ("gIoU", "cIoU", "mIoU", "N-acc", "T-acc", "Pr@0.9", "oracle_mIoU", "count")} == {
        "gIoU": 1, "cIoU": 1, "mIoU": 1, "N-acc": 1, "T-acc": 1, "Pr@0.9": 1, "oracle_mIoU": 1, "count": 2,
    }  # fmt: skip
    assert figures["point_accuracy"] == pytest.approx(0.5, abs=0.15)  # the fake denies the right half
    assert [one.example.phrase for one in judged] == ["the cup", "the dog"]


def test_wrong_models_are_measured_as_wrong(dataset: Path) -> None:
    known = {"the cup": grounding("the cup", [(40, 10, 80, 50)]), "the dog": grounding("the dog", [(0, 0, 10, 10)])}
    figures, _ = evaluate(Pipeline(FakeGrounder(known), FakeSegmenter(), Options("box")), dataset)
    assert figures["mIoU"] == pytest.approx(1 / 3)
    assert figures["gIoU"] == pytest.approx(1 / 6)
    assert figures["N-acc"] == 0
    assert figures["T-acc"] == 1
    assert figures["oracle_mIoU"] is None


def test_all_phrases_of_an_image_are_one_call(dataset: Path) -> None:
    grounder = FakeGrounder({})
    evaluate(Pipeline(grounder, FakeSegmenter(), Options("box")), dataset)
    assert grounder.opened == 1


def test_a_split_and_a_number_of_images_can_be_chosen(dataset: Path) -> None:
    assert len(choose(dataset, "test")) == 2
    assert len({example.image for example in choose(dataset, limit=1)}) == 1
    with pytest.raises(DatasetError, match="split val; it has test"):
        choose(dataset, "val")


def test_points_are_told_by_what_they_lie_on(tmp_path: Path) -> None:
    """The fake says yes to the left half of a box: right of the cup, wrong of the dog, which has the other half of that box."""
    cup, dog = (np.zeros((1, 80, 100), np.bool_) for _ in range(2))
    cup[0, 10:50, 20:40] = True
    dog[0, 10:30, 40:60] = True
    with ExampleWriter(tmp_path / "data") as writer:
        record = writer.add_image(np.zeros((80, 100, 3), np.uint8))
        writer.add(record, "the cup", cup, "test", "", boxes=[BOX])
        writer.add(record, "the dog", dog, "test", "", boxes=[BOX])
    figures, judged = evaluate(Pipeline(FakeGrounder({}), FakeSegmenter(), Options("box")), tmp_path / "data")
    about_cup, about_dog = judged
    assert about_cup.on_other.sum() == about_dog.on.sum() > 0
    assert summarize_judged([about_cup])["points_on_other"] == 1
    assert [summarize_judged([about_dog])[kind] for kind in POINT_KINDS] == [0, 0, 1]
    ends = intervals_of(judged)
    assert all(figures[kind] is not None and ends[kind] is not None for kind in POINT_KINDS)


def test_what_an_example_ignores_counts_neither_way(tmp_path: Path) -> None:
    mask, ignored = np.zeros((1, 80, 100), np.bool_), np.zeros((80, 100), np.bool_)
    mask[0, 10:50, 20:40] = True
    ignored[10:50, 40:60] = True
    with ExampleWriter(tmp_path / "data") as writer:
        writer.add(writer.add_image(np.zeros((80, 100, 3), np.uint8)), "the cup", mask, "val", "", ignored=ignored)
    figures, _ = evaluate(
        Pipeline(FakeGrounder({"the cup": grounding("the cup", [BOX])}), FakeSegmenter(), Options("box")), tmp_path / "data"
    )
    assert figures["gIoU"] == 1


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    known = Pipeline(FakeGrounder({"the cup": grounding("the cup", [BOX])}), FakeSegmenter())
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: known)
    result = CliRunner().invoke(cli.make_app(), ["evaluate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_prints_the_keys_of_the_design_and_more(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = json.loads(command(monkeypatch, dataset, "--oracle", "--json"))
    assert set(figures) == {
        "gIoU", "cIoU", "mIoU", "N-acc", "T-acc", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9",
        "point_accuracy", "point_ece", "oracle_mIoU", "seconds_per_phrase", "count",
        "points_on_target", "points_on_other", "points_on_background",
        "seconds_image", "seconds_box", "seconds_points", "seconds_segmenter", "intervals", "strategy",
    }  # fmt: skip
    assert figures["intervals"]["gIoU"] == [1, 1]
    assert figures["strategy"] == "pqpp"
    assert "gIoU" in command(monkeypatch, dataset)


def test_predictions_are_written_for_others_to_score(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, dataset, "--strategy", "box", "--out", tmp_path / "out.jsonl")
    cup, dog = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert (from_rle(cup["instances"][0]["rle"], 80, 100) == choose(dataset)[0].union()).all()
    assert (cup["iou"], dog["iou"], dog["instances"], dog["has_target"]) == (1, 1, [], False)


HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(1)>{{ 7 * 7 }}"


def test_the_report_stands_alone_and_words_stay_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((1, 80, 100), np.bool_)
    mask[0, 10:50, 20:60] = True
    with ExampleWriter(tmp_path / "data") as writer:
        record = writer.add_image(np.zeros((80, 100, 3), np.uint8))
        writer.add(record, HOSTILE, mask, "val", HOSTILE)
        writer.add(record, "the cup", mask, "testA", "b", boxes=[BOX])
        writer.add(record, "the dog", mask[:0], "testA", "b")
    command(monkeypatch, tmp_path / "data", "--report", tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img src=http" not in page
    assert "{{ 7 * 7 }}" in page
    assert "default-src 'none'" in page
    assert re.findall(r'src="(?!data:image/jpeg;base64,)', page) == []
    for heading in ("By split", "By source", "Worst", "Best", "By chance", "Where the time goes"):
        assert heading in page
    record_json = json.loads((tmp_path / "report" / "report.json").read_text())
    assert record_json["figures"]["count"] == 3
    assert set(record_json["parts"]["split"]) == {"val", "testA"}
