"""What fits a GPU: the planner on bytes, its line for a user, and the page's table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from backend.errors import SettingsError
from backend.settings import Settings
from backend.setup import gpu_plan
from backend.setup.gpu_plan import find_plan, take_plan, tell_plan
from backend.setup.machine_notes import tell_fit
from benchmarks import fits
from benchmarks.random_model import TINY, write_checkpoint
from sam4mllm import loading, memory
from sam4mllm.cli.main import make_app
from sam4mllm.errors import ModelError
from sam4mllm.fitting import IDLE_BYTES, PROCESS_BYTES, Demand, Fit, Mode, choose_fit, describe_fit
from sam4mllm.memory import Stored, count_demands, segmenter_working
from sam4mllm.options import AUTO, Precision
from sam4mllm.training.config import read_plan

GB = 1e9
DOCS = Path(__file__).parent.parent / "docs"
SEVEN_B = (Demand("none", 64, 22 * GB, 21 * GB), Demand("8bit", 64, 15 * GB, 15 * GB), Demand("4bit", 64, 12 * GB, 13 * GB))


@pytest.mark.parametrize(
    ("free", "modes", "fit"),
    [
        pytest.param(80, ("beside", "pause"), ("none", "beside"), id="fits beside"),
        pytest.param(46, ("beside", "pause"), ("none", "beside"), id="just beside"),
        pytest.param(45, ("beside", "pause"), ("none", "pause"), id="a pause before fewer bits"),
        pytest.param(24, ("beside", "pause"), ("none", "pause"), id="only pause"),
        pytest.param(24, ("pause",), ("none", "pause"), id="pause as it is set"),
        pytest.param(45, ("beside",), ("8bit", "beside"), id="beside as it is set"),
        pytest.param(20, ("beside", "pause"), ("8bit", "pause"), id="only 8 bit"),
        pytest.param(15, ("beside", "pause"), ("4bit", "pause"), id="only 4 bit"),
        pytest.param(13.5, ("beside", "pause"), ("4bit", "none"), id="serves and does not train"),
        pytest.param(24, ("beside",), ("none", "none"), id="serves and does not train as it is set"),
        pytest.param(13, ("beside", "pause"), None, id="nothing fits"),
    ],
)
def test_the_best_that_fits(free: float, modes: tuple[Mode, ...], fit: tuple[str, str] | None) -> None:
    found = choose_fit(SEVEN_B, free * GB, modes)
    assert (None if found is None else (found.demand.quantize, found.mode)) == fit


@given(free=st.floats(0, 100), more=st.floats(0, 100))
def test_what_is_chosen_fits_and_more_memory_is_never_worse(free: float, more: float) -> None:
    def worth(found: Fit | None) -> tuple[bool, int, int]:
        if found is None:
            return (False, -9, -9)
        return (found.mode != "none", -SEVEN_B.index(found.demand), -("beside", "pause", "none").index(found.mode))

    less, larger = choose_fit(SEVEN_B, free * GB), choose_fit(SEVEN_B, (free + more) * GB)
    assert less is None or less.peak <= free * GB
    assert worth(larger) >= worth(less)


@pytest.mark.parametrize(
    ("mode", "peak"),
    [
        pytest.param("beside", 22 * GB + 21 * GB + 2 * PROCESS_BYTES, id="two processes"),
        pytest.param("pause", 22 * GB + PROCESS_BYTES, id="the larger of both"),
        pytest.param("none", 22 * GB + PROCESS_BYTES, id="the server"),
    ],
)
def test_bytes_at_most(mode: Mode, peak: float) -> None:
    assert SEVEN_B[0].peak(mode) == peak


def test_a_server_that_pauses_is_still_there() -> None:
    assert SEVEN_B[2].peak("pause") == 13 * GB + IDLE_BYTES + PROCESS_BYTES


@pytest.mark.parametrize(
    ("free", "line"),
    [
        pytest.param(80, "m in bf16 serves and trains beside it (LoRA of rank 64) with about 46.0 GB of 80.0 GB", id="beside"),
        pytest.param(
            24,
            "m in bf16 serves, and pauses for at most 120 minutes and a comparison while it trains (LoRA of rank 64), "
            "with about 23.5 GB of 24.0 GB",
            id="pause",
        ),
        pytest.param(15.5, "m in 4bit (bf16) serves, and pauses", id="4 bit"),
        pytest.param(13.5, "m in 4bit (bf16) serves with about 13.5 GB of 13.5 GB; there is no room to train it", id="serves only"),
        pytest.param(
            8,
            "m does not fit into 8.0 GB: 4bit (bf16) takes 13.5 GB to serve; use a smaller model, or a GPU with that",
            id="nothing",
        ),
    ],
)
def test_the_line(free: float, line: str) -> None:
    told = describe_fit("m", choose_fit(SEVEN_B, free * GB), SEVEN_B, free * GB, "bf16", 7200.0)
    assert told.startswith(line)
    assert "\n" not in told


# -- counted -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(TINY, tmp_path_factory.mktemp("model"))


def test_demands_are_counted_from_headers(folder: Path) -> None:
    found = count_demands(str(folder), "demo", torch.device("cpu"), AUTO, 64)
    assert [demand.quantize for demand in found] == ["none", "8bit", "4bit"]
    assert found[0].serving > found[1].serving > found[2].serving
    assert all(demand.run > 0 and demand.rank == 64 for demand in found)
    small = count_demands(str(folder), "demo", torch.device("cpu"), AUTO, 4)
    assert all(less.serving == more.serving and less.run < more.run for less, more in zip(small, found, strict=True))
    assert [one.quantize for one in count_demands(str(folder), "demo", torch.device("cpu"), Precision(quantize="4bit"), 64)] == ["4bit"]


def test_what_cannot_be_known_has_no_demand(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    assert count_demands(str(tmp_path), "demo", torch.device("cpu"), AUTO, 64) == []


@pytest.mark.parametrize(
    ("segmenter", "gigabytes"),
    [
        pytest.param("demo", 0.0, id="the demo's fits anywhere"),
        pytest.param("vit_h:sam.pth", 3.221225472, id="16 heads of 4,096 by 4,096, thrice"),
        pytest.param("vit_b:sam.pth", 2.415919104, id="12 heads"),
        pytest.param("facebook/sam2.1-hiera-large", 1.0, id="another"),
        pytest.param("some/detector+demo", 1.0, id="a detector's"),
        pytest.param("some/detector+vit_b:sam.pth", 2.415919104, id="the larger of the two"),
    ],
)
def test_room_of_segmenters(segmenter: str, gigabytes: float) -> None:
    assert segmenter_working(segmenter) == gigabytes * GB


PUBLISHED = {
    "Qwen2.5-VL-3B": 3.75,
    "Qwen2.5-VL-7B": 8.29,
    "Qwen3-VL-2B": 2.13,
    "Qwen3-VL-4B": 4.44,
    "Qwen3-VL-8B": 8.77,
    "InternVL3-2B": 2.09,
    "InternVL3-8B": 7.94,
}
"""Billions of parameters, of the models' cards."""


