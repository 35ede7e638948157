"""Folders as first published, converted: equal to what they were, whole or not at all, and one line on whatever is wrong with them."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from sam4mllm.conversion import tensors
from sam4mllm.conversion.convert import convert_folder
from sam4mllm.conversion.qwen_tokenizer import build_tokenizer
from sam4mllm.errors import ModelError
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from tests.family_checks import CPU, IMAGE, QUESTION, Subject, ask
from tests.family_models import KINDS
from tests.published_models import (
    PUBLISHED_FILES,
    internvl_state,
    qwen_config,
    ranks,
    write_internvl_chat,
    write_qwen_vl_chat,
    write_weights,
)
from tests.test_cli import fail
from tests.test_train_cli import run

torch.set_num_threads(1)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    write_qwen_vl_chat(tmp_path / "old")
    return tmp_path / "old"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"


# -- Qwen-VL-Chat --------------------------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_folder_that_loads(old: Path, new: Path) -> None:
    assert run("models", "convert", old, new) == f"{new}: Qwen-VL-Chat, 82 tensors\n"
    assert {path.name for path in new.iterdir()} == PUBLISHED_FILES
    assert not (old / "executed").exists()
    config = json.loads((new / "config.json").read_text())
    assert config["model_type"] == "qwen_vl_chat"
    assert "auto_map" not in config
    generation = json.loads((new / "generation_config.json").read_text())
    ends = [len(ranks()) + 2, len(ranks())]
    assert generation.get("do_sample", False) is False
    assert (generation["eos_token_id"], generation.get("top_p")) == (ends, None)
    assert 0 <= ask(MllmGrounder(load_checkpoint(str(new), CPU))).min() <= 1


@pytest.mark.parametrize(
    ("pickled", "shards"),
    [
        pytest.param(True, 1, id="one pickle"),
        pytest.param(True, 3, id="three pickles"),
        pytest.param(False, 1, id="one safetensors"),
        pytest.param(False, 3, id="three safetensors"),
    ],
)
def test_however_the_weights_are_stored_they_are_the_same(pickled: bool, shards: int, old: Path, new: Path, tmp_path: Path) -> None:
    convert_folder(old, new)
    write_qwen_vl_chat(tmp_path / "other", pickled=pickled, shards=shards)
    convert_folder(tmp_path / "other", tmp_path / "same")
    one, same = load_file(new / "model.safetensors"), load_file(tmp_path / "same" / "model.safetensors")
    assert one.keys() == same.keys()
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())


def test_large_weights_are_written_in_shards(old: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert_folder(old, tmp_path / "one")
    monkeypatch.setattr(tensors, "SHARD_BYTES", 1 << 20)
    held: list[int] = []
    save_file = safetensors.torch.save_file

    def save(some: dict[str, torch.Tensor], *rest: Any) -> None:
        held.append(sum(tensor.nbytes for tensor in some.values()))
        save_file(some, *rest)

    monkeypatch.setattr(tensors, "save_file", save)
    convert_folder(old, new)
    files = sorted(new.glob("*.safetensors"))
    assert len(files) == len(held) > 3
    assert max(held) <= 1 << 20  # what is in memory at a time
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((new / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(held)
    one, several = (ask(MllmGrounder(load_checkpoint(str(folder), CPU))) for folder in (tmp_path / "one", new))
    np.testing.assert_array_equal(one, several)


def test_positions_that_early_transformers_stored_are_left_out(old: Path, new: Path) -> None:
    state = {**torch.load(old / "pytorch_model-00001-of-00002.bin"), "transformer.rotary_emb.inv_freq": torch.ones(4)}
    torch.save(state, old / "pytorch_model-00001-of-00002.bin")
    assert convert_folder(old, new) == "Qwen-VL-Chat, 82 tensors"


# -- its tokenizer -------------------------------------------------------------------------------------------------------------------------

WORDS = regex.compile(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def slow_ids(text: str) -> list[int]:
    """tiktoken's way: a piece that is a token is that one; else neighbours are merged, those whose union has the lowest rank first."""
    known = ranks()
    ids: list[int] = []
    for piece in WORDS.findall(unicodedata.normalize("NFC", text)):
        parts = [piece.encode()] if piece.encode() in known else [bytes([byte]) for byte in piece.encode()]
        while True:
            unions = [(known[one + other], place) for place, (one, other) in enumerate(itertools.pairwise(parts)) if one + other in known]
            if not unions:
                break
            _, place = min(unions)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        ids += [known[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    write_qwen_vl_chat(folder)
    return build_tokenizer(folder / "qwen.tiktoken", 2048)


@settings(deadline=None, max_examples=300)
@example(text="vjqkv qkj")
@example(text="zxw vzxw")
@given(text=st.text(st.sampled_from("abtYesNo left cup'SsLlve 019 \n\r\t.,!<|>世界éïe\u0301🙂"), max_size=40) | st.text(max_size=20))
def test_tokens_are_those_of_tiktoken(tokenizer: Any, text: str) -> None:
    if any(token in text for token in tokenizer.get_added_vocab()):
        return
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == slow_ids(text)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_control_tokens_follow_those_of_the_file(tokenizer: Any) -> None:
    count = len(ranks())  # 151,643 as published
    expected = {
        "<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<|extra_0|>": 3, "<|extra_204|>": 207,
        "<ref>": 208, "</ref>": 209, "<box>": 210, "</box>": 211, "<quad>": 212, "</quad>": 213,
        "<img>": 214, "</img>": 215, "<imgpad>": 216,
    }  # fmt: skip
    assert {token: tokenizer.convert_tokens_to_ids(token) - count for token in expected} == expected
    assert tokenizer("<ref>cup</ref>", add_special_tokens=False)["input_ids"] == [count + 208, *slow_ids("cup"), count + 209]
    assert len(tokenizer) == count + 217
    assert tokenizer.eos_token == "<|im_end|>"


# -- InternVL ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pickled", [pytest.param(True, id="pickles"), pytest.param(False, id="safetensors")])
def test_internvl_answers_as_before(pickled: bool, new: Path, tmp_path: Path) -> None:
    """The published layout of a model of transformers, and back."""
    subject = Subject(KINDS["InternVL"], tmp_path)
    before = subject.load()
    old = write_internvl_chat(tmp_path / "old", subject.source, before.model, pickled)
    assert run("models", "convert", old, new) == f"{new}: InternVL, {len(before.model.state_dict())} tensors\n"
    after = load_checkpoint(str(new), CPU)
    assert after.markup.opening == "<|im_start|>user\n<IMG_CONTEXT>\n"
    encoded, expected = (one.encode(one, before.markup.opening, Image.fromarray(IMAGE)) for one in (after, before))
    assert torch.equal(encoded.inputs["input_ids"], expected.inputs["input_ids"])
    assert tuple(after.image_processor.image_processor.image_mean) == (0.485, 0.456, 0.406)  # ImageNet's, as published
    with torch.inference_mode():
        np.testing.assert_array_equal(after.model(**encoded.inputs).logits, before.model(**encoded.inputs).logits)
    [answer] = MllmGrounder(after).ask(MllmGrounder(after).open(IMAGE), [QUESTION])
    assert answer.inside.std() > 1e-5


@pytest.mark.parametrize(
    ("part", "changed", "said"),
    [
        pytest.param("llm_config", {"model_type": "internlm2"}, "llm_config.model_type .* must be qwen2 or qwen3 or llama", id="InternLM2"),
        pytest.param("", {"ps_version": "v1"}, "ps_version in config.json must be 'v2'", id="another shuffle"),
        pytest.param("", {"llm_config": None}, "llm_config in config.json is no object", id="no text model"),
        pytest.param("vision_config", {"image_size": "large"}, "vision_config.image_size .* must be a number", id="a size in words"),
        pytest.param(
            "vision_config", {"qk_normalization": True}, "lacks 4 of the model's tensors, among them .*q_norm", id="further norms"
        ),
    ],
)
def test_internvl_that_cannot_be_converted(part: str, changed: dict[str, Any], said: str, new: Path, tmp_path: Path) -> None:
    subject = Subject(KINDS["InternVL"], tmp_path)
    old = write_internvl_chat(tmp_path / "old", subject.source, subject.load().model, False)
    config = json.loads((old / "config.json").read_text())
    (config[part] if part else config).update(changed)
    (old / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        convert_folder(old, new)
    assert not new.exists()


def test_the_published_names_are_those_of_the_repository(tmp_path: Path) -> None:
    names = internvl_state(Subject(KINDS["InternVL"], tmp_path).load().model.state_dict())
    assert {"vision_model.encoder.layers.0.attn.qkv.weight", "mlp1.3.bias", "language_model.lm_head.weight"} <= names.keys()


# -- what is wrong with a folder -----------------------------------------------------------------------------------------------------------

Damage = Callable[[Path], None]
SHARD = "pytorch_model-00002-of-00002.bin"


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.system, ("touch executed",)


def repack(how: Callable[[dict[str, Any]], object]) -> Damage:
    """Another content of a shard."""

    def damage(folder: Path) -> None:
        torch.save(how(torch.load(folder / SHARD)), folder / SHARD)

    return damage


def config_with(**values: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({**qwen_config(), **values}))

    return damage


def visual_with(**values: Any) -> Damage:
    return config_with(visual={**qwen_config()["visual"], **values})


def cut(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-3000]) and None  # type: ignore[func-returns-value]


def plain_pickle(folder: Path) -> None:
    (folder / SHARD).write_bytes(pickle.dumps(Evil()))


def without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def drop(state: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if name != min(state)}


def half_converted(folder: Path) -> None:
    """Some of its shards in the new format, as another tool leaves them when it is stopped."""
    write_weights(folder, drop(torch.load(folder / SHARD)), False, 1)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(without("config.json"), "config.json is missing", id="no config"),
        pytest.param(config_with(model_type="bert"), "is of the type 'bert'; only Qwen-VL-Chat and InternVL", id="another model"),
        pytest.param(config_with(hidden_size="wide"), "hidden_size in config.json must be a number from 1", id="a size in words"),
        pytest.param(
            config_with(kv_channels=7), "hidden_size .* must be num_attention_heads times kv_channels", id="heads that do not fit"
        ),
        pytest.param(config_with(num_hidden_layers=10**6), "num_hidden_layers .* must be a number from 1", id="a million layers"),
        pytest.param(
            config_with(num_hidden_layers=3), r"lacks 8 of the model's tensors, among them transformer\.h\.2\.", id="a layer more"
        ),
        pytest.param(
            config_with(num_hidden_layers=1), r"holds 'transformer\.h\.1\..*', which the model .* does not have", id="a layer less"
        ),
        pytest.param(visual_with(output_dim=100), "visual.output_dim in config.json must be hidden_size", id="the resampler's width"),
        pytest.param(visual_with(image_start_id=9), "qwen.tiktoken is of another model", id="another tokenizer"),
        pytest.param(without("qwen.tiktoken"), "qwen.tiktoken cannot be read", id="no tokenizer"),
        pytest.param(lambda folder: (folder / "qwen.tiktoken").write_text("IQ== x\n"), "line 1 is no token", id="no tiktoken file"),
        pytest.param(lambda folder: (folder / "qwen.tiktoken").write_text("IQ== 0\n"), "not a token for every byte", id="few tokens"),
        pytest.param(lambda folder: (folder / "qwen.tiktoken").write_text("IQ== 4\n"), "ranks are not the numbers", id="other ranks"),
        pytest.param(without(SHARD), f"{SHARD} is missing, which pytorch_model.bin.index.json names", id="a shard is missing"),
        pytest.param(cut(SHARD), f"{SHARD} cannot be read as weights", id="a shard cut short"),
        pytest.param(plain_pickle, f"{SHARD} cannot be read as weights", id="a pickle that runs code"),
        pytest.param(
            repack(lambda state: Evil()), rf"{SHARD} cannot be read as weights \(it names what is no tensor", id="code in a shard"
        ),
        pytest.param(repack(lambda state: [1, 2]), f"{SHARD} holds a list, not tensors", id="a list"),
        pytest.param(repack(lambda state: {**state, "a": 3}), f"{SHARD}: 'a' is no plain tensor", id="a number among tensors"),
        pytest.param(repack(lambda state: {**state, "x.weight": torch.ones(2)}), f"{SHARD} holds 'x.weight', which", id="a foreign name"),
        pytest.param(repack(drop), "lacks 1 of the model's tensors, among them", id="a tensor is missing"),
        pytest.param(
            repack(lambda state: {**state, min(state): torch.ones(5)}), rf"{SHARD}: .* is \(5,\), but \(.*\) by config.json", id="a shape"
        ),
        pytest.param(
            repack(lambda state: {**state, min(state): torch.ones(1).expand(state[min(state)].shape).to(torch.int8)}),
            "torch.int8, not 16 or 32 bit floats",
            id="whole numbers",
        ),
        pytest.param(half_converted, r"lacks \d+ of the model's tensors", id="half converted"),
        pytest.param(
            lambda folder: (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../a.bin"}}'),
            "has not a weight_map of files",
            id="an index that leads elsewhere",
        ),
    ],
)
def test_a_damaged_folder_is_one_line_and_leaves_nothing(
    damage: Damage, said: str, old: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(old.parent)
    damage(old)
    with pytest.raises(ModelError, match=said) as caught:
        convert_folder(old, new)
    assert "\n" not in str(caught.value)
    assert {path.name for path in old.parent.iterdir()} == {"old"}


def test_a_full_disk_leaves_nothing(old: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(ModelError, match=r"new cannot be written \(No space left on device\); free space"):
        convert_folder(old, new)
    assert {path.name for path in old.parent.iterdir()} == {"old"}


def test_what_a_killed_command_left_is_replaced(old: Path, new: Path) -> None:
    (old.parent / ".new.partial").mkdir()
    (old.parent / ".new.partial" / "config.json").write_text("{")
    convert_folder(old, new)
    assert {path.name for path in old.parent.iterdir()} == {"old", "new"}
    assert {path.name for path in new.iterdir()} == PUBLISHED_FILES


def test_a_folder_that_is_not_empty_stays_as_it_is(
    old: Path, new: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new.mkdir()
    (new / "mine").write_text("kept")
    assert "is not empty; choose another folder" in fail(capsys, monkeypatch, "models", "convert", old, new)
    assert [path.name for path in new.iterdir()] == ["mine"]
