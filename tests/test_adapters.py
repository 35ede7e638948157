"""An adapter that is broken or hostile is refused, whether it is added or was put among the versions, and nothing of it runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from sam4mllm.adapters.fields import CONFIG, FILES, MANIFEST, WEIGHTS
from sam4mllm.adapters.manifest import Manifest, is_same_adapter
from sam4mllm.adapters.registry import Registry
from sam4mllm.errors import RegistryError
from tests.adapter_files import LORA, ORIGIN, SHA, adapter, weights


def add(home: Registry, value: float = 0.5, slug: str = "demo") -> str:
    origin = ORIGIN.copy()
    origin["slug"] = slug
    return home.add(adapter(value), **origin).version


@pytest.fixture
def home(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_weights_of_each_precision(dtype: torch.dtype, home: Registry) -> None:
    factors = {"layer.lora_A.weight": torch.full((4, 8), 0.5).to(dtype), "layer.lora_B.weight": torch.zeros(8, 4).to(dtype)}
    home.verify(home.add({**adapter(), WEIGHTS: save(factors)}, **ORIGIN).version)


def test_what_peft_saves_is_taken(home: Registry, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], base_model_name_or_path="demo", inference_mode=True)
    mapping = {"base_model_class": "Qwen2VLForConditionalGeneration", "parent_library": "transformers.models.qwen2_vl.modeling_qwen2_vl"}
    config.save_pretrained(tmp_path / "saved", auto_mapping_dict=mapping)
    home.add({CONFIG: tmp_path / "saved" / CONFIG, WEIGHTS: weights()}, **ORIGIN)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"extra": 1}, id="unknown key"),
        pytest.param({"base_sha256": None}, id="null hash"),
        pytest.param({"data_sha256": "ef"}, id="short hash"),
        pytest.param({"strategy": "auto"}, id="strategy"),
        pytest.param({"points": "some"}, id="points"),
        pytest.param({"dialect": "demo"}, id="a dialect's name"),
        pytest.param({"dialect": {"name": None}}, id="a dialect of no text"),
        pytest.param({"segmenter": 1}, id="segmenter"),
        pytest.param({"plan": []}, id="plan"),
        pytest.param({"base_sha256": SHA.upper()}, id="hash in capitals"),
        pytest.param({"version": "../demo-1-00000000"}, id="version"),
        pytest.param({"created": "yesterday"}, id="time"),
        pytest.param({"created": "2026-01-01T00:00:00"}, id="time without zone"),
        pytest.param({"metrics": {"gIoU": float("nan")}}, id="NaN metric"),
        pytest.param({"metrics": {"gIoU": "high"}}, id="text metric"),
        pytest.param({"metrics": []}, id="metrics"),
        pytest.param({"parent": "../demo"}, id="parent"),
        pytest.param({"base_model": ""}, id="base model"),
        pytest.param({"files": {CONFIG: SHA}}, id="a file without a hash"),
        pytest.param({"files": {CONFIG: SHA, WEIGHTS: SHA, "../../x": SHA}}, id="a file elsewhere"),
        pytest.param({"files": None}, id="files"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused(change: dict[str, object], home: Registry) -> None:
    manifest = json.loads(home.show(add(home)).to_json())
    with pytest.raises(RegistryError) as caught:
        Manifest.from_json(json.dumps(manifest | change))
    assert next(iter(change)) in str(caught.value) or "metric" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"version": "x"}'], ids=["empty", "list", "deep", "keys missing"])
def test_a_manifest_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RegistryError, match=r"manifest\.json"):
        Manifest.from_json(text)


def bad_tensor(value: float) -> bytes:
    return save({"a": torch.zeros(3, 3), "layer.lora_B.weight": torch.tensor([0.0, value])})


BAD_WEIGHTS: dict[str, bytes] = {
    "empty": b"",
    "truncated": weights()[:-1],
    "header only": weights()[:60],
    "longer": weights() + b"\0",
    "header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "no tensors": save({}),
    "NaN": bad_tensor(float("nan")),
    "infinity": bad_tensor(float("-inf")),
    "NaN in bfloat16": save({"a": torch.tensor([float("nan")], dtype=torch.bfloat16)}),
    "whole numbers": save({"a": torch.ones(2, dtype=torch.int64)}),
    "8 bit floats": save({"a": torch.ones(2).to(torch.float8_e4m3fn)}),
    "zip": b"PK\x03\x04" + bytes(60),
}

HOSTILE: dict[str, dict[str, object]] = {
    "unknown key": {"trust_remote_code": True},
    "runtime_config": {"runtime_config": {"ephemeral_gpu_offload": True}},
    "imports a module": {"megatron_config": {"a": 1}, "megatron_core": "os"},
    "imports a module when off": {"megatron_core": "antigravity"},
    "imports a class": {"auto_mapping": {"base_model_class": "system", "parent_library": "os"}},
    "imports a neighbour": {"auto_mapping": {"base_model_class": "system", "parent_library": "transformersx"}},
    "imports a class by path": {"auto_mapping": {"base_model_class": "a.b", "parent_library": "transformers"}},
    "auto_mapping with more": {"auto_mapping": {"base_model_class": "A", "parent_library": "transformers", "x": 1}},
    "reads a file": {"corda_config": {"cache_file": "/tmp/x.pt"}},
    "eva": {"eva_config": {"rho": 2.0}},
    "loftq": {"loftq_config": {"loftq_bits": 4}},
    "changes the base": {"init_lora_weights": "pissa"},
    "repeats layers": {"layer_replication": [[0, 1000]]},
    "other method": {"peft_type": "ADALORA"},
    "no method": {"peft_type": None},
    "rank 0": {"r": 0},
    "rank true": {"r": True},
    "rank text": {"r": "4"},
    "no rank": {"r": None},
    "huge rank": {"r": 10**9},
    "alpha NaN": {"lora_alpha": float("nan")},
    "alpha without end": {"lora_alpha": 10**400},
    "pattern": {"rank_pattern": {"a": "b"}},
    "modules": {"target_modules": [["a"]]},
    "long pattern": {"target_modules": "(a+)+" * 1_000},
    "bias": {"bias": "some"},
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused(case: str, home: Registry) -> None:
    old = add(home)
    home.promote(old)
    with pytest.raises(RegistryError, match=r"adapter_model\.safetensors"):
        home.add({**adapter(), WEIGHTS: BAD_WEIGHTS[case]}, **ORIGIN)
    version = plant(home, WEIGHTS, BAD_WEIGHTS[case])
    with pytest.raises(RegistryError, match=rf"{version}: .*adapter_model\.safetensors"):
        home.promote(version)
    champion = home.champion()
    assert champion is not None
    assert champion.version == old
    assert len(home.versions()) == 2


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_configurations_are_refused(case: str, home: Registry) -> None:
    with pytest.raises(RegistryError, match=r"adapter_config\.json"):
        home.add(adapter(config=HOSTILE[case]), **ORIGIN)
    version = plant(home, CONFIG, json.dumps(LORA | HOSTILE[case]).encode())
    with pytest.raises(RegistryError, match=r"adapter_config\.json"):
        home.verify(version)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b" " * 2_000_000], ids=["empty", "list", "cut", "bytes", "deep", "long"]
)
def test_configurations_that_are_no_object_are_refused(text: bytes, home: Registry) -> None:
    with pytest.raises(RegistryError, match=r"adapter_config\.json"):
        home.add({**adapter(), CONFIG: text}, **ORIGIN)


def plant(home: Registry, name: str, data: bytes) -> str:
    """A version with another file in it and a manifest that agrees, as someone makes it who can write there."""
    version = add(home)
    folder = home.path(version)
    (folder / name).write_bytes(data)
    manifest = home.show(version)
    files = manifest.files | {name: hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(replace(manifest, files=files).to_json())
    return version


def test_a_changed_file_is_refused(home: Registry) -> None:
    for name, data in ((WEIGHTS, weights(0.9)), (CONFIG, json.dumps(LORA | {"r": 8}).encode())):
        version = add(home)
        (home.path(version) / name).write_bytes(data)
        with pytest.raises(RegistryError, match=f"{name} is not the file"):
            home.verify(version)


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "x.PKL", "a.pth", "README.md", ".hidden", "folder"])
def test_other_files_are_refused(name: str, home: Registry) -> None:
    version = add(home)
    if name == "folder":
        (home.path(version) / name).mkdir()
    else:
        (home.path(version) / name).write_bytes(b"x")
        with pytest.raises(RegistryError, match=name):
            home.add({**adapter(), name: b"x"}, **ORIGIN)
    with pytest.raises(RegistryError, match=name):
        home.verify(version)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_a_link_or_a_pipe_is_refused(name: str, home: Registry, tmp_path: Path) -> None:
    version = add(home)
    path = home.path(version) / name
    path.rename(tmp_path / name)
    with pytest.raises(RegistryError, match=name):
        home.verify(version)
    path.symlink_to(tmp_path / name)
    with pytest.raises(RegistryError, match=f"{name} is missing or not a plain file"):
        home.verify(version)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RegistryError, match=f"{name} is missing or not a plain file"):
        home.verify(version)


@pytest.mark.parametrize("change", ["incomplete", "too much", "not an adapter"])
def test_other_sets_of_files_are_refused(change: str, home: Registry) -> None:
    sets: dict[str, dict[str, Path | bytes]] = {
        "incomplete": {CONFIG: b"{}"},
        "too much": {**adapter(), MANIFEST: b"{}"},
        "not an adapter": {"../x": b""},
    }
    with pytest.raises(RegistryError, match="an adapter is"):
        home.add(sets[change], **ORIGIN)
    assert not home.root.exists()


def test_renamed_weights_are_refused_unread(home: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    version = add(home)
    folder = home.path(version)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")

    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was opened")

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(RegistryError, match=r"adapter_model\.bin may run code when it is opened, and was not"):
        home.verify(version)


def test_a_pickle_does_not_run(home: Registry, tmp_path: Path) -> None:
    """CVE-2025-5173: weights that are a pickle, under a name that is expected or beside it."""
    marker = tmp_path / "ran"
    payload = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    subprocess.run([sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"], input=payload, check=True)
    assert marker.exists(), "the payload works where it is loaded"
    marker.unlink()

    for files in ({**adapter(), WEIGHTS: payload}, {CONFIG: adapter()[CONFIG], "adapter_model.bin": payload}):
        with pytest.raises(RegistryError):
            home.add(files, **ORIGIN)
    beside = add(home)
    (home.path(beside) / "adapter_model.bin").write_bytes(payload)
    for version in (plant(home, WEIGHTS, payload), plant(home, CONFIG, payload), beside):
        for change in (home.verify, home.promote, lambda version: home.export(version, tmp_path / "out")):
            with pytest.raises(RegistryError):
                change(version)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param("demo-2-00000000", "demo-2-ffffffff", True, id="renamed"),
        pytest.param("demo-0-00000000", "demo-0-ffffffff", True, id="the base model"),
        pytest.param("demo-2-00000000", "demo-3-00000000", False, id="another adapter"),
        pytest.param("", "", True, id="no version"),
        pytest.param("", "demo-0-00000000", False, id="one is no version"),
    ],
)
def test_a_version_under_another_name_is_the_same_adapter(one: str, other: str, same: bool) -> None:
    assert is_same_adapter(one, other) is same
