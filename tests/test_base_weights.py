"""Whatever adapter is loaded, swapped and dropped, only its declared LoRA factors are taken, and the base stays as it was, bit by bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from backend.serving.leases import Leases, remembering
from backend.serving.versions import Versions
from sam4mllm import bounded
from sam4mllm.adapters.fields import BASE, CONFIG
from sam4mllm.adapters.lora import Adapters, attach_stored, save_adapter
from sam4mllm.adapters.registry import Registry
from sam4mllm.adopt import Claims, adopt
from sam4mllm.cli import main as cli
from sam4mllm.errors import ModelError, RegistryError, Sam4mllmError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.loading import Variants
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.recipe import Trainer
from tests.adapter_kinds import BAD, GOOD, AdapterKind, all_linear, hash_base, write_adapter, zeros
from tests.conftest import make_checkpoint
from tests.fakes import FakeSegmenter
from tests.test_lora import IMAGE, QUESTION
from tests.test_pool import TOY, make_pool, write_pictures

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "CPU_SECONDS", 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3_vl", tmp_path_factory.mktemp("model"))


@pytest.fixture
def checkpoint(source: Path) -> Checkpoint:
    return load_checkpoint(str(source), CPU)


def kinds_of(checkpoint: Checkpoint) -> dict[str, AdapterKind]:
    """The good ones, and what needs the model to be written."""
    everything = AdapterKind({"target_modules": "all-linear"}, all_linear(checkpoint.model))
    family = tuple(name for name in everything.layers if not name.startswith("model.visual.blocks"))
    return {**GOOD, "all linear": everything, "the family's own": AdapterKind({"target_modules": checkpoint.lora_targets}, family)}


def ask(grounder: MllmGrounder) -> NDArray[np.float64]:
    [answer] = grounder.ask(grounder.open(IMAGE), [QUESTION])
    return answer.inside


def test_every_adapter_loaded_swapped_and_dropped_leaves_the_base_as_it_was(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """All in one process, beside an adapter that serves."""
    model, good = checkpoint.model, kinds_of(checkpoint)
    folders = {name: write_adapter(kind, model, tmp_path / str(number)) for number, (name, kind) in enumerate({**good, **BAD}.items())}
    grounder, adapters, before = MllmGrounder(checkpoint), Adapters(checkpoint), hash_base(model)
    base = ask(grounder)
    adapters.load("champion", folders["plain"])
    adapters.use("champion")
    served = ask(grounder)
    assert np.abs(served - base).max() > 1e-3
    assert hash_base(model) == before
    for name, folder in folders.items():
        if name in BAD:
            with pytest.raises(Sam4mllmError, match=BAD[name].said) as caught:
                adapters.load(name, folder)
            assert "\n" not in str(caught.value), name
        else:
            adapters.load(name, folder)
            adapters.use(name)
            assert np.abs(ask(grounder) - base).max() > 1e-4, name
            assert hash_base(model) == before, name
            adapters.use("champion")
            adapters.drop(name)
        assert hash_base(model) == before, name
        np.testing.assert_array_equal(ask(grounder), served, err_msg=name)
    adapters.use(BASE)
    np.testing.assert_array_equal(ask(grounder), base)
    adapters.drop("champion")
    assert hash_base(model) == before
    assert not any("lora" in name for name, _ in model.named_modules())


@torch.inference_mode()
def test_a_good_adapter_answers_as_in_peft_alone(source: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    kinds, adapters, model = kinds_of(checkpoint), Adapters(checkpoint), load_checkpoint(str(source), CPU).model
    for number, (name, kind) in enumerate(kinds.items()):
        if name == "magnitudes as they were":  # which peft of today calls missing
            continue
        folder = write_adapter(kind, model, tmp_path / str(number))
        adapters.load(name, folder)
        adapters.use(name)
        found = ask(MllmGrounder(checkpoint))
        plain = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = PeftModel.from_pretrained(plain, str(folder)).eval()
        expected = ask(MllmGrounder(dataclasses.replace(checkpoint, model=alone.base_model.model)))
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)
        adapters.use(BASE)
        adapters.drop(name)


def test_the_patterns_of_a_family_need_no_other_process(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_adapter(kinds_of(checkpoint)["the family's own"], checkpoint.model, tmp_path / "a")
    monkeypatch.setattr("sam4mllm.bounded.match", lambda *_: pytest.fail("started a process"))
    Adapters(checkpoint).load("a", folder)


# -- the ways by which an adapter comes in -------------------------------------------------------------------------------------------------


@pytest.fixture
def versions(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Versions:
    """What serves, on the real model; its engine works at once, and no answer is written, which takes a random model seconds."""
    monkeypatch.setattr("backend.serving.versions.warm_up", lambda pipeline: pipeline.grounder.open(IMAGE))
    variants = Variants(checkpoint, FakeSegmenter(), None, "tiny")
    leases = Leases(remembering(variants.base), variants)
    engine: Any = SimpleNamespace(model=leases, run=lambda work, *_: work(leases))
    return Versions(engine, Registry(tmp_path / "home"), lambda pipeline: None)


@pytest.mark.parametrize("name", ["a tensor of the vision tower", "the head as peft saves it", "a factor of another name", "not a number"])
def test_serving_stores_no_tensor_of_the_base(name: str, versions: Versions, checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=BAD[name].said):
        versions.add(write_adapter(BAD[name], checkpoint.model, tmp_path / "a"), "ef" * 32, {})
    assert versions.registry.versions() == []


UNFIT = (
    *("modules to save, declared", "factors of the tower, not declared", "names of older transformers", "another rank"),
    *("a factor is missing", "a norm", "a pattern without end"),
)
"""What only the model can tell."""


def test_serving_swaps_no_tensor_of_the_base(versions: Versions, checkpoint: Checkpoint, tmp_path: Path) -> None:
    model, before = checkpoint.model, hash_base(checkpoint.model)
    good = [write_adapter(GOOD["plain"], model, tmp_path / name, seed) for seed, name in enumerate("ab")]
    names = [versions.add(adapter, "ef" * 32, {}).version for adapter in good]
    for version in names:
        versions.promote(version)
        assert hash_base(model) == before
    for name in UNFIT:
        bad = versions.add(write_adapter(BAD[name], model, tmp_path / name), "ef" * 32, {}).version
        with pytest.raises(ModelError, match=BAD[name].said):
            versions.promote(bad)
        assert versions.registry.serving() == names[1], name
        assert hash_base(model) == before, name
    versions.rollback()
    versions.rollback()
    assert versions.registry.serving() is None
    assert hash_base(model) == before


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_the_commands_refuse_in_one_line(
    command: str, source: Path, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(BAD["a tensor of the vision tower"], checkpoint.model, tmp_path / "adapter")
    data = write_pictures(tmp_path / "data", TOY)
    what = [next((data / "images").iterdir()), "the left cup"] if command == "predict" else [data]
    monkeypatch.setattr("sys.argv", ["sam4mllm", command, *map(str, what), "--model", str(source), "--adapter", str(folder)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "patch_embed.proj.weight' is no LoRA factor" in said
    assert said.count("\n") == 1


def test_a_run_that_is_resumed_takes_the_factors_of_its_state_and_no_more(source: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    pool = make_pool(write_pictures(tmp_path / "data", TOY))
    plan = TrainingPlan(steps=1, batch=1, rank=2)
    before = hash_base(checkpoint.model)
    Trainer(checkpoint, pool, plan, tmp_path / "run").train()
    assert hash_base(checkpoint.model) == before
    [step] = (tmp_path / "run").iterdir()
    state = load_file(step / "model.safetensors")
    extra = zeros("model.visual.patch_embed.proj", "weight")(load_checkpoint(str(source), CPU).model)
    save_file({**state, **extra}, step / "model.safetensors")
    again = load_checkpoint(str(source), CPU)
    with pytest.raises(ModelError, match="holds the weights of another model"):
        Trainer(again, pool, plan, tmp_path / "run").train()
    assert hash_base(again.model) == before


def test_a_merged_or_edited_configuration_cannot_name_more(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A stored adapter whose configuration is changed beside its weights: nothing of it is taken in part."""
    folder = write_adapter(GOOD["plain"], checkpoint.model, tmp_path / "a")
    adapters, before = Adapters(checkpoint), hash_base(checkpoint.model)
    for change in ({"target_modules": "all-linear"}, {"target_modules": ["proj"]}, {"use_dora": True}, {"lora_bias": True}, {"r": 8}):
        copy = Path(shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True))
        (copy / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), **change}))
        with pytest.raises(ModelError, match="does not fit"):
            adapters.load("copy", copy)
        assert hash_base(checkpoint.model) == before
        assert not any("lora" in name for name, _ in checkpoint.model.named_modules())


