"""Each precision loads and answers; 8 and 4 bit train an adapter and nothing else; what does not fit is said before it is tried."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.random_model import TINY, write_checkpoint
from sam4mllm import precision
from sam4mllm.adapters.lora import Adapters, attach
from sam4mllm.errors import ModelError, TrainingError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.protocol import Grounder
from sam4mllm.loading import Variants
from sam4mllm.memory import read_headers, weight_bytes
from sam4mllm.options import AUTO, Precision
from sam4mllm.precision import check_quantised, describe, loading_options, movable, move, quantised_layers, torch_dtype
from sam4mllm.training.asking import Asking
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.processes import Processes
from sam4mllm.training.recipe import Progress, Trainer
from sam4mllm.training.session import Session
from tests.fakes import FakeSegmenter
from tests.test_mllm import inquiry, picture
from tests.test_pool import TOY, make_pool, write_pictures

torch.set_num_threads(1)

CPU = torch.device("cpu")
BITS = [Precision(quantize="8bit"), Precision(quantize="4bit")]
IMAGE = picture(1)
QUESTION = inquiry("the left cup", [[5, 5, 60, 80]], 0, 8)
LAYERS = 2 * 7
"""Linear layers of the tiny language model."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(TINY, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> NDArray[np.float64]:
    return ask(MllmGrounder(load_checkpoint(str(folder), CPU)))


def ask(grounder: Grounder) -> NDArray[np.float64]:
    [answer] = grounder.ask(grounder.open(IMAGE), [QUESTION])
    return answer.inside


def named(precision: Precision) -> str:
    return describe(precision, CPU)


# -- values --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"dtype": "bf17"}, r"SAM4MLLM_DTYPE: 'bf17' is not known; use auto, bf16, fp16, fp32$", id="dtype"),
        pytest.param({"quantize": "2bit"}, r"SAM4MLLM_QUANTIZE: '2bit' is not known; use none, 8bit, 4bit$", id="bits"),
        pytest.param({"device_map": "cuda:0"}, r"SAM4MLLM_DEVICE_MAP: 'cuda:0' is not known; use auto or leave it out$", id="map"),
        pytest.param({"dtype": ["bf16"]}, "SAM4MLLM_DTYPE", id="no string"),
    ],
)
def test_a_value_that_is_not_known(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Precision(**values)


@pytest.mark.parametrize(
    ("given", "dtype", "name"),
    [
        pytest.param(AUTO, torch.float32, "fp32", id="auto on a CPU"),
        pytest.param(Precision("bf16"), torch.bfloat16, "bf16", id="bf16"),
        pytest.param(Precision("fp16", "8bit"), torch.float16, "8bit (fp16)", id="8 bit"),
    ],
)
def test_what_a_precision_means(given: Precision, dtype: torch.dtype, name: str) -> None:
    assert torch_dtype(given, CPU) is dtype
    assert loading_options(given, CPU)["dtype"] is dtype
    assert describe(given, CPU) == name


def test_a_gpu_is_loaded_to_directly() -> None:
    gpu = torch.device("cuda", 1)
    assert loading_options(Precision("bf16"), gpu)["device_map"] == {"": gpu}
    assert loading_options(Precision("bf16", device_map="auto"), gpu)["device_map"] == "auto"
    assert "device_map" not in loading_options(Precision("bf16"), CPU)


def test_without_bitsandbytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"^SAM4MLLM_QUANTIZE=4bit needs bitsandbytes: pip install 'sam4mllm\[quant\]'$"):
        loading_options(Precision(quantize="4bit"), CPU)


@pytest.mark.parametrize(
    ("name", "quantised"),
    [
        pytest.param("model.language_model.layers.0.self_attn.q_proj", True, id="Qwen2.5-VL, LLaVA, InternVL"),
        pytest.param("model.layers.27.mlp.gate_proj.weight", True, id="Qwen2.5-VL as on the hub"),
        pytest.param("language_model.model.layers.3.mlp.up_proj.weight", True, id="LLaVA as on the hub"),
        pytest.param("transformer.h.4.attn.c_attn", True, id="Qwen-VL-Chat"),
        pytest.param("model.visual.blocks.0.attn.qkv", False, id="vision of Qwen"),
        pytest.param("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", False, id="vision of LLaVA"),
        pytest.param("model.vision_tower.encoder.layer.0.attention.q_proj", False, id="vision of InternVL"),
        pytest.param("model.visual.merger.mlp.0", False, id="merger"),
        pytest.param("model.multi_modal_projector.linear_1", False, id="projector"),
        pytest.param("model.language_model.embed_tokens", False, id="embeddings"),
        pytest.param("lm_head", False, id="head"),
    ],
)
def test_what_is_quantised(name: str, quantised: bool) -> None:
    """Names as transformers asks: the pattern of what is kept must match to the end of the name."""
    assert (re.match(precision.QUANTISED, name) is not None) is quantised
    assert (re.match(rf"(?:{precision.KEPT})(?:(?<=\.)|(?=\.|$))", name) is None) is quantised


