"""An adapter's papers: what training writes, what commands follow, and what is refused against them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sam4mllm
from sam4mllm.adapters.fields import CONFIG, WEIGHTS
from sam4mllm.adapters.follow import checkpoint_for, choose_model, choose_segmenter, lasting_name
from sam4mllm.adapters.loose import read_papers
from sam4mllm.adapters.lora import attach_stored
from sam4mllm.adapters.manifest import Papers
from sam4mllm.adapters.registry import Registry
from sam4mllm.adopt import Claims, adopt
from sam4mllm.errors import ModelError, RegistryError
from sam4mllm.grounding.families import load_checkpoint, outline_checkpoint
from sam4mllm.options import Options
from sam4mllm.prompts.dialects import BEFORE_NONE, INTERNVL, LLAVA, QWEN2_5_VL, QWEN2_VL, QWEN3_VL, Dialect
from sam4mllm.training.asking import Asking
from sam4mllm.training.loss import row_loss
from sam4mllm.training.papers import asking_of
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.session import Session
from tests.adapter_files import PAPERS
from tests.papers.manifests import without_papers
from tests.test_cli import fail
from tests.test_train_cli import run

CPU = torch.device("cpu")


# -- what training writes ------------------------------------------------------------------------------------------------------------------


def test_training_writes_what_the_adapter_is_and_how_it_is_asked(trained: Path, model: Path) -> None:
    papers = read_papers(trained)
    assert papers is not None
    checkpoint = load_checkpoint(str(model), CPU)
    assert papers.base_model == str(model)
    assert papers.base_sha256 == checkpoint.base_sha256
    assert papers.template_sha256 == checkpoint.template_sha256
    assert papers.dialect == asdict(checkpoint.dialect)
    assert (papers.strategy, papers.points, papers.segmenter) == ("pqpp", "joint", "demo")
    assert papers.metrics.keys() == {"loss", "steps"}
    assert papers.plan is not None
    assert (papers.plan["rank"], papers.plan["budget_seconds"], papers.plan["asking"]["joint_share"]) == (3, None, 1.0)
    assert Papers.from_json(papers.to_json()) == papers


def test_mostly_single_points_are_asked_singly(model: Path, data: Path, tmp_path: Path) -> None:
    run("train", data, "--model", model, "--out", tmp_path / "a", "--steps", 1)
    papers = read_papers(tmp_path / "a")
    assert papers is not None
    assert (papers.points, papers.segmenter) == ("packed", None)


# -- what commands follow ------------------------------------------------------------------------------------------------------------------


def test_commands_take_model_and_dialect_from_the_papers(trained: Path, data: Path) -> None:
    figures = json.loads(run("evaluate", data, "--adapter", trained, "--limit", 1, "--json"))
    assert figures["count"]


def test_an_adapter_without_papers_is_for_the_model_that_peft_names(trained: Path, data: Path, tmp_path: Path) -> None:
    bare = without_papers(trained, tmp_path / "bare")
    assert json.loads(run("evaluate", data, "--adapter", bare, "--limit", 1, "--json"))["count"]


AGAINST = {
    "another model": (("--model", "demo"), "was trained on another base model"),
    "another dialect": (("--dialect", "llava"), "--dialect is not what the adapter"),
    "another segmenter": (
        ("--segmenter", "vit_b:other.pth"),
        "vit_b:other.pth is not the one that the adapter was trained with",
    ),
}


@pytest.mark.parametrize("case", AGAINST)
@pytest.mark.parametrize("command", ["evaluate", "ablate"])
def test_what_is_given_against_the_papers_is_refused(
    case: str, command: str, trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, said = AGAINST[case]
    more = ("--over", "points", "--out", tmp_path / "out") if command == "ablate" else ()
    assert said in fail(capsys, monkeypatch, command, data, *more, "--adapter", trained, *options)


def test_what_is_given_as_the_papers_say_it_is_taken(trained: Path, model: Path, data: Path) -> None:
    moved = model.parent / "moved"
    shutil.copytree(model, moved, dirs_exist_ok=True)
    options = ("--model", moved, "--dialect", moved / "dialect.json", "--segmenter", "demo")
    assert json.loads(run("evaluate", data, "--adapter", trained, *options, "--limit", 1, "--json"))["count"]


def test_how_it_is_asked_follows_the_papers_unless_it_is_given(trained: Path) -> None:
    asked = {
        "papers": sam4mllm.load(adapter=str(trained), device="cpu"),
        "given": sam4mllm.load(adapter=str(trained), device="cpu", options=Options("box", joint=False)),
        "base": sam4mllm.load(str(read_papers(trained).base_model), device="cpu"),  # type: ignore[union-attr]
    }
    found = {name: (pipeline.options.strategy, pipeline.options.joint) for name, pipeline in asked.items()}
    assert found == {"papers": ("pqpp", True), "given": ("box", False), "base": ("box", False)}
    assert asked["papers"].options.points == 15


@pytest.mark.parametrize("dialect", [QWEN2_VL, QWEN2_5_VL, QWEN3_VL, LLAVA, INTERNVL], ids=lambda dialect: str(dialect.name))
def test_an_adapter_of_an_earlier_release_is_spoken_to_in_its_words(dialect: Dialect, model: Path) -> None:
    checkpoint = outline_checkpoint(str(model), CPU).speaking(dialect)
    before = checkpoint.speaking(BEFORE_NONE[dialect.name])
    assert "none" not in before.dialect.box_question
    assert "none" in dialect.box_question
    papers = replace(PAPERS, base_sha256=checkpoint.base_sha256, template_sha256=before.template_sha256)
    assert checkpoint_for(checkpoint, papers, None).dialect == before.dialect
    of_now = replace(papers, template_sha256=checkpoint.template_sha256)
    assert checkpoint_for(checkpoint, of_now, None).dialect == dialect
    with pytest.raises(ModelError, match="another set of prompts"):
        checkpoint_for(checkpoint, replace(papers, template_sha256="00" * 32), None)


# -- going on ------------------------------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_an_adapter_as_it_was_saved(trained: Path, model: Path, data: Path, tmp_path: Path) -> None:
    """Its loss before the first step is that of the saved adapter on the same batch, and not that of the base model."""
    plan = TrainingPlan(steps=1, batch=2, rank=7)
    session = Session(data, tmp_path / "b", plan, str(model), "cpu", None, start=trained)
    losses = {"run": loss_of(session)}
    ranks = {weight.shape[0] for name, weight in session.trainer.model.named_parameters() if "lora_A" in name}
    assert ranks == {3}

    stored = load_checkpoint(str(model), CPU)
    attach_stored(stored, trained, 0.0).eval()
    losses["saved"] = loss_of(session, stored.model)
    losses["base"] = loss_of(session, load_checkpoint(str(model), CPU).model)
    assert losses["run"] == pytest.approx(losses["saved"], abs=1e-6)
    assert abs(losses["base"] - losses["saved"]) > 1e-3


def loss_of(session: Session, model: Any = None) -> float:
    """In evaluation mode, on the first picture of the run."""
    trainer = session.trainer
    model = model or trainer._checkpoint.model
    model.eval()
    [shown, *_] = trainer._shown(0)
    encoded, frame = trainer._gradients.encode(shown.image)
    row = trainer._gradients._collator.row(frame, shown.examples, np.random.default_rng(5))
    with torch.no_grad():
        return float(row_loss(model, encoded, row))


def test_what_goes_on_from_an_adapter_is_asked_as_that_was(trained: Path, data: Path, tmp_path: Path) -> None:
    """Unless another plan is named; and its segmenter stays the one of its PPG answers."""
    run("train", data, "--adapter", trained, "--out", tmp_path / "b", "--steps", 1)
    run("train", data, "--adapter", trained, "--out", tmp_path / "c", "--steps", 1, "--config", "default")
    found = [papers for papers in map(read_papers, (tmp_path / "b", tmp_path / "c")) if papers is not None]
    assert [(papers.points, papers.segmenter) for papers in found] == [("joint", "demo"), ("packed", "demo")]


@pytest.mark.parametrize("asking", [None, {"points": 0}, {"of another release": 1}, "joint"])
def test_a_plan_that_says_nothing_of_asking_is_as_none(asking: object) -> None:
    assert asking_of(replace(PAPERS, plan=None if asking is None else {"asking": asking})) is None
    assert asking_of(replace(PAPERS, plan={"asking": {"points": 3}})) == Asking(points=3)


@pytest.mark.parametrize(("named", "taken"), [("Qwen/Qwen2.5-VL-7B-Instruct", True), ("/no/such/folder", False), (None, False)])
def test_the_model_that_peft_names(named: str | None, taken: bool, trained: Path, tmp_path: Path) -> None:
    bare = without_papers(trained, tmp_path / "bare")
    config = json.loads((bare / CONFIG).read_text())
    (bare / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": named}))
    assert choose_model(None, None, bare) == (named if taken else "demo")
    assert choose_model("given", None, bare) == "given"


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_step_back_goes_to_what_the_run_set_out_from(strength: float, trained: Path, model: Path, data: Path, tmp_path: Path) -> None:
    plan = TrainingPlan(steps=2, batch=2, rate=0.01, strength=strength, dropout=0.0)
    session = Session(data, tmp_path / "b", plan, str(model), "cpu", None, start=trained)
    learned: dict[str, torch.Tensor] = {}
    save = session.trainer.save_adapter

    def saving(folder: Path, base: str) -> None:
        learned.update({name: weight.detach().clone() for name, weight in session.trainer.model.named_parameters() if "lora_" in name})
        save(folder, base)

    session.trainer.save_adapter = saving  # type: ignore[method-assign]
    assert session.run(lambda progress: None)
    before, after = load_file(trained / WEIGHTS), load_file(tmp_path / "b" / WEIGHTS)
    assert before.keys() == after.keys()
    for name, weight in after.items():
        moved = learned[name.replace(".weight", ".default.weight")] - before[name]
        assert torch.allclose(weight, before[name] + strength * moved, atol=1e-6), name
        assert moved.abs().max() > 0
    scales = [json.loads((folder / CONFIG).read_text()) for folder in (trained, tmp_path / "b")]
    assert scales[0]["lora_alpha"] == scales[1]["lora_alpha"]


def test_train_goes_on_from_a_version(trained: Path, data: Path, home: Registry, tmp_path: Path) -> None:
    version = adopt(trained, home, Claims()).version
    run("train", data, "--adapter", version, "--out", tmp_path / "b", "--steps", 1)
    papers = read_papers(tmp_path / "b")
    assert papers is not None
    assert papers.base_sha256 == home.show(version).base_sha256


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("demo", "demo"),
        ("vit_h:sam.pth#sha256=ab", "vit_h:{here}/sam.pth#sha256=ab"),
        ("vit_b:other.pth", "vit_b:other.pth"),
        ("a/b", "a/b"),
        ("a/b+vit_h:sam.pth", "a/b+vit_h:{here}/sam.pth"),
        ("dino+demo", "{here}/dino+demo"),
    ],
)
def test_a_name_that_lasts(source: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("demo", "dino"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sam.pth").touch()
    assert lasting_name(source) == name.replace("{here}", str(tmp_path))


def test_a_segmenter_that_has_moved_is_the_same() -> None:
    papers = replace(PAPERS, segmenter="vit_h:/old/sam_vit_h.pth")
    assert choose_segmenter("vit_h:/new/sam_vit_h.pth", papers) == "vit_h:/new/sam_vit_h.pth"
    assert choose_segmenter(None, papers) == "vit_h:/old/sam_vit_h.pth"
    for other in ("vit_l:/old/sam_vit_h.pth", "vit_h:/old/other.pth", "demo"):
        with pytest.raises(RegistryError, match="is not the one that the adapter was trained with"):
            choose_segmenter(other, papers)


def test_a_detector_that_has_moved_is_the_same(tmp_path: Path) -> None:
    papers = replace(PAPERS, segmenter="/old/dino+vit_h:/old/sam.pth")
    moved = tmp_path / "dino"
    moved.mkdir()
    assert choose_segmenter(f"{moved}+vit_h:/new/sam.pth", papers) == f"{moved}+vit_h:/new/sam.pth"
    for other in ("vit_h:/old/sam.pth", "/old/other+vit_h:/old/sam.pth", "/old/dino+vit_h:/old/other.pth"):
        with pytest.raises(RegistryError, match="is not the one that the adapter was trained with"):
            choose_segmenter(other, papers)


def test_llava_is_another_dialect_than_the_tiny_models(model: Path) -> None:
    """Or the tests against the papers would show nothing."""
    assert load_checkpoint(str(model), CPU).dialect != LLAVA
