"""Adapters beside each other, refused ones, and pipelines with the version that the registry gave."""

from __future__ import annotations

import itertools
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

import sam4mllm
from sam4mllm import loading
from sam4mllm.adapters.fields import BASE, CONFIG, WEIGHTS
from sam4mllm.adapters.files import hash_files
from sam4mllm.adapters.loose import find_adapter, read_papers
from sam4mllm.adapters.lora import Adapters, attach
from sam4mllm.adapters.manifest import Papers
from sam4mllm.adapters.registry import Registry
from sam4mllm.errors import ModelError, RegistryError, Sam4mllmError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.patches import multiply_patches
from sam4mllm.identity import slug as slug_of
from sam4mllm.loading import Variants
from sam4mllm.options import Options
from sam4mllm.pipeline import Pipeline
from tests.fakes import FakeSegmenter
from tests.test_lora import IMAGE, QUESTION, ask, load


def make_adapter(source: Path, folder: Path, seed: int, rank: int = 4) -> Path:
    """An adapter with random weights, so that it makes a difference."""
    model = attach(load(source), rank, 8, 0.05)
    torch.manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()
    return folder


@pytest.fixture(scope="module")
def stored(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters of the checkpoint, of two ranks."""
    folder = tmp_path_factory.mktemp("adapters")
    return make_adapter(tiny_checkpoint, folder / "a", 1), make_adapter(tiny_checkpoint, folder / "b", 2, rank=3)


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load(tiny_checkpoint)


def size(model: nn.Module) -> tuple[int, int]:
    """Modules and weights."""
    return sum(1 for _ in model.modules()), sum(weight.numel() for weight in model.parameters())


def test_adapters_take_turns_and_base_is_the_base_model(checkpoint: Checkpoint, stored: tuple[Path, Path]) -> None:
    grounder, adapters = MllmGrounder(checkpoint), Adapters(checkpoint)
    base, whole = ask(grounder), size(checkpoint.model)
    for name, folder in zip("ab", stored, strict=True):
        adapters.load(name, folder)
        np.testing.assert_array_equal(ask(grounder), base)  # not active before it is used
    assert adapters.names == ("a", "b")
    answers = {BASE: base}
    for name in ("a", "b"):
        adapters.use(name)
        answers[name] = ask(grounder)
    assert all(np.abs(answers[one] - answers[other]).max() > 1e-3 for one, other in itertools.combinations(answers, 2))
    for name in (BASE, "b", "a", BASE, "a", "b"):
        adapters.use(name)
        np.testing.assert_array_equal(ask(grounder), answers[name])

    with pytest.raises(ModelError, match="in use"):
        adapters.drop("b")
    adapters.drop("a")
    adapters.drop("a")  # already gone
    np.testing.assert_array_equal(ask(grounder), answers["b"])
    with pytest.raises(ModelError, match="a is not loaded"):
        adapters.use("a")
    np.testing.assert_array_equal(ask(grounder), answers["b"])
    adapters.use(BASE)
    adapters.drop("b")
    np.testing.assert_array_equal(ask(grounder), base)
    assert size(checkpoint.model) == whole


def test_a_loaded_adapter_is_frozen_and_without_dropout(checkpoint: Checkpoint, stored: tuple[Path, Path]) -> None:
    adapters = Adapters(checkpoint)
    adapters.load("a", stored[0])
    adapters.use("a")
    assert not any(weight.requires_grad for weight in checkpoint.model.parameters())
    assert not any(module.training for module in checkpoint.model.modules())


def test_an_adapter_has_the_precision_of_its_layers(checkpoint: Checkpoint, stored: tuple[Path, Path]) -> None:
    checkpoint.model.to(torch.bfloat16)
    adapters = Adapters(checkpoint)
    for name, folder in zip("ab", stored, strict=True):
        adapters.load(name, folder)
    assert {weight.dtype for weight in checkpoint.model.parameters()} == {torch.bfloat16}


def test_memory_does_not_grow(checkpoint: Checkpoint, stored: tuple[Path, Path]) -> None:
    adapters = Adapters(checkpoint)
    adapters.load("champion", stored[0])
    adapters.use("champion")
    sizes = set()
    for count in range(50):
        adapters.load(f"v{count}", stored[1])
        adapters.use(f"v{count}")
        adapters.use("champion")
        adapters.drop(f"v{count}")
        sizes.add(size(checkpoint.model))
    assert len(sizes) == 1
    assert adapters.names == ("champion",)


# -- refused -------------------------------------------------------------------------------------------------------------------------------


def change_weights(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


def change_config(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **values}))

    return damage


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-400])


def poison(tensors: dict[str, Tensor]) -> None:
    tensors[min(tensors)][0, 0] = torch.nan


def widen(tensors: dict[str, Tensor]) -> None:
    name = min(tensors)
    tensors[name] = torch.zeros(tensors[name].shape[0] + 1, tensors[name].shape[1] + 1)


def rename(tensors: dict[str, Tensor]) -> None:
    """As many tensors as have a place, one of them elsewhere."""
    name = min(tensors)
    tensors[name.replace("layers.0", "layers.9").replace("merger.", "merger_9.")] = tensors.pop(name)


def lose_one(tensors: dict[str, Tensor]) -> None:
    del tensors[min(tensors)]


DAMAGES = [
    pytest.param(lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"), RegistryError, id="pickle by its name"),
    pytest.param(lambda folder: (folder / WEIGHTS).write_bytes(b"\x80\x04K\x01."), RegistryError, id="pickle"),
    pytest.param(truncate, RegistryError, id="truncated"),
    pytest.param(change_weights(poison), RegistryError, id="NaN"),
    pytest.param(lambda folder: (folder / CONFIG).unlink(), RegistryError, id="no config"),
    pytest.param(change_weights(widen), ModelError, id="other shapes"),
    pytest.param(change_weights(rename), ModelError, id="a tensor without a place"),
    pytest.param(change_weights(lose_one), ModelError, id="a tensor missing"),
    pytest.param(change_config(r=5), ModelError, id="another rank"),
    pytest.param(change_config(target_modules=["nothing"]), ModelError, id="no layer that it names"),
    pytest.param(change_config(target_modules=r".*(q_proj|norm.*)"), ModelError, id="a layer that LoRA cannot change"),
    pytest.param(change_config(target_modules=r".*layers\.0\..*q_proj"), ModelError, id="fewer layers than tensors"),
    pytest.param(change_config(bias="all"), ModelError, id="biases of the base model"),
    pytest.param(change_config(modules_to_save=["lm_head"]), ModelError, id="a module of the base model"),
]


@pytest.mark.parametrize(("damage", "error"), DAMAGES)
def test_a_bad_adapter_is_refused_and_what_served_serves_on(
    damage: Callable[[Path], None], error: type[Sam4mllmError], checkpoint: Checkpoint, stored: tuple[Path, Path], tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(stored[0], tmp_path / "bad"))
    damage(bad)
    grounder, adapters = MllmGrounder(checkpoint), Adapters(checkpoint)
    for name in (BASE, "good"):
        if name != BASE:
            adapters.load(name, stored[1])
            adapters.use(name)
        answer, whole = ask(grounder), size(checkpoint.model)
        with pytest.raises(error) as caught:
            adapters.load("bad", bad)
        assert "\n" not in str(caught.value)
        np.testing.assert_array_equal(ask(grounder), answer)
        assert size(checkpoint.model) == whole
        with pytest.raises(ModelError, match="not loaded"):
            adapters.use("bad")
    adapters.load("bad", stored[0])  # mended
    adapters.use("bad")
    assert np.abs(ask(grounder) - answer).max() > 1e-3


def test_an_adapter_of_another_base_model_is_refused(checkpoint: Checkpoint, stored: tuple[Path, Path]) -> None:
    wider = torch.nn.Linear(48, 32)
    checkpoint.model.model.language_model.layers[1].self_attn.q_proj = wider
    adapters = Adapters(checkpoint)
    with pytest.raises(ModelError, match="does not fit"):
        adapters.load("a", stored[0])
    assert checkpoint.model.model.language_model.layers[1].self_attn.q_proj is wider


# -- peft alone ----------------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_an_adapter_loads_with_peft_alone(tiny_checkpoint: Path, checkpoint: Checkpoint, stored: tuple[Path, Path]) -> None:
    plain = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    multiply_patches(plain)  # rounds as ours does, so that only the adapter is compared
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        expected_model = PeftModel.from_pretrained(plain, str(stored[0])).eval()
    adapters = Adapters(checkpoint)
    adapters.load("a", stored[0])
    base = ask(MllmGrounder(checkpoint))
    adapters.use("a")
    grounder = MllmGrounder(checkpoint)
    found = ask(grounder)
    assert np.abs(found - base).max() > 1e-3
    object.__setattr__(checkpoint, "model", expected_model.base_model.model)
    np.testing.assert_allclose(ask(grounder), found, atol=1e-6)


# -- pipelines -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def variants(checkpoint: Checkpoint) -> Variants:
    return Variants(checkpoint, FakeSegmenter(), None, "tiny")


def test_both_models_are_counted_and_moved(checkpoint: Checkpoint) -> None:
    segmenter = FakeSegmenter(nbytes=7)
    variants = Variants(checkpoint, segmenter, None, "tiny")
    assert variants.nbytes == 7 + sum(weight.nbytes for weight in checkpoint.model.parameters())
    variants.away()
    variants.back()
    assert segmenter.devices == [torch.device("cpu"), checkpoint.model.device]


def add(home: Registry, variants: Variants, folder: Path, slug: str = "tiny", **changes: str) -> str:
    """As the learning loop adds it."""
    papers = Papers(
        base_model="tiny",
        base_sha256=variants.base_sha256,
        template_sha256=variants.template_sha256,
        data_sha256="ef" * 32,
        metrics={},
        files=hash_files(folder),
    )
    files: dict[str, Path | bytes] = {name: folder / name for name in (CONFIG, WEIGHTS)}
    return home.add(files, replace(papers, **changes), slug=slug, identity=variants.identity_for(papers)).version


def serve(home: Registry, variants: Variants, version: str) -> Pipeline:
    return variants.load(home.path(version), home.verify(version))


def test_pipelines_of_one_base_model_answer_each_with_its_own_adapter(
    variants: Variants, stored: tuple[Path, Path], tmp_path: Path
) -> None:
    home = Registry(tmp_path)
    alone = [ask(variants.base.grounder)]
    pipelines = [variants.base]
    for folder in stored:
        pipelines.append(serve(home, variants, add(home, variants, folder)))
        alone.append(ask(pipelines[-1].grounder))
    assert np.abs(alone[1] - alone[2]).max() > 1e-3
    scenes = [pipeline.grounder.open(IMAGE) for pipeline in pipelines]
    for index in (0, 2, 1, 1, 0, 2):
        [answer] = pipelines[index].grounder.ask(scenes[index], [QUESTION])
        np.testing.assert_array_equal(answer.inside, alone[index])
    variants.drop(pipelines[1].version)
    for index in (0, 2):
        [answer] = pipelines[index].grounder.ask(scenes[index], [QUESTION])
        np.testing.assert_array_equal(answer.inside, alone[index])
    with pytest.raises(ModelError, match="not loaded"):
        pipelines[1].grounder.open(IMAGE)


def test_a_pipeline_has_the_version_that_the_registry_gave(variants: Variants, stored: tuple[Path, Path], tmp_path: Path) -> None:
    home = Registry(tmp_path)
    first, second = (add(home, variants, folder) for folder in stored)
    pipelines = [serve(home, variants, version) for version in (first, second)]
    assert [pipeline.version for pipeline in pipelines] == [first, second]
    name, number, digest = first.rsplit("-", 2)
    one = pipelines[0]
    other = Pipeline(one.grounder, one.segmenter, Options("box"), one.slug, one.adapter).version.rsplit("-", 2)
    assert other[:2] == [name, number]
    assert other[2] != digest


@pytest.mark.parametrize(("field", "what"), [("base_sha256", "base model"), ("template_sha256", "set of prompts")])
def test_a_version_of_another_base_model_is_refused(
    field: str, what: str, variants: Variants, stored: tuple[Path, Path], tmp_path: Path
) -> None:
    home = Registry(tmp_path)
    version = add(home, variants, stored[0], **{field: "12" * 32})
    with pytest.raises(ModelError, match=f"another {what}"):
        serve(home, variants, version)
    assert np.isfinite(ask(variants.base.grounder)).all()


def test_an_adapter_by_its_path_or_its_version(
    tiny_checkpoint: Path, variants: Variants, stored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_segmenter", lambda *_: FakeSegmenter())
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path / "home"))
    home = Registry(tmp_path / "home")
    version = add(home, variants, stored[0], slug=slug_of(str(tiny_checkpoint)))
    home.export(version, tmp_path / "exported")
    found = {}
    for adapter in (version, tmp_path / "exported", stored[0], None):
        pipeline = sam4mllm.load(str(tiny_checkpoint), device="cpu", adapter=None if adapter is None else str(adapter))
        found[adapter] = (pipeline.version, ask(pipeline.grounder))
    assert found[version][0] == found[tmp_path / "exported"][0] == version
    assert len({name for name, _ in found.values()}) == 3
    for adapter in (tmp_path / "exported", stored[0]):
        np.testing.assert_array_equal(found[adapter][1], found[version][1])
    assert np.abs(found[None][1] - found[version][1]).max() > 1e-3
    with (tmp_path / "exported" / WEIGHTS).open("ab") as file:
        file.write(b" ")
    with pytest.raises(RegistryError, match="SHA-256"):
        read_papers(tmp_path / "exported")


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/such/folder", "no folder"), ("Demo", "is no version"), ("demo-1-00000000", "there is no version")],
)
def test_an_adapter_that_is_not_there(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path))
    with pytest.raises(RegistryError, match=message):
        find_adapter(name)


def test_an_empty_folder_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="missing"):
        read_papers(tmp_path)