# -- loading and answering -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "worst"),
    [
        pytest.param(Precision("bf16"), 0.05, id="bf16"),
        pytest.param(Precision("fp16"), 0.01, id="fp16"),
        pytest.param(Precision(device_map="auto"), 1e-6, id="device_map"),
    ],
)
def test_other_dtypes_answer_nearly_the_same(folder: Path, reference: NDArray[np.float64], given: Precision, worst: float) -> None:
    grounder = MllmGrounder(load_checkpoint(str(folder), CPU, given))
    assert grounder.checkpoint.model.dtype is torch_dtype(given, CPU)
    np.testing.assert_allclose(ask(grounder), reference, atol=worst)


@pytest.mark.parametrize("given", BITS, ids=named)
def test_fewer_bits(folder: Path, reference: NDArray[np.float64], given: Precision) -> None:
    checkpoint = load_checkpoint(str(folder), CPU, given)
    layers = quantised_layers(checkpoint.model)
    names = {name for name, module in checkpoint.model.named_modules() if module in layers}
    assert len(names) == LAYERS
    assert all(name.startswith("model.language_model.layers.") for name in names)
    loaded = sum(weight.nbytes for weight in checkpoint.model.parameters())
    expected = weight_bytes(read_headers(str(folder)) or [], given, torch.float32)
    assert loaded <= expected <= 1.06 * loaded  # the scales are no parameters
    grounder = MllmGrounder(checkpoint, max_new_tokens=6)
    found = ask(grounder)
    assert np.isfinite(found).all()
    difference = np.abs(found - reference).max()
    assert 0 < difference < (0.05 if given.quantize == "8bit" else 0.5)
    [grounding] = grounder.ground(grounder.open(IMAGE), ["the left cup"])
    assert np.isfinite(grounding.no_target_probability)


def test_the_identity_tells_precisions_apart_and_is_the_old_one_by_default(folder: Path) -> None:
    plain = load_checkpoint(str(folder), CPU)
    grounder = MllmGrounder(plain)
    identities = [grounder.identity]
    for given in (Precision("fp32"), *BITS):
        grounder.checkpoint = replace(plain, precision=given)
        identities.append(grounder.identity)
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3


def test_the_demos_identity_is_that_of_its_weights() -> None:
    """A change of it renames the version in annotators' databases, and is announced in CHANGELOG.md."""
    assert MllmGrounder(load_checkpoint("demo", CPU)).identity == "12e8a3bb"


def test_a_model_with_nothing_to_quantise() -> None:
    with pytest.raises(ModelError, match="x has no layers that can be quantised; use SAM4MLLM_QUANTIZE=none"):
        check_quantised(Precision(quantize="8bit"), nn.Linear(2, 2), "x")


def test_a_checkpoint_that_is_quantised_already() -> None:
    config = SimpleNamespace(quantization_config={"load_in_4bit": True})
    precision.refuse_twice(config, AUTO, "x")
    with pytest.raises(ModelError, match="x is quantised already; use SAM4MLLM_QUANTIZE=none"):
        precision.refuse_twice(config, Precision(quantize="4bit"), "x")


def test_out_of_memory_while_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")

    monkeypatch.setattr("sam4mllm.grounding.families.AutoModelForImageTextToText.from_pretrained", fail)
    with pytest.raises(ModelError, match=r"does not fit into the memory of cpu; set SAM4MLLM_QUANTIZE=8bit or 4bit \(--quantize\), or use"):
        load_checkpoint(str(folder), CPU)


# -- moving --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", BITS, ids=named)
def test_away_and_back_gives_the_same_answers(folder: Path, given: Precision) -> None:
    variants = Variants(load_checkpoint(str(folder), CPU, given), FakeSegmenter(), None, "tiny")
    before = ask(variants.base.grounder)
    variants.away()
    variants.back()
    np.testing.assert_array_equal(ask(variants.base.grounder), before)


