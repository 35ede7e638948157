"""A thought where it is shown and kept: by predict, evaluate and bulk runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from backend.batch.folder import _example
from backend.batch.work import BatchTask
from backend.images.store import LoadedImage
from sam4mllm.cli import predict
from sam4mllm.data.example_fields import check_fields
from sam4mllm.evaluation.predictions import keep
from sam4mllm.options import Options
from sam4mllm.pipeline import Pipeline
from sam4mllm.values import Segmentation
from tests.fakes import FakeGrounder, FakeSegmenter, grounding
from tests.test_mllm import picture


def thinking_answer(note: str = "", boxes: Sequence[Sequence[float]] = ((5, 5, 40, 40),)) -> Segmentation:
    known = {"the cup": replace(grounding("the cup", boxes), thought="It is\nthe left one. " * 20, note=note)}
    [answer] = Pipeline(FakeGrounder(known), FakeSegmenter(), Options("reason")).segment(picture(5), ["the cup"])
    return answer


@pytest.mark.parametrize("boxes", [pytest.param(((5, 5, 40, 40),), id="found"), pytest.param((), id="nothing found")])
def test_predict_shows_it_in_short_and_whole(boxes: Sequence[Sequence[float]]) -> None:
    answer = thinking_answer(boxes=boxes)
    line = predict._as_line(answer)
    assert "\n" not in line
    assert "; thought: It is the left one. It is" in line
    assert line.endswith("…")
    assert predict._as_json(answer, "reason")["thought"] == answer.thought == "It is\nthe left one. " * 20
    assert keep(answer).fields()["thought"] == answer.thought


@pytest.mark.parametrize(
    ("note", "written"), [pytest.param("", True, id="whole"), pytest.param("the thought was cut off at 9 tokens", False, id="cut off")]
)
def test_a_bulk_run_writes_thoughts_that_can_be_learned(note: str, written: bool) -> None:
    answer = thinking_answer(note)
    image = LoadedImage(picture(5), "0" * 64)
    line = _example(BatchTask(1, {"image": "images/a.png"}), image, {"split": "predicted"}, answer)
    example = check_fields(json.loads(json.dumps(line)), 10**6)
    assert example.thought == (answer.thought.strip() if written else "")
