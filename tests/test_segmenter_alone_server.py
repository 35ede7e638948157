"""A server without an MLLM: what is refused at its start, what doctor says, and SAM 3."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from backend.cli.adapter_option import appoint_adapter, follow_adapter
from backend.errors import SettingsError
from backend.service import Service, build
from backend.serving.versions import load_leases
from backend.settings import read_settings
from backend.setup.gpu_plan import find_plan, take_plan
from backend.setup.machine_checks import check_models
from backend.setup.machine_notes import tell_strategy
from backend.web.app import create_app
from benchmarks.waiting import wait_for
from sam4mllm import load
from sam4mllm.adapters.registry import Registry
from sam4mllm.cli.main import make_app
from sam4mllm.errors import ModelError, RegistryError
from sam4mllm.options import Options
from tests.adapter_files import ORIGIN, adapter
from tests.backend_fakes import CONFIG, settings, task
from tests.bulk_fakes import write_pictures
from tests.test_learning import ManyImages
from tests.test_segmenter_alone import BASE_URL, masks
from tests.tiny_concepts import write_grounding_dino, write_sam3, write_sam3_video


@pytest.mark.parametrize("strategy", ["box", "ppg", "pqpp", "reason", "choose"])
def test_a_strategy_that_asks_an_mllm_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    monkeypatch.setenv("SAM4MLLM_MODEL", "none")
    monkeypatch.setenv("SAM4MLLM_STRATEGY", strategy)
    with pytest.raises(SettingsError, match=rf"^SAM4MLLM_STRATEGY: strategy {strategy} asks an MLLM, and the model is none: name a model"):
        read_settings()


def test_no_memory_is_planned_for_none(tmp_path: Path) -> None:
    given = settings(tmp_path, model="none", segmenter="sam3", plan="auto")
    assert find_plan(given) is None
    with pytest.raises(SettingsError, match="plans for an MLLM, and the model is none; leave --plan"):
        take_plan(given)


def test_doctor_says_what_serves(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.promote(registry.add(adapter(), **ORIGIN).version)
    told = tell_strategy(settings(tmp_path, model="none", segmenter="sam3"))
    assert told == "no MLLM; strategy concept: the segmenter takes the phrase, and no MLLM is asked"


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        pytest.param(lambda folder: str(write_sam3_video(folder)), "", id="SAM 3"),
        pytest.param(lambda folder: str(write_sam3(folder)), "", id="SAM 3's detector"),
        pytest.param(lambda folder: f"{write_grounding_dino(folder)}+demo", "", id="detector and segmenter"),
        pytest.param(lambda folder: "demo", "needs a segmenter that takes phrases", id="boxes and points only"),
        pytest.param(lambda folder: str(_without_tokenizer(folder)), "needs a segmenter that takes phrases", id="no tokenizer"),
    ],
)
@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_doctor_looks_for_no_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[Path], str], problem: str, running: bool
) -> None:
    monkeypatch.setattr("sam4mllm.grounding.families.find_family", lambda *_: pytest.fail("a family was looked for"))
    monkeypatch.setattr("sam4mllm.memory.announce", lambda *_, **__: pytest.fail("memory was announced"))
    found = check_models(settings(tmp_path, model="none", segmenter=made(tmp_path / "made")), running=running)
    assert [problem in one.problem for one in found] == [True] * bool(problem and not running)


def _without_tokenizer(folder: Path) -> Path:
    (write_sam3_video(folder) / "tokenizer.json").unlink()
    return folder


def test_a_home_with_versions_says_nothing_of_the_segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    papers = replace(ORIGIN["papers"], dialect={}, segmenter="vit_h")
    registry = Registry(tmp_path)
    registry.promote(registry.add(adapter(), **{**ORIGIN, "papers": papers}).version)
    monkeypatch.setenv("SAM4MLLM_SEGMENTER", "sam3")
    monkeypatch.delenv("SAM4MLLM_MODEL", raising=False)
    with pytest.raises(RegistryError):
        follow_adapter(tmp_path)
    monkeypatch.setenv("SAM4MLLM_MODEL", "none")
    follow_adapter(tmp_path)
    for refused in (lambda: follow_adapter(tmp_path, "mine"), lambda: appoint_adapter(settings(tmp_path, model="none"), "mine")):
        with pytest.raises(ModelError, match=r"^the adapter mine serves with an MLLM, and the model is none: name"):
            refused()


# -- real models ---------------------------------------------------------------------------------------------------------------------------


def served(home: Path, given: dict[str, Any], *context: dict[str, Any]) -> tuple[Service, dict[str, Any]]:
    """A service of real models, and its prediction of a phrase."""
    service = build(settings(home, **given), load_leases, ManyImages())
    service.start()
    wait_for("the models", lambda: service.engine.state != "loading", 120, 0.05)
    assert service.engine.state == "ready", service.engine.failure
    body = {"tasks": [task(3, description="cup")], "project": "1.1", "label_config": CONFIG}
    [answer] = (create_app(service).test_client().post("/predict", json=body, base_url=BASE_URL).json or {})["results"]
    return service, answer


@pytest.mark.parametrize(
    ("model", "strategy", "serves"),
    [
        pytest.param("none", "auto", "concept", id="alone"),
        pytest.param("demo", "choose", "choose", id="an MLLM chooses"),
        pytest.param("demo", "concept", "concept", id="an MLLM is not asked"),
    ],
)
def test_sam_3_serves(tmp_path: Path, model: str, strategy: str, serves: str) -> None:
    folder = write_sam3_video(tmp_path / "sam3")
    given = {"model": model, "strategy": strategy, "segmenter": str(folder), "threshold": 0.0, "device": "cpu"}
    service, answer = served(tmp_path / "home", given)
    try:
        assert service.engine.model is not None
        assert service.engine.model.current.strategy == serves
        assert answer["model_version"] == service.version
        if serves == "concept":
            assert masks(answer)
    finally:
        service.close(5)


@pytest.mark.parametrize(
    ("made", "most", "count"),
    [
        pytest.param(lambda folder: str(write_sam3(folder)), 32, 42, id="SAM 3"),
        pytest.param(lambda folder: f"{write_grounding_dino(folder)}+demo", 64, 75, id="Grounding DINO"),
    ],
)
def test_a_phrase_that_is_not_read_to_its_end_is_told(tmp_path: Path, made: Callable[[Path], str], most: int, count: int) -> None:
    pipeline = load("none", made(tmp_path / "made"), "cpu", Options(threshold=0.0))
    short, long = pipeline.segment(np.zeros((40, 60, 3), np.uint8), ["cup", "a" * (most + 8)])
    assert "tokens" not in short.note
    assert long.note.startswith(f"the segmenter reads {most} tokens of a phrase, and this one has {count}:")


@pytest.mark.parametrize("told", ["setting", "option"])
def test_a_batch_gives_the_servers_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    for name in ("MODEL", "SEGMENTER", "THRESHOLD"):
        monkeypatch.setenv(f"SAM4MLLM_{name}", "")  # the command sets them for good
    folder = write_sam3_video(tmp_path / "sam3")
    given = {"model": "none", "segmenter": str(folder), "threshold": 0.0, "device": "cpu"}
    service, _ = served(tmp_path / "home", given)
    service.close(5)
    write_pictures(tmp_path / "pictures", 1)
    command = ["batch", str(tmp_path / "pictures"), "--phrase", "cup", "--model", "none", "--segmenter", str(folder), "--json"]
    command += ["--threshold", "0"] if told == "option" else []
    threshold = {"SAM4MLLM_THRESHOLD": "0" if told == "setting" else ""}
    environment = {"SAM4MLLM_HOME": str(tmp_path / "home"), "SAM4MLLM_DEVICE": "cpu", **threshold}
    result = CliRunner().invoke(make_app(), command, env=environment)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["version"], summary["done"]) == (service.version, 1)
    refused = CliRunner().invoke(make_app(), [*command, "--adapter", "mine"], env=environment)
    assert str(refused.exception).startswith("the adapter mine serves with an MLLM, and the model is none")