def test_the_table_of_the_page_is_counted() -> None:
    assert fits.render(read_plan("server").rank) in (DOCS / "models.md").read_text(encoding="utf-8")  # type: ignore[arg-type]
    for name, billions in PUBLISHED.items():
        assert sum(tensor.count for tensor in fits.count(name)[1]) / 1e9 == pytest.approx(billions, abs=0.01)


# -- on this machine -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A GPU with so many free bytes, and SEVEN_B for every model."""
    there = {"free": 24 * GB}
    monkeypatch.setattr(loading, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(memory, "free_bytes", lambda *_: there["free"])
    monkeypatch.setattr(memory, "count_demands", lambda *_: list(SEVEN_B))
    monkeypatch.setattr("sam4mllm.precision.default_dtype", lambda _: torch.bfloat16)
    return there


def settings(home: Path, **given: Any) -> Settings:
    return Settings(**{"home": home, "model": "some/Model-7B", **given})


@pytest.mark.parametrize(
    ("given", "free", "taken"),
    [
        pytest.param({}, 24, {"SAM4MLLM_QUANTIZE": "none", "SAM4MLLM_TRAIN_MODE": "pause"}, id="pause"),
        pytest.param({}, 80, {"SAM4MLLM_QUANTIZE": "none", "SAM4MLLM_TRAIN_MODE": "beside"}, id="beside"),
        pytest.param({}, 15, {"SAM4MLLM_QUANTIZE": "4bit", "SAM4MLLM_TRAIN_MODE": "pause"}, id="4 bit"),
        pytest.param({"train_mode": "beside"}, 45, {"SAM4MLLM_QUANTIZE": "8bit", "SAM4MLLM_TRAIN_MODE": "beside"}, id="a mode that is set"),
        pytest.param({"quantize": "8bit"}, 80, {"SAM4MLLM_QUANTIZE": "8bit", "SAM4MLLM_TRAIN_MODE": "beside"}, id="bits that are set"),
        pytest.param({}, 13.5, {"SAM4MLLM_QUANTIZE": "4bit", "SAM4MLLM_TRAIN_MODE": "beside"}, id="no room to train"),
    ],
)
def test_what_serve_takes(given: dict[str, Any], free: float, taken: dict[str, str], gpu: dict[str, float], tmp_path: Path) -> None:
    gpu["free"] = free * GB
    assert take_plan(settings(tmp_path, **given)) == taken


def test_what_does_not_fit_is_refused_in_a_line(gpu: dict[str, float], tmp_path: Path) -> None:
    gpu["free"] = 8 * GB
    with pytest.raises(SettingsError, match=r"^Model-7B does not fit into 8\.0 GB"):
        take_plan(settings(tmp_path))


@pytest.mark.parametrize(
    "given", [{"model": "demo"}, {"device_map": "auto"}, {"train_mode": "device:1"}], ids=["the demo", "spread", "another GPU"]
)
def test_where_there_is_nothing_to_plan(given: dict[str, Any], gpu: dict[str, float], tmp_path: Path) -> None:
    del gpu
    assert find_plan(settings(tmp_path, **given)) is None
    assert tell_plan(settings(tmp_path, **given)) == ""
    with pytest.raises(SettingsError, match="plans for one GPU"):
        take_plan(settings(tmp_path, **given))


def test_without_a_gpu_nothing_is_said(tmp_path: Path) -> None:
    assert tell_fit(settings(tmp_path, device="cpu")) == []


def test_doctor_says_the_plan_and_how_to_take_it(gpu: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [told] = tell_fit(settings(tmp_path))
    assert told.endswith("`sam4mllm serve --plan auto` takes this plan")
    [told] = tell_fit(settings(tmp_path, train_mode="pause"))
    assert told.endswith("23.5 GB of 24.0 GB")
    gpu["free"] = 8 * GB
    assert tell_fit(settings(tmp_path))[0].endswith("a GPU with that")

    def fail(_: object) -> None:
        raise ModelError("no such device")

    monkeypatch.setattr(gpu_plan, "find_plan", fail)
    assert tell_fit(settings(tmp_path)) == []


def test_serve_hands_the_plan_to_the_process_that_serves(gpu: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del gpu
    for name in ("SAM4MLLM_QUANTIZE", "SAM4MLLM_TRAIN_MODE", "SAM4MLLM_PLAN", "SAM4MLLM_MODEL"):
        monkeypatch.setenv(name, "")  # so that they are as before afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAM4MLLM_HOME", str(tmp_path))
    started: list[tuple[str | None, str | None]] = []
    monkeypatch.setattr(
        os, "execv", lambda *_: started.append((os.environ.get("SAM4MLLM_QUANTIZE"), os.environ.get("SAM4MLLM_TRAIN_MODE")))
    )
    for arguments in ([], ["--plan", "auto"]):
        result = CliRunner().invoke(make_app(), ["serve", "--model", "some/Model-7B", *arguments])
        assert result.exit_code == 0, result.output
    assert started == [(None, None), ("none", "pause")]


def test_stored_tensors_of_a_meta_model_are_those_that_headers_would_tell(folder: Path) -> None:
    """The names by which the language model is known to be quantised are the same."""
    _, counted = fits.count("Qwen2.5-VL-7B")
    headers = memory.read_headers(str(folder))
    assert headers is not None
    assert all(isinstance(tensor, Stored) for tensor in counted)
    layers = [{".".join(one.name.split(".")[-3:]) for one in tensors if one.is_quantised} for tensors in (counted, headers)]
    assert layers[0] == layers[1]
    assert len(layers[0]) == 7