# -- adding, and training on ---------------------------------------------------------------------------------------------------------------


def test_every_good_adapter_is_added_and_every_bad_one_is_not(source: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    home, claims = Registry(tmp_path / "home"), Claims(model=str(source), device="cpu")
    for number, (name, kind) in enumerate({**kinds_of(checkpoint), **BAD}.items()):
        folder = write_adapter(kind, checkpoint.model, tmp_path / str(number))
        if kind.said:
            with pytest.raises(Sam4mllmError, match=kind.said) as caught:
                adopt(folder, home, claims)
            assert "\n" not in str(caught.value), name
        else:
            home.verify(adopt(folder, home, claims).version)
    assert len(home.versions()) == len(kinds_of(checkpoint))


def test_what_is_trained_on_from_an_adapter_is_saved_as_it_answers(source: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Of every kind: its rank, its scale and its layers stay its own."""
    for number, (name, kind) in enumerate(kinds_of(checkpoint).items()):
        folder, again = write_adapter(kind, checkpoint.model, tmp_path / str(number)), load_checkpoint(str(source), CPU)
        stored = load_checkpoint(str(source), CPU)
        adapters = Adapters(stored)
        adapters.load("a", folder)
        adapters.use("a")
        answer = ask(MllmGrounder(stored))
        model = attach_stored(again, folder, 0.0).eval()
        np.testing.assert_allclose(ask(MllmGrounder(again)), answer, atol=1e-6, err_msg=name)
        trained = {weight.requires_grad for part, weight in model.named_parameters() if "lora_" in part}
        assert trained == {True}, name
        save_adapter(model, tmp_path / f"{number} saved", str(source))
        adapters.load("b", tmp_path / f"{number} saved")
        adapters.use("b")
        np.testing.assert_allclose(ask(MllmGrounder(stored)), answer, atol=1e-6, err_msg=name)
