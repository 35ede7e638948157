"""Evaluation end to end on fakes that know the answer, or know it wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sam4mllm.data.examples import ExampleWriter
from sam4mllm.evaluation.run import evaluate
from sam4mllm.pipeline import Pipeline
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
        Pipeline(FakeGrounder({"the cup": grounding("the cup", [BOX])}), FakeSegmenter()), dataset, "box", oracle=True
    )
    assert {name: figures[name] for name in ("gIoU", "cIoU", "mIoU", "N-acc", "T-acc", "Pr@0.9", "oracle_mIoU", "count")} == {
        "gIoU": 1, "cIoU": 1, "mIoU": 1, "N-acc": 1, "T-acc": 1, "Pr@0.9": 1, "oracle_mIoU": 1, "count": 2,
    }  # fmt: skip
    assert figures["point_accuracy"] == pytest.approx(0.5, abs=0.15)  # the fake denies the right half
    assert [one.example.phrase for one in judged] == ["the cup", "the dog"]


def test_wrong_models_are_measured_as_wrong(dataset: Path) -> None:
    known = {"the cup": grounding("the cup", [(40, 10, 80, 50)]), "the dog": grounding("the dog", [(0, 0, 10, 10)])}
    figures, _ = evaluate(Pipeline(FakeGrounder(known), FakeSegmenter()), dataset, "box")
    assert figures["mIoU"] == pytest.approx(1 / 3)
    assert figures["gIoU"] == pytest.approx(1 / 6)
    assert figures["N-acc"] == 0
    assert figures["T-acc"] == 1
    assert figures["oracle_mIoU"] is None


def test_all_phrases_of_an_image_are_one_call(dataset: Path) -> None:
    grounder = FakeGrounder({})
    evaluate(Pipeline(grounder, FakeSegmenter()), dataset, "box")
    assert grounder.opened == 1
