"""Adapters whose layers have older names: converted or loaded as they are, they answer as under today's, or one line says why not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sam4mllm.adapters.conversion import convert_adapter, is_foreign
from sam4mllm.adapters.fields import CONFIG, WEIGHTS
from sam4mllm.adapters.lora import Adapters
from sam4mllm.conversion.convert import convert_folder
from sam4mllm.errors import ModelError, RegistryError, Sam4mllmError
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from tests import qwen_vl_chat_double as double
from tests.family_checks import CPU, Subject, ask
from tests.family_models import KINDS
from tests.published_models import HEADS, INNER, LAYERS, WIDTH, qwen_config, write_qwen_vl_chat
from tests.test_train_cli import run

torch.set_num_threads(1)

PREFIX = "base_model.model."
RANK, ALPHA = 4, 6.0
Tensors = dict[str, Tensor]


def write(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """A plain PEFT folder; its configuration is an early one's."""
    folder.mkdir(parents=True)
    save_file({f"{PREFIX}{name}": tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    plain = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.05, "bias": "none", "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps({**plain, "target_modules": sorted({targeted(name) for name in tensors}), **config}))
    return folder


def targeted(name: str) -> str:
    """The end of a layer's name by which it is targeted."""
    module = name.partition(".lora_")[0]
    return ".".join(module.split(".")[-2:]) if module.endswith("c_proj") or module[-1].isdecimal() else module.split(".")[-1]


def factors(layers: Mapping[str, tuple[int, int]], rank: int = RANK) -> Tensors:
    """Random factors of layers with these (out, in)."""
    generator = torch.Generator().manual_seed(4)
    made = {}
    for layer, (height, width) in layers.items():
        made[f"{layer}.lora_A.weight"] = 0.2 * torch.randn(rank, width, generator=generator)
        made[f"{layer}.lora_B.weight"] = 0.2 * torch.randn(height, rank, generator=generator)
    return made


# -- Qwen-VL-Chat --------------------------------------------------------------------------------------------------------------------------

PUBLISHED = {
    f"transformer.h.{layer}.{name}": shape
    for layer in range(LAYERS)
    for name, shape in {
        "attn.c_attn": (3 * WIDTH, WIDTH),
        "attn.c_proj": (WIDTH, WIDTH),
        "mlp.w1": (INNER, WIDTH),
        "mlp.w2": (INNER, WIDTH),
    }.items()
}
"""What the published fine-tuning targets."""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("qwen")
    state = write_qwen_vl_chat(folder / "old")
    convert_folder(folder / "old", folder / "new")
    return folder / "new", state


def merged(state: Mapping[str, Tensor], tensors: Tensors, scale: Callable[[str], float]) -> dict[str, Tensor]:
    """The published weights with what an adapter adds to them."""
    changed = dict(state)
    for name in tensors:
        layer, _, factor = name.partition(".lora_")
        if factor == "A.weight":
            changed[f"{layer}.weight"] = state[f"{layer}.weight"] + scale(layer) * tensors[f"{layer}.lora_B.weight"] @ tensors[name]
    return changed


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        pytest.param({}, lambda layer: ALPHA / RANK, id="one strength"),
        pytest.param({"use_rslora": True}, lambda layer: ALPHA / RANK**0.5, id="by the root of the rank"),
        pytest.param(
            {"alpha_pattern": {"attn.c_attn": 2.0, r"h\.1\.mlp\.w1": 12.0}},
            lambda layer: {"c_attn": 2.0, "1.mlp.w1": 12.0}.get(layer[-8:] if "w1" in layer else layer[-6:], ALPHA) / RANK,
            id="strengths by patterns",
        ),
        pytest.param(
            {"auto_mapping": {"base_model_class": "QWenLMHeadModel", "parent_library": "their.code"}}, lambda layer: 1.5, id="a class"
        ),
        pytest.param({"target_modules": r"transformer\.h\.\d+\.(attn\.c_(attn|proj)|mlp\.w[12])"}, lambda layer: 1.5, id="a pattern"),
    ],
)
def test_an_adapter_of_qwen_vl_chat_adds_what_it_added(
    config: dict[str, Any], scale: Callable[[str], float], qwen: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    """Against the double with the merged weights, by their published names."""
    folder, state = qwen
    tensors = factors(PUBLISHED)
    old = write(tmp_path / "old", tensors, **config)
    assert is_foreign(old)
    assert convert_adapter(old, tmp_path / "new") == ["its layers had the names of Qwen-VL-Chat as first published"]
    assert not is_foreign(tmp_path / "new")
    checkpoint = load_checkpoint(str(folder), CPU)
    adapters = Adapters(checkpoint)
    adapters.load("converted", tmp_path / "new")
    adapters.use("converted")
    pixels = torch.randn(3, 56, 56, generator=torch.Generator().manual_seed(1))
    ids = [5, *[checkpoint.model.config.image_token_id] * 9, 6, 7, 8]
    expected = double.double_logits(merged(state, tensors, scale), qwen_config(), ids, pixels, range(1, 10))
    with torch.inference_mode():
        found = checkpoint.model(input_ids=torch.tensor([ids]), pixel_values=pixels[None]).logits[0]
    plain = double.double_logits(state, qwen_config(), ids, pixels, range(1, 10))
    assert (expected - plain).abs().max() > 0.1
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


def test_ranks_by_patterns_stay_with_their_layers(qwen: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    tensors = factors(PUBLISHED)
    for name in list(tensors):
        if "c_attn" in name:
            tensors[name] = tensors[name][:2] if "lora_A" in name else tensors[name][:, :2]
    convert_adapter(write(tmp_path / "old", tensors, rank_pattern={"c_attn": 2}), tmp_path / "new")
    Adapters(load_checkpoint(str(qwen[0]), CPU)).load("converted", tmp_path / "new")  # every rank is compared
    config = json.loads((tmp_path / "new" / CONFIG).read_text())
    assert len(config["rank_pattern"]) == 3 * LAYERS
    assert len(config["target_modules"]) == 6 * LAYERS
    assert HEADS == 2


def test_the_command_converts_a_pickled_adapter(qwen: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    tensors = factors(PUBLISHED)
    old = write(tmp_path / "old", tensors)
    (old / WEIGHTS).unlink()
    torch.save({f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}, old / "adapter_model.bin")
    said = run("models", "convert", old, tmp_path / "new")
    assert said == f"{tmp_path / 'new'}: an adapter; its layers had the names of Qwen-VL-Chat as first published\n"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {CONFIG, WEIGHTS}
    Adapters(load_checkpoint(str(qwen[0]), CPU)).load("converted", tmp_path / "new")
    first, second = (
        load_file(tmp_path / "new" / WEIGHTS)[f"{PREFIX}model.language_model.layers.0.self_attn.{one}_proj.lora_A.weight"] for one in "qv"
    )
    assert torch.equal(first, second)  # what goes in is the same for all three


# -- other layouts, as today's adapter under their names -----------------------------------------------------------------------------------

LLAVA = {
    "model.language_model.": "model.",
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
}
"""LLaVA's repository, in which the paper's authors trained the adapters that they published."""
TRANSFORMERS_QWEN = {"model.language_model.": "model.", "model.visual.": "visual."}
TRANSFORMERS_LLAVA = {"model.language_model.": "language_model.model.", "model.multi_modal_projector.": "multi_modal_projector."}
INTERNVL = {
    "model.language_model.": "language_model.model.",
    "model.multi_modal_projector.linear_1.": "mlp1.1.",
    "model.multi_modal_projector.linear_2.": "mlp1.3.",
}
LAYOUTS = [
    pytest.param("LLaVA-NeXT, Llama 3", LLAVA, "LLaVA's repository", id="LLaVA's repository"),
    pytest.param("LLaVA-NeXT, Llama 3", TRANSFORMERS_LLAVA, "earlier transformers", id="LLaVA-NeXT of earlier transformers"),
    pytest.param("Qwen2.5-VL", TRANSFORMERS_QWEN, "earlier transformers", id="Qwen2.5-VL of earlier transformers"),
    pytest.param("InternVL", INTERNVL, "InternVL's repository", id="InternVL's repository"),
]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    made: dict[str, Subject] = {}

    def find(name: str) -> Subject:
        if name not in made:
            made[name] = Subject(KINDS[name], tmp_path_factory.mktemp("family"))
        return made[name]

    return find


def under_older_names(today: Path, names: Mapping[str, str], out: Path) -> Path:
    """An adapter of today as it would have been saved."""
    tensors: Tensors = {}
    for name, tensor in load_file(today / WEIGHTS).items():
        old = name.removeprefix(PREFIX)
        for one, other in names.items():
            old = old.replace(one, other)
        assert old != name.removeprefix(PREFIX)
        tensors[old] = tensor
    config = json.loads((today / CONFIG).read_text())
    return write(out, tensors, r=config["r"], lora_alpha=config["lora_alpha"])


def answers(subject: Subject, adapter: Path) -> Any:
    checkpoint = subject.load()
    adapters = Adapters(checkpoint)
    adapters.load("adapter", adapter)
    adapters.use("adapter")
    return ask(MllmGrounder(checkpoint))


@pytest.mark.parametrize(("family", "names", "origin"), LAYOUTS)
def test_an_adapter_answers_as_under_todays_names(
    family: str, names: Mapping[str, str], origin: str, subjects: Callable[[str], Subject], tmp_path: Path
) -> None:
    """Converted, and loaded as it is."""
    subject = subjects(family)
    old = under_older_names(subject.other_adapter, names, tmp_path / "old")
    assert is_foreign(old)
    assert convert_adapter(old, tmp_path / "new") == [f"its layers had the names of {origin}"]
    expected = answers(subject, subject.other_adapter)
    assert np.abs(expected - ask(MllmGrounder(subject.load()))).max() > 1e-3
    np.testing.assert_array_equal(answers(subject, tmp_path / "new"), expected)
    np.testing.assert_array_equal(answers(subject, old), expected)


def test_todays_names_stay(subjects: Callable[[str], Subject], tmp_path: Path) -> None:
    today = subjects("InternVL").other_adapter
    assert not is_foreign(today)
    with pytest.raises(RegistryError, match="its layers have today's names, or names of no model that is known; use it as it is"):
        convert_adapter(today, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# -- what is wrong with an adapter ---------------------------------------------------------------------------------------------------------

LAYER = "model.layers.0.self_attn.q_proj"
ONE, AGAIN = factors({LAYER: (32, 32)}), factors({f"language_model.{LAYER}": (32, 32)})


def stretch(tensors: Tensors) -> Tensors:
    return {name: torch.ones(3 * WIDTH + 1, RANK) if "c_attn.lora_B" in name else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        pytest.param(
            ONE | AGAIN,
            {},
            "another of its tensors is today",
            id="a layer twice",
        ),
        pytest.param(stretch(factors(PUBLISHED)), {}, r"c_attn\.lora_B\.weight is \(769, 4\), which is no 3 blocks", id="rows left over"),
        pytest.param(
            factors({LAYER: (32, 32)}), {"target_modules": ["v_proj"]}, "holds factors of .*q_proj.*does not declare", id="undeclared"
        ),
        pytest.param(ONE, {"target_modules": None}, "names no layer of the model", id="no target"),
        pytest.param(ONE, {"target_modules": "(((("}, "no regular expression", id="no pattern"),
        pytest.param(ONE, {"rank_pattern": ["q_proj"]}, r"rank_pattern may not be \['q_proj'\]", id="a list of patterns"),
        pytest.param(ONE, {"target_modules": [{}]}, "target_modules may not be", id="a layer without a name"),
        pytest.param(ONE, {"r": "many"}, "r may not be 'many'", id="a rank in words"),
        pytest.param(ONE, {"runs": "code"}, "has keys that no plain LoRA needs", id="another key"),
        pytest.param(factors({"encoder.0": (32, 32)}), {}, "names of no model that is known", id="unknown names"),
        pytest.param({f"{LAYER}.weight": torch.ones(2)}, {}, "is no LoRA factor", id="base weights"),
        pytest.param({f"{LAYER}.lora_A.weight": torch.full((4, 4), torch.nan)}, {}, "NaN", id="not a number"),
    ],
)
def test_an_adapter_that_cannot_be_converted(tensors: Tensors, config: dict[str, Any], said: str, tmp_path: Path) -> None:
    old = write(tmp_path / "old", tensors, **config)
    with pytest.raises(RegistryError, match=said) as caught:
        convert_adapter(old, tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"old"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param([1, 2], "holds a list, not tensors", id="a list"),
        pytest.param({f"{PREFIX}{LAYER}.lora_A.weight": 3}, "is no plain tensor", id="a number"),
        pytest.param({f"{PREFIX}{LAYER}.weight": torch.ones(2)}, "is no LoRA factor", id="base weights"),
    ],
)
def test_a_pickled_adapter_that_is_none(content: object, said: str, tmp_path: Path) -> None:
    old = write(tmp_path / "old", factors({LAYER: (32, 32)}), target_modules=["q_proj"])
    (old / WEIGHTS).unlink()
    torch.save(content, old / "adapter_model.bin")
    with pytest.raises(Sam4mllmError, match=said):
        convert_folder(old, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"old"}


def test_older_names_of_another_model_are_refused(subjects: Callable[[str], Subject], tmp_path: Path) -> None:
    subject = subjects("InternVL")
    old = write(tmp_path / "old", factors({"model.layers.7.self_attn.q_proj": (32, 32)}))
    with pytest.raises(ModelError, match=r"does not fit .*: target_modules in adapter_config\.json names no layer of the model"):
        Adapters(subject.load()).load("adapter", old)
