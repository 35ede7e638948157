"""What models need against what there is: counted from headers, said before loading, refused in one line."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from transformers import Gemma4Config

from benchmarks.random_model import TINY, write_checkpoint
from sam4mllm import memory
from sam4mllm.cli.options import hush
from sam4mllm.errors import ModelError
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.memory import Stored, announce, estimate, free_ram, read_headers, segmenter_bytes, weight_bytes, working_bytes
from sam4mllm.options import AUTO, Precision

CPU = torch.device("cpu")
LAYER = Stored("model.language_model.layers.0.mlp.up_proj.weight", "BF16", (128, 64))
EXPERT = Stored("model.language_model.layers.0.mlp.experts.3.up_proj.weight", "BF16", (128, 64))
HEAD = Stored("lm_head.weight", "F32", (100, 64))
LINEAR_SIZES = {"linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
COUNTS = Stored("model.steps", "I64", (3,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(TINY, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("tensor", "precision", "expected"),
    [
        pytest.param(LAYER, AUTO, 128 * 64 * 2, id="the dtype, whatever is stored"),
        pytest.param(HEAD, Precision(quantize="4bit"), 100 * 64 * 2, id="the head is not quantised"),
        pytest.param(COUNTS, AUTO, 24, id="whole numbers stay"),
        pytest.param(EXPERT, Precision(quantize="4bit"), 128 * 64 * 2, id="experts are not quantised"),
        pytest.param(LAYER, Precision(quantize="8bit"), 128 * 64 + 4 * 128, id="8 bit and a scale a row"),
        pytest.param(LAYER, Precision(quantize="4bit"), 128 * 64 // 2 + 128 + 4 + 4 * (16 + 256 + 1), id="4 bit and scales of scales"),
    ],
)
def test_bytes_of_a_tensor(tensor: Stored, precision: Precision, expected: int) -> None:
    assert weight_bytes([tensor], precision, torch.bfloat16) == expected


def test_weights_are_counted_as_they_are_loaded(folder: Path) -> None:
    need = estimate(str(folder), CPU)
    assert need is not None
    assert need.weights == sum(weight.nbytes for weight in load_checkpoint(str(folder), CPU).model.parameters())
    training = estimate(str(folder), CPU, rank=16)
    assert training is not None
    assert training.weights == need.weights
    assert training.working > need.working > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param({}, 2 * (2 * 4 * 8 * 6144 + 4096 * (4 * 32 + 3 * 48) + 4096 * 6144), id="one MLP a layer"),
        pytest.param(
            {"intermediate_size": None, "num_experts_per_tok": 8, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
            2 * (2 * 4 * 8 * 6144 + 4096 * (4 * 32 + 3 * 144) + 4096 * 6144),
            id="nine experts a token",
        ),
        pytest.param(
            {"hidden_size_per_layer_input": 16},
            2 * (2 * 4 * 8 * 6144 + 4096 * (4 * 32 + 3 * 48 + 3 * 4 * 16) + 4096 * 6144),
            id="embeddings of each layer",
        ),
        pytest.param(
            {"layer_types": ["linear_attention"] * 3 + ["full_attention"], **LINEAR_SIZES},
            2 * (2 * 8 * (6144 + 8 * 2048) + 4096 * (4 * 32 + 3 * 48) + 4096 * 6144) + 9 * 3 * 4 * 8 * 8 * 4,
            id="a state in three layers of four, copied",
        ),
    ],
)
def test_room_to_work_in_is_of_the_layers_that_there_are(text: dict[str, object], expected: int) -> None:
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 32, "intermediate_size": 48}
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**{**sizes, **text}))
    assert working_bytes(config, torch.bfloat16) == expected


@pytest.mark.parametrize(
    ("layers", "kept", "inner"),
    [
        pytest.param({"num_kv_shared_layers": 2, "use_double_wide_mlp": True}, 2 * 8 + 2 * 24, 2 * 48, id="the last layers keep nothing"),
        pytest.param({"attention_k_eq_v": True, "num_global_key_value_heads": 2}, 2 * (2 * 8 + 2 * 2 * 24), 48, id="other heads"),
        pytest.param(
            {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
            2 * (2 * 8 + 2 * 24),
            48 + 2 * 16,
            id="experts beside an MLP",
        ),
    ],
)
def test_room_to_work_in_where_layers_have_windows(layers: dict[str, object], kept: int, inner: int) -> None:
    """Gemma 4: heads of two sizes, and a mask for each kind of layer."""
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 32, "intermediate_size": 48}
    kinds = ["sliding_attention", "full_attention"] * 2
    heads = {"layer_types": kinds, "head_dim": 8, "global_head_dim": 24, "hidden_size_per_layer_input": 0}
    config = Gemma4Config(text_config={**sizes, **heads, **layers})
    assert working_bytes(config, torch.bfloat16) == 2 * (kept * 6144 + 4096 * (4 * 32 + 3 * inner) + 2 * 4096 * 6144)


def test_parts_that_hear_are_not_counted(tmp_path: Path) -> None:
    names = ("lm_head.weight", "model.audio_tower.layers.0.weight", "model.embed_audio.weight")
    save_file({name: torch.zeros(9) for name in names}, tmp_path / "model.safetensors")
    assert [tensor.name for tensor in read_headers(str(tmp_path)) or ()] == ["lm_head.weight"]


def test_the_demo_needs_no_words(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sam4mllm.memory"):
        announce("demo", CPU, segmenter="demo")
    assert not caplog.records


def test_a_large_model_is_announced(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(memory, "read_headers", lambda source: [Stored("lm_head.weight", "BF16", (1000, 1_000_000))])
    monkeypatch.setattr(memory, "free_bytes", lambda *_: 5_000_000_000)
    with caplog.at_level(logging.INFO, "sam4mllm.memory"):
        announce(str(folder), CPU, rank=4)
        monkeypatch.setattr(memory, "free_bytes", lambda *_: 4_000_000_000)
        announce(str(folder), CPU, rank=4)
    first, second = (record.getMessage() for record in caplog.records)
    assert first == f"{folder.name} in fp32 needs about 4.1 GB to train, cpu has 5.0 GB free"
    assert second.endswith("cpu has 4.0 GB free; that is tight, large images may not fit")


def test_a_command_says_it_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("sam4mllm.memory")
    before = (log.level, log.handlers)
    try:
        hush()
        log.info("needs 17 GB")
    finally:
        log.level, log.handlers = before
    assert capsys.readouterr().err == "needs 17 GB\n"


@pytest.mark.parametrize(
    ("precision", "advice"),
    [
        pytest.param(AUTO, r"needs 4\.0 GB for weights alone, and cpu has 1\.0 GB free; set SAM4MLLM_QUANTIZE=8bit or", id="plain"),
        pytest.param(Precision(quantize="8bit"), "set SAM4MLLM_QUANTIZE=4bit", id="8 bit"),
        pytest.param(Precision(quantize="4bit"), "free memory, or use a smaller model", id="4 bit"),
    ],
)
def test_what_cannot_fit_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, advice: str) -> None:
    monkeypatch.setattr(memory, "read_headers", lambda source: [Stored("lm_head.weight", "BF16", (1000, 1_000_000))])
    monkeypatch.setattr(memory, "free_bytes", lambda *_: 1_000_000_000)
    with pytest.raises(ModelError, match=advice):
        announce(str(folder), CPU, precision)
    announce(str(folder), CPU, Precision(device_map="auto"))  # the CPU, or a disk, holds what is over


def test_what_cannot_be_known_is_left_to_loading(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    assert read_headers(str(tmp_path)) is None
    announce(str(tmp_path), CPU)
    (tmp_path / "empty").mkdir()
    assert estimate(str(tmp_path / "empty"), CPU) is None


def test_of_a_hub_model_the_headers_alone_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"lm_head.weight": SimpleNamespace(dtype="BF16", shape=[3, 4])}
    answer = SimpleNamespace(files_metadata={"model.safetensors": SimpleNamespace(tensors=tensors)})
    monkeypatch.setattr(memory, "snapshot_download", lambda *_, **__: _away())
    monkeypatch.setattr(memory, "get_safetensors_metadata", lambda source: answer)
    assert read_headers("some/model") == [Stored("lm_head.weight", "BF16", (3, 4))]
    monkeypatch.setattr(memory, "get_safetensors_metadata", lambda source: _away())
    assert read_headers("some/model") is None


def _away() -> None:
    raise LocalEntryNotFoundError("not here")


@pytest.mark.parametrize("spelling", ["vit_b:{}", "{}"])
def test_bytes_of_a_segmenter(tmp_path: Path, spelling: str) -> None:
    file = tmp_path / "sam.pth"
    file.write_bytes(b"x" * 500)
    assert segmenter_bytes(spelling.format(file)) == 500
    save_file({"a": torch.zeros(3, 5, dtype=torch.float16)}, tmp_path / "model.safetensors")
    assert segmenter_bytes(str(tmp_path)) == 30
    assert segmenter_bytes("demo") == 0
    assert segmenter_bytes(f"{tmp_path}+{spelling.format(file)}") == 530


# -- control groups ------------------------------------------------------------------------------------------------------------------------


FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def write_group(folder: Path, limit: str, version: int) -> None:
    """With 300 bytes used, of which 20 can be dropped."""
    folder.mkdir(parents=True, exist_ok=True)
    most, used, droppable = FILES[version]
    (folder / most).write_text(f"{limit}\n")
    (folder / used).write_text("300\n")
    (folder / "memory.stat").write_text(f"anon 7\n{droppable} 20\n")


@pytest.mark.parametrize(
    ("line", "outer", "inner", "version", "expected"),
    [
        pytest.param("0::/pod/box", "max", "1000", 2, 1000 - 300 + 20, id="its own limit"),
        pytest.param("0::/pod/box", "900", "max", 2, 900 - 300 + 20, id="its parent's"),
        pytest.param("0::/pod/box", "100", "100", 2, 0, id="more used than allowed"),
        pytest.param("4:cpu,memory:/pod/box", str(2**63), "1000", 1, 1000 - 300 + 20, id="version 1"),
        pytest.param("4:cpu:/pod/box", "1000", "1000", 1, None, id="another controller"),
        pytest.param("no group", "1000", "1000", 2, None, id="a line of another form"),
    ],
)
def test_room_in_control_groups(tmp_path: Path, line: str, outer: str, inner: str, version: int, expected: int | None) -> None:
    groups = tmp_path / "cgroup"
    groups.write_text(f"{line}\n")
    root = tmp_path / "fs"
    top = root if version == 2 else root / "memory"
    write_group(top / "pod", outer, version)
    write_group(top / "pod" / "box", inner, version)
    free = free_ram(groups, root)
    assert free == expected if expected is not None else free > 10_000


def test_without_control_groups(tmp_path: Path) -> None:
    assert free_ram(tmp_path / "none", tmp_path) > 10_000
