"""``--model none``: a segmenter that takes phrases works alone, and what asks an MLLM is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import sam4mllm
from sam4mllm import loading
from sam4mllm.adapters.loose import LooseAdapter
from sam4mllm.cli.main import make_app
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.errors import EvaluationError, ModelError, RegistryError
from sam4mllm.evaluation.run import evaluate
from sam4mllm.loading import Variants, load_variants
from sam4mllm.options import AskedStrategy, Options
from tests.adapter_files import PAPERS
from tests.fakes import FakeConceptSegmenter, candidates
from tests.tiny_concepts import write_grounding_dino

LEFT, RIGHT = [10.0, 10, 50, 50], [140.0, 20, 190, 90]
TWO = candidates([LEFT, RIGHT])


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> FakeConceptSegmenter:
    """The one that every name loads; no model can be loaded."""
    fake = FakeConceptSegmenter(known={"cup": TWO}, nbytes=5)
    monkeypatch.setattr(loading, "load_segmenter", lambda source, place: fake)
    monkeypatch.setattr(loading, "load_checkpoint", lambda *given: pytest.fail("a model was loaded"))
    monkeypatch.setattr(loading, "announce", lambda *given, **named: pytest.fail("a model was looked for"))
    return fake


def test_the_segmenter_answers_alone(segmenter: FakeConceptSegmenter) -> None:
    pipeline = sam4mllm.load("none", "sam3", "cpu")
    [answer] = pipeline.segment(np.zeros((100, 200, 3), np.uint8), ["cup"])
    assert len(answer.instances) == 2
    assert answer.version.startswith("none-0-")
    assert (pipeline.strategy, pipeline.has_model, pipeline.strategies) == ("concept", False, ("concept",))
    assert pipeline.manner == "strategy concept: the segmenter takes the phrase, and no MLLM is asked"
    assert segmenter.encoded == 1


@pytest.mark.parametrize("strategy", ["box", "ppg", "pqpp", "reason", "choose"])
def test_what_asks_an_mllm_is_refused_before_loading_one(segmenter: FakeConceptSegmenter, strategy: AskedStrategy) -> None:
    with pytest.raises(ModelError, match=rf"^strategy {strategy} asks an MLLM, and the model is none: name a model"):
        sam4mllm.load("none", "sam3", "cpu", Options(strategy))


@pytest.mark.parametrize(
    ("model", "strategy"), [("none", "auto"), ("none", "concept"), ("demo", "concept"), ("demo", "choose")], ids=" ".join
)
def test_a_segmenter_of_boxes_alone_is_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, model: str, strategy: AskedStrategy
) -> None:
    monkeypatch.setattr(loading, "load_checkpoint", lambda *given: pytest.fail("a model was loaded"))
    with pytest.raises(ModelError, match=r"needs a segmenter that takes phrases: .*; demo takes boxes and points only$"):
        sam4mllm.load(model, "demo", "cpu", Options(strategy))


def test_a_dialect_is_refused(segmenter: FakeConceptSegmenter) -> None:
    with pytest.raises(ModelError, match="leave --dialect out"):
        sam4mllm.load("none", "sam3", "cpu", dialect="qwen3-vl")


def test_no_adapter_can_be_used(segmenter: FakeConceptSegmenter, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the model is none: name the adapter's model, or leave the adapter out$"):
        sam4mllm.load("none", "sam3", "cpu", adapter=str(tmp_path))
    variants = load_variants("none", "sam3", "cpu", None)
    with pytest.raises(ModelError, match=r"^the adapter mine-1-0123abcd serves with an MLLM, and the model is none"):
        variants.load(tmp_path, LooseAdapter("mine-1-0123abcd", PAPERS))
    with pytest.raises(ModelError, match="no adapter can be used or trained"):
        variants.identity_for(PAPERS)
    assert (variants.base_sha256, variants.template_sha256) == ("", "")


def test_the_segmenter_leaves_its_device_and_comes_back(segmenter: FakeConceptSegmenter) -> None:
    variants = Variants(None, segmenter, None, "none", device=torch.device("meta"))
    variants.away()
    variants.back()
    variants.drop("mine-1-0123abcd")
    assert segmenter.devices == [torch.device("cpu"), torch.device("meta")]
    assert variants.nbytes == 5
    assert variants.base.strategy == "concept"


def test_papers_name_what_an_adapter_can_learn() -> None:
    with pytest.raises(RegistryError, match="box, ppg, pqpp, reason or null"):
        type(PAPERS)(**{**vars(PAPERS), "strategy": "concept"})


# -- commands ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    with ExampleWriter(tmp_path / "set") as writer:
        record = writer.add_image(np.zeros((100, 200, 3), np.uint8))
        writer.add(record, "cup", TWO.masks, "val", "made up")
        writer.add(record, "dog", [], "val", "made up")
    return tmp_path / "set"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(make_app(), [str(one) for one in arguments])


def test_evaluate_measures_masks_and_no_points(segmenter: FakeConceptSegmenter, dataset: Path) -> None:
    figures, judged = evaluate(sam4mllm.load("none", "sam3", "cpu"), dataset, oracle=True)
    assert (figures["gIoU"], figures["N-acc"], figures["oracle_mIoU"]) == (1.0, 1.0, 1.0)
    assert figures["point_accuracy"] is None
    assert [len(one.inside) for one in judged] == [0, 0]
    result = run("evaluate", dataset, "--model", "none", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["strategy"] == "concept"


@pytest.mark.parametrize(("threshold", "count"), [("0.5", 2), ("0.9", 0)])
def test_predict_takes_a_threshold(segmenter: FakeConceptSegmenter, tmp_path: Path, threshold: str, count: int) -> None:
    Image.fromarray(np.zeros((100, 200, 3), np.uint8)).save(tmp_path / "cups.png")
    result = run("predict", tmp_path / "cups.png", "cup", "--model", "none", "--threshold", threshold, "--json")
    assert result.exit_code == 0, result.output
    [answer] = json.loads(result.stdout)
    assert len(answer["instances"]) == count
    assert answer["strategy"] == "concept"


@pytest.mark.parametrize("threshold", ["1.5", "-1", "half"])
def test_a_threshold_that_is_none_is_wrong_usage(threshold: str, tmp_path: Path) -> None:
    assert run("predict", tmp_path / "cups.png", "cup", f"--threshold={threshold}").exit_code == 2
    with pytest.raises(ValueError, match="threshold must be from 0 to 1"):
        Options(threshold=float("nan") if threshold == "half" else float(threshold))


def test_ablate_says_that_there_is_nothing_to_compare(segmenter: FakeConceptSegmenter, dataset: Path, tmp_path: Path) -> None:
    result = run("ablate", dataset, "--over", "strategy", "--model", "none", "--out", tmp_path / "out")
    assert isinstance(result.exception, EvaluationError)  # which is one line
    assert str(result.exception).startswith("ablate compares ways to ask an MLLM")


@pytest.mark.parametrize("how", [("--model", "none"), ("--strategy", "choose")], ids=" ".join)
def test_a_detector_before_the_demo_segmenter_is_enough(tmp_path: Path, how: tuple[str, str]) -> None:
    """With random weights, whatever it finds."""
    detector = write_grounding_dino(tmp_path / "dino")
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (60, 90, 3), np.uint8)).save(tmp_path / "noise.png")
    result = run("predict", tmp_path / "noise.png", "cup", *how, "--segmenter", f"{detector}+demo", "--threshold", "0", "--json")
    assert result.exit_code == 0, result.output
    [answer] = json.loads(result.stdout)
    assert answer["strategy"] == {"none": "concept"}.get(how[1], how[1])
    assert answer["version"].startswith("none-0-" if how[1] == "none" else "demo-0-")
    assert len(answer["instances"]) > 0 or how[1] == "choose"