class Linear8bitLt(nn.Linear):
    """As bitsandbytes' after its first use: the weights and their scales are in ``state``."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.state = SimpleNamespace(CB=self.weight.data, SCB=torch.ones(4))


def test_the_scales_of_8_bit_layers_move_along() -> None:
    layer = Linear8bitLt()
    move(nn.Sequential(layer), torch.device("meta"))
    assert layer.state.CB.data_ptr() == layer.weight.data.data_ptr()
    assert {layer.weight.device.type, layer.state.CB.device.type, layer.state.SCB.device.type} == {"meta"}


def test_a_model_that_is_spread_stays(folder: Path) -> None:
    variants = Variants(load_checkpoint(str(folder), CPU), FakeSegmenter(), None, "tiny")
    variants.checkpoint.model.hf_device_map = {"model.visual": 0, "model.language_model": 1}
    with pytest.raises(ModelError, match="SAM4MLLM_DEVICE_MAP=auto cannot leave its devices; use another SAM4MLLM_TRAIN_MODE"):
        variants.away()
    variants.back()  # as the learning loop does after any failure
    assert movable(load_checkpoint(str(folder), CPU).model)


# -- training ------------------------------------------------------------------------------------------------------------------------------


def snapshot(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in checkpoint.model.named_parameters() if "lora_" not in name}


@pytest.mark.parametrize("given", BITS, ids=named)
def test_a_qlora_run_learns_changes_the_adapter_alone_and_is_served(folder: Path, tmp_path: Path, given: Precision) -> None:
    data = write_pictures(tmp_path / "data", TOY[1:2])
    plan = TrainingPlan(steps=8, batch=1, rate=2e-2, rank=4, alpha=8, dropout=0.0, replay_share=0.0, strength=1.0)
    checkpoint = load_checkpoint(str(folder), CPU, given)
    trainer = Trainer(checkpoint, make_pool(data), plan, tmp_path / "run", Asking(points=2))
    before, told = snapshot(checkpoint), list[Progress]()
    adapter = [weight.detach().clone() for weight in trainer.model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in adapter} == {torch.float32}
    assert trainer.train(told.append)
    assert told[-1].loss < 0.8 * told[0].loss
    for name, weight in snapshot(checkpoint).items():
        assert torch.equal(weight, before[name]), name
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    assert all(not torch.equal(one, other) for one, other in zip(trained, adapter, strict=True))
    (tmp_path / "adapter").mkdir()
    trainer.save_adapter(tmp_path / "adapter", "tiny")
    expected = ask(MllmGrounder(checkpoint))
    fresh = load_checkpoint(str(folder), CPU, given)
    adapters, grounder = Adapters(fresh), MllmGrounder(fresh)
    base = ask(grounder)
    adapters.load("a", tmp_path / "adapter")
    adapters.use("a")
    np.testing.assert_allclose(ask(grounder), expected, atol=1e-5)
    assert np.abs(expected - base).max() > 0.05
    adapters.use("")
    np.testing.assert_allclose(ask(grounder), base, atol=1e-6)
    assert len(quantised_layers(fresh.model)) == LAYERS


def test_a_run_does_not_go_on_in_another_precision(folder: Path, tmp_path: Path) -> None:
    pool = make_pool(write_pictures(tmp_path / "data", TOY[1:2]))
    plan = TrainingPlan(steps=2, batch=1, rank=2, replay_share=0.0)
    Trainer(load_checkpoint(str(folder), CPU), pool, plan, tmp_path / "run", Asking(points=1)).train()
    other = Trainer(load_checkpoint(str(folder), CPU, Precision("bf16")), pool, plan, tmp_path / "run", Asking(points=1))
    with pytest.raises(TrainingError, match="holds a run with other data or settings"):
        other.train()


@pytest.mark.parametrize(
    ("given", "processes", "message"),
    [
        pytest.param(Precision(device_map="auto"), Processes(CPU, 0, 2), "--device-map spreads a model in one process", id="spread"),
        pytest.param(Precision(quantize="4bit"), Processes(CPU, 0, 2, sharded=True), "FSDP cannot shard quantised weights", id="FSDP"),
    ],
)
def test_what_several_processes_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Precision, processes: Processes, message: str
) -> None:
    monkeypatch.setattr("sam4mllm.training.session.join_processes", lambda device: processes)
    with pytest.raises(TrainingError, match=message):
        Session(tmp_path / "data", tmp_path / "out", TrainingPlan(), "demo", "cpu", None, precision=given)


def test_lora_sits_on_the_quantised_layers(folder: Path) -> None:
    checkpoint = load_checkpoint(str(folder), CPU, Precision(quantize="4bit"))
    attach(checkpoint, 4, 8, 0.0)
    kinds = {type(module).__module__.rsplit(".", 1)[-1] for module in checkpoint.model.modules() if hasattr(module, "lora_A")}
    assert kinds == {"bnb", "layer"}  # the language model's, and the merger's
